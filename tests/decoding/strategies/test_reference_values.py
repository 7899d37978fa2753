"""Worked examples: a vocabulary of four, results by hand from the papers' formulas."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from decoding.strategies.agla import AGLA
from decoding.strategies.attention.adaiat import AdaIAT
from decoding.strategies.attention.hgai import HGAI
from decoding.strategies.attention.iat import IAT
from decoding.strategies.attention.pai import PAI
from decoding.strategies.attention.spin import SPIN
from decoding.strategies.attention.vaf import VAF
from decoding.strategies.code import CODE
from decoding.strategies.deco import DeCo
from decoding.strategies.dola import DoLa
from decoding.strategies.icd import ICD
from decoding.strategies.image_tokens.avisc import AvisC
from decoding.strategies.image_tokens.damro import DAMRO
from decoding.strategies.image_tokens.sid import SID
from decoding.strategies.image_tokens.sira import SIRA
from decoding.strategies.m3id import M3ID
from decoding.strategies.nolan import NoLan
from decoding.strategies.plain import Plain
from decoding.strategies.ritual import RITUAL
from decoding.strategies.sharpen import Sharpen
from decoding.strategies.steering.fade import FADE
from decoding.strategies.steering.rudder import RUDDER
from decoding.strategies.steering.steer import Steer
from decoding.strategies.steering.vista import VISTA
from decoding.strategies.steering.vti import VTI
from decoding.strategies.truncate import Truncate
from decoding.strategies.vcd import VCD
from decoding.strategies.vdgd import VDGD
from decoding.strategy import Activations, AttentionKeys, EarlyExits, LayerPlace, SteeredLayers, Step, Strategy, Tensors
from tests.decoding.naive_reference import most_divergent_layer

OUT = -torch.inf
Z = torch.tensor([2.0, 1.5, 0.0, -1.0])
OTHER = torch.tensor([1.0, 1.6, 0.2, -1.5])  # z of the branch
DESCRIPTION = torch.tensor([[0.1, 0.6, 0.2, 0.1], [0.3, 0.3, 0.2, 0.2]]).log()  # two tokens


def step(other: Tensor = OTHER, state: Tensors | None = None, position: int = 0) -> Step:
    names = ("noisy", "local", "disturbed", "blind", "description", "least", "transformed", "late", "outlier")
    return Step(Z, Z, dict.fromkeys(names, other), state or {}, torch.tensor([position]), early_logits=other[None])


def fold_description(strategy: VDGD, description: Tensor = DESCRIPTION) -> Tensors:
    state: Tensors = {}
    for logits in description:
        state = strategy.update_state(state, Activations(logits=logits))
    return state


@pytest.mark.parametrize(
    ("strategy", "logits", "probabilities"),
    [
        (Plain(), [2.0, 1.5, 0.0, -1.0], [0.55814, 0.33853, 0.07554, 0.02779]),
        (AGLA(alpha=2, beta=0.5), [4.0, 4.7, OUT, OUT], [0.3318, 0.6682, 0, 0]),
        (VCD(alpha=1, beta=0.1), [3.0, 1.4, -0.2, OUT], [0.8047, 0.1625, 0.0328, 0]),
        (ICD(alpha=1, beta=0.1), [3.0, 1.4, -0.2, OUT], [0.8047, 0.1625, 0.0328, 0]),
        (SID(alpha=1, beta=0.1), [3.0, 1.4, -0.2, OUT], [0.8047, 0.1625, 0.0328, 0]),
        (AvisC(alpha=1, beta=0.1), [3.0, 1.4, -0.2, OUT], [0.8047, 0.1625, 0.0328, 0]),
        (CODE(exponent=0.7), [2.5955, 1.4404, OUT, OUT], [0.7604, 0.2396, 0, 0]),
        (CODE(exponent=0.2), [2.2231, OUT, OUT, OUT], [1, 0, 0, 0]),
        (NoLan(), [3.599998, 1.34, -0.32, -0.200001], [0.872172, 0.091012, 0.017305, 0.019511]),
        (NoLan(scale=1, adaptive=False), [3.0, 1.4, -0.2, -0.5], [0.785635, 0.158617, 0.032024, 0.023724]),
        (SIRA(), [2.5, 1.45, -0.1, -0.75], [0.683534, 0.239194, 0.050768, 0.026503]),
        (DAMRO(), [4.0, 1.3, -0.4, OUT], [0.92637, 0.062257, 0.011373, 0]),
        (DAMRO(alpha=0.5), [2.5, 1.45, -0.1, OUT], [0.702143, 0.245706, 0.052151, 0]),
        (RITUAL(), [5.0, 6.3, 0.6, OUT], [0.213603, 0.783774, 0.002622, 0]),
        (DeCo(alpha=0.6), [2.3260, 2.0216, 0.0652, OUT], [0.5429, 0.4005, 0.0566, 0]),
        (Truncate(beta=0.5), [2.0, 1.5, OUT, OUT], [0.6225, 0.3775, 0, 0]),
        (Truncate(beta=0.1), [2.0, 1.5, 0.0, OUT], [0.5741, 0.3482, 0.0777, 0]),
        (Truncate(beta=1), [2.0, OUT, OUT, OUT], [1, 0, 0, 0]),
        (Sharpen(scale=3, beta=0.5), [6.0, 4.5, OUT, OUT], [0.8176, 0.1824, 0, 0]),
    ],
    ids=lambda value: repr(value) if isinstance(value, Strategy) else None,
)
def test_logits_equal_reference_values(strategy: Strategy, logits: list[float], probabilities: list[float]) -> None:
    after = strategy.logits(step())
    torch.testing.assert_close(after, torch.tensor(logits), atol=5e-5, rtol=0)
    torch.testing.assert_close(after.softmax(-1), torch.tensor(probabilities, dtype=torch.float32), atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    ("strategy", "logprobs", "probabilities"),
    [
        (M3ID(decay=0.02, beta=0.1), [-0.4443, -1.1879, -2.7100], [0.6332, 0.3011, 0.0657, 0]),  # the tenth token
        (PAI(gamma=1.1, beta=0.1), [-0.5205, -1.1305, -2.6405], [0.6012, 0.3267, 0.0722, 0]),
        (DoLa(beta=0.1), [0.6269, -0.4731, -0.5731], [0.6120, 0.2037, 0.1843, 0]),
    ],
    ids=lambda value: repr(value) if isinstance(value, Strategy) else None,
)
def test_log_probability_contrasts_equal_reference_values(
    strategy: Strategy, logprobs: list[float], probabilities: list[float]
) -> None:
    """The papers' scores are log-probabilities and not normalized: one number apart from ours."""
    after = strategy.logits(step(position=9))
    gap = after[:3] - torch.tensor(logprobs)
    torch.testing.assert_close(gap, gap[0].expand(3), atol=2e-4, rtol=0)
    torch.testing.assert_close(after.softmax(-1), torch.tensor(probabilities), atol=1e-4, rtol=0)


def test_pai_raises_image_scores_by_their_size() -> None:
    """alpha .2: 2 becomes 2.4, and -1 becomes -.8; text, and layers before the second, are left alone."""
    scores, images = torch.tensor([[2.0, 2.0, -1.0, -1.0]]), torch.tensor([0, -1, 1, -1])
    assert PAI().edit_attention_scores(scores, AttentionKeys(images, 1, 32), {}) is scores
    after = PAI().edit_attention_scores(scores, AttentionKeys(images, 2, 32), {})
    torch.testing.assert_close(after, torch.tensor([[2.4, 2.0, -0.8, -1.0]]))


def test_hgai_raises_image_scores_by_the_mean_over_heads() -> None:
    scores = torch.tensor([[1.0, 2.0, -1.0, 0.5, 0.3], [0.2, -0.4, -3.0, 1.5, 0.8]])
    images = torch.tensor([-1, 0, 1, 2, -1])
    for layer in (4, 19):
        assert HGAI().edit_attention_scores(scores, AttentionKeys(images, layer, 32), {}) is scores
    for layer in (5, 18):
        after = HGAI().edit_attention_scores(scores, AttentionKeys(images, layer, 32), {})
        torch.testing.assert_close(after, torch.tensor([[1.0, 2.6, 0.0, 1.0, 0.3], [0.2, 0.2, -2.0, 2.0, 0.8]]))
    thirteen = HGAI(first=0.125, last=0.45)  # the paper's numbers in 40 layers
    assert list(thirteen.select_layers(40)) == list(range(5, 19))


def test_iat_raises_scores_of_the_answer() -> None:
    scores, text = torch.tensor([[0.5, 1.0, -0.5, 0.2]]), torch.full((4,), -1)
    answer = torch.tensor([False, False, True, True])
    for layer in (4, 18):
        assert IAT().edit_attention_scores(scores, AttentionKeys(text, layer, 32, answer), {}) is scores
    for layer in (5, 17):
        after = IAT().edit_attention_scores(scores, AttentionKeys(text, layer, 32, answer), {})
        torch.testing.assert_close(after, torch.tensor([[0.5, 1.0, -0.1, 0.36]]))
    without = IAT().edit_attention_scores(scores, AttentionKeys(text, 5, 32), {})  # the last token of the prompt
    assert torch.equal(without, scores)


def build_adaiat_keys(layer: int = 5, **changes: Any) -> AttentionKeys:
    """Build four keys, of which two belong to the answer. The heads have M - 1 of 1.2 and -.1."""
    keys = AttentionKeys(
        torch.full((4,), -1),
        layer,
        32,
        torch.tensor([False, False, True, True]),
        statistics={"hallucinated": torch.full((32, 2), 0.2), "real": torch.tensor([0.44, 0.18]).repeat(32, 1)},
    )
    return replace(keys, **changes)


def test_adaiat_scales_weights_of_the_answer() -> None:
    """The sum of the means is .398561. The threshold is .4 + beta .22."""
    scores = torch.tensor([[0.5, 1.0, -0.5, 0.2], [0.1, -1.0, -2.0, 0.3]])
    expected = torch.tensor([[0.085179, 0.140436, 0.256951, 0.517435], [0.534641, 0.177966, 0.026188, 0.261205]])
    for layer in (4, 18):
        assert AdaIAT().edit_attention_scores(scores, build_adaiat_keys(layer), {}) is scores
    for layer in (5, 17):
        after = AdaIAT().edit_attention_scores(scores, build_adaiat_keys(layer), {})
        torch.testing.assert_close(after.softmax(-1), expected, rtol=0, atol=1e-6)
    without = AdaIAT().edit_attention_scores(scores, build_adaiat_keys(generated=None), {})
    assert torch.equal(without, scores)  # the last token of the prompt


def test_adaiat_leaves_layers_that_look_at_the_answer_enough() -> None:
    scores = torch.tensor([[0.5, 1.0, -0.5, 0.2], [0.1, -1.0, -2.0, 0.3]])
    for total, is_edited in ((0.3985, False), (0.3987, True)):
        statistics = {"hallucinated": torch.full((32, 2), total / 2), "real": torch.full((32, 2), 0.3)}
        keys = build_adaiat_keys(statistics=statistics)
        after = AdaIAT(beta=0).edit_attention_scores(scores, keys, {})
        assert torch.equal(after, scores) != is_edited


def test_adaiat_counts_and_edits_visible_tokens_only() -> None:
    scores = torch.tensor([[0.5, 1.0, -0.5, 0.2], [0.1, -1.0, -2.0, 0.3]])
    padded = torch.cat([torch.full((2, 2), 9.0), scores, torch.full((2, 1), 9.0)], dim=1)
    keys = build_adaiat_keys(
        image_token_index=torch.full((7,), -1),
        generated=torch.tensor([False, False, False, False, True, True, True]),
        visible=torch.tensor([False, False, True, True, True, True, False]),
    )
    after = AdaIAT().edit_attention_scores(padded, keys, {})
    assert torch.equal(after[:, 2:6], AdaIAT().edit_attention_scores(scores, build_adaiat_keys(), {}))
    assert torch.equal(after[:, [0, 1, 6]], padded[:, [0, 1, 6]])


def test_adaiat_has_no_negative_weights() -> None:
    keys = build_adaiat_keys(statistics={"hallucinated": torch.ones(32, 2), "real": torch.zeros(32, 2)})
    after = AdaIAT(beta=0).edit_attention_scores(torch.zeros(2, 4), keys, {})
    torch.testing.assert_close(after[:, 2:].exp(), torch.full((2, 2), 1e-6))


def test_vaf_scales_scores_of_image_and_instruction() -> None:
    scores = torch.tensor([[1.0, 2.0, -1.0, 0.5, 0.3], [0.2, -0.4, -3.0, 1.5, 0.8]])
    images = torch.tensor([-1, 0, 1, 2, -1])
    for layer in (8, 15):
        assert VAF().edit_attention_scores(scores, AttentionKeys(images, layer, 32), {}) is scores
    for layer in (9, 14):
        after = VAF().edit_attention_scores(scores, AttentionKeys(images, layer, 32), {})
        expected = [[0.95, 2.3, -1.15, 0.575, 0.3], [0.19, -0.46, -3.45, 1.725, 0.8]]
        torch.testing.assert_close(after, torch.tensor(expected))
    text = VAF().edit_attention_scores(scores, AttentionKeys(torch.full((5,), -1), 9, 32), {})
    assert torch.equal(text, scores)  # without an image nothing stands before it


def test_vista_rotates_outputs_and_mixes_early_logits() -> None:
    outputs, vector = torch.tensor([1.0, -2.0, 0.5, 2.0]), torch.tensor([0.5, 1.0, 0.0, 0.5])
    place = LayerPlace("feed_forward", 0, 1)
    after = VISTA().steer(outputs, place, {"vectors": vector[None]})
    torch.testing.assert_close(after, torch.tensor([1.248551, -1.532393, 0.503687, 2.255924]), atol=1e-5, rtol=1e-5)
    after = VISTA().steer(outputs, place, {"vectors": -vector[None]})
    torch.testing.assert_close(after, torch.tensor([0.761067, -2.336637, 0.482346, 1.725759]), atol=1e-5, rtol=1e-5)
    assert VISTA().early_exit_layers(32, False) == EarlyExits((26, 27, 28, 29, 30, 31), False)
    early = torch.tensor([[0.5, 1.0, 0.3, -0.2], [0.9, 1.4, 0.1, -0.6]])
    mixed = VISTA().logits(replace(step(), early_logits=early))
    torch.testing.assert_close(mixed, torch.tensor([1.61, 1.41, 0.06, -0.82]))
    with_image, without = torch.tensor([[1.0, 2.0], [0.5, -1.0]]), torch.tensor([[0.5, 1.0], [1.0, 1.0]])
    state: Tensors = {}
    for layer in range(2):
        pair = {"with_image": with_image[layer], "without_image": without[layer]}
        state = VISTA().update_state(state, Activations(layer=layer, layers=2, hidden_states=pair))
    torch.testing.assert_close(state["vectors"], torch.tensor([[0.5, 1.0], [-0.5, -2.0]]))


def test_vti_rotates_outputs() -> None:
    outputs, direction = torch.tensor([1.0, -2.0, 0.5, 2.0]), torch.tensor([1.71927, 0.719121, 0.14044, 0.21957])
    assert VTI().steered_layers(2) == SteeredLayers((0, 1), "feed_forward")
    after = VTI().steer(outputs, LayerPlace("feed_forward", 1, 2), {"vectors": torch.stack([outputs, direction])})
    torch.testing.assert_close(after, torch.tensor([1.229985, -1.864911, 0.512059, 1.99926]), atol=1e-5, rtol=1e-5)


def test_rudder_adds_the_direction_of_the_prompt() -> None:
    updates = torch.tensor([[1.0, 0.0, 2.0], [0.0, -1.0, 0.5], [0.2, 0.1, 0.1]])
    directions = {"mean": [0.399778, -0.299833, 0.866186], "weighted": [0.404091, -0.193382, 0.894044]}
    for pooling, direction in directions.items():
        state: Tensors = {}
        for layer in range(32):
            own = {"prompt": updates if layer == 30 else updates.flip(0) ** 2}
            activations = Activations(layer=layer, layers=32, attention_updates=own)
            state = RUDDER(pooling=pooling).update_state(state, activations)
        torch.testing.assert_close(state["direction"], torch.tensor(direction), atol=1e-5, rtol=1e-5)
    assert RUDDER().steered_layers(32) == SteeredLayers((30,), "attention", "answer")
    stream, outputs, v = (
        torch.tensor([0.5, -1.0, 1.0]),
        torch.tensor([0.1, 0.2, -0.3]),
        torch.tensor(directions["mean"]),
    )
    state, place = {"direction": v, "layer_input": stream}, LayerPlace("attention", 30, 32)
    after = stream + RUDDER().steer(outputs, place, state)
    torch.testing.assert_close(after, torch.tensor([8.555138, -6.766353, 17.936132]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(RUDDER(adaptive=False).steer(outputs, place, state), outputs + 20 * v)
    cosines = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
    streams = torch.stack([cosines, (1 - cosines**2).sqrt()], dim=-1)
    gates = RUDDER().compute_gate(streams, torch.tensor([1.0, 0.0]).expand(5, 2))
    expected = torch.tensor([0.05, 0.053981, 0.5, 0.946019, 0.996985])
    torch.testing.assert_close(gates[:, 0], expected, atol=1e-5, rtol=1e-5)


def test_fade_weakens_one_layer() -> None:
    stream, attention, outputs = torch.tensor([1.0, 2.0]), torch.tensor([0.1, -0.2]), torch.tensor([-0.5, 1.0])
    assert FADE().steered_layers(32) == SteeredLayers((18,), "feed_forward")
    assert FADE(layer=0.625, positions="answer").steered_layers(32) == SteeredLayers((20,), "feed_forward", "answer")
    after = stream + attention + FADE().steer(outputs, LayerPlace("feed_forward", 18, 32), {})
    torch.testing.assert_close(after, torch.tensor([0.9, 2.2]))


def test_steer_adds_vectors() -> None:
    state, outputs = {"vectors": torch.tensor([[0.0, 0.0], [1.0, -1.0]])}, torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    place = LayerPlace("layer", 1, 2)
    torch.testing.assert_close(Steer(strength=2).steer(outputs, place, state), torch.tensor([[5.0, 2.0], [2.0, -1.0]]))
    after = Steer(strength=2, normalize=True).steer(outputs, place, state)
    torch.testing.assert_close(after[0], torch.tensor([5.0, 2.0]) * 5 / 29**0.5)
    torch.testing.assert_close(after.norm(dim=-1), outputs.norm(dim=-1))


def test_spin_weakens_the_heads_that_look_at_the_image_least() -> None:
    """The sums over the image are .5, -3, 1 and -.1."""
    scores = torch.tensor([[0.5, 1.0, -0.5, 0.2], [0.1, -1.0, -2.0, 0.3], [0.0, 0.4, 0.6, -0.1], [1.0, -0.2, 0.1, 0.4]])
    keys = AttentionKeys(torch.tensor([-1, 0, 1, -1]), 5, 32)
    gates = SPIN(kept=0.5).gate_heads(scores, keys, {})
    assert gates is not None
    assert torch.equal(gates, torch.tensor([1.0, 0.08, 1.0, 0.08]))
    assert SPIN(kept=0.5, first=0.25).gate_heads(scores, keys, {}) is None
    least = SPIN(kept=0.95, suppress=0).gate_heads(scores, keys, {})  # three of four heads
    assert least is not None
    assert least.tolist() == [1, 0, 1, 1]


def test_dola_subtracts_the_most_divergent_layer() -> None:
    nearer = Z + torch.tensor([0.1, 0.0, 0.0, 0.0])
    for early in (torch.stack([OTHER, nearer]), torch.stack([nearer, OTHER])):
        step_with_layers = Step(Z, Z, {}, {}, torch.tensor([0]), early)
        torch.testing.assert_close(DoLa(beta=0).logits(step_with_layers), Z - OTHER)


def test_dola_by_the_official_distance() -> None:
    """It weighs tokens that one layer finds unlikely more, and chooses another layer in many random steps."""
    random, differences = torch.Generator().manual_seed(0), 0
    for _ in range(100):
        z, *early = (3 * torch.randn(5, 6, generator=random, dtype=torch.float64)).unbind()
        step_with_layers = Step(z, z, {}, {}, torch.tensor([0]), torch.stack(early))
        numbered = dict(enumerate(early))
        layer, usual = (most_divergent_layer(z, numbered, is_official=official) for official in (True, False))
        official = DoLa(divergence="official", beta=0)
        torch.testing.assert_close(official.logits(step_with_layers), z - early[layer])
        differences += layer != usual
    assert differences > 5


def test_deco_adds_the_surest_layer() -> None:
    """The last token is no candidate, however sure a layer is of it."""
    sure = torch.tensor([3.0, 0.0, 0.0, 0.0])
    elsewhere = torch.tensor([0.0, 0.0, 0.0, 9.0])
    step_with_layers = Step(Z, Z, {}, {}, torch.tensor([0]), torch.stack([OTHER, elsewhere, sure]))
    torch.testing.assert_close(DeCo(alpha=1).logits(step_with_layers)[:3], (Z + sure.softmax(-1)[0] * sure)[:3])


@pytest.mark.parametrize(
    ("reduction", "probabilities"),
    [("min", [0.3333, 0.6667]), ("mean", [0.2899, 0.7101]), ("sum", [0.1429, 0.8571])],
)
def test_vdgd_ranks_plausible_tokens_by_the_description(reduction: str, probabilities: list[float]) -> None:
    """beta 0.5 leaves the first two tokens."""
    strategy = VDGD.model_validate({"reduction": reduction, "truncation": "plausibility", "beta": 0.5})
    after = strategy.logits(step(state=fold_description(strategy)))
    torch.testing.assert_close(after.softmax(-1), torch.tensor([*probabilities, 0, 0]), atol=5e-5, rtol=0)


def test_vdgd_nucleus_has_one_token() -> None:
    """Tempered to [.7201, .2649, .0132, .0018], the first alone reaches one half."""
    strategy = VDGD()
    assert strategy.mask_candidates(Z).tolist() == [True, False, False, False]
    assert VDGD(top_p=0.73).mask_candidates(Z).tolist() == [True, True, False, False]


def test_equal_branches_cancel_or_sharpen() -> None:
    same = step(other=Z)
    assert torch.equal(VCD(alpha=1.7, beta=0).logits(same), Z)
    assert torch.equal(ICD(alpha=1.7, beta=0).logits(same), Z)
    assert torch.equal(M3ID(beta=0).logits(same), Z)
    assert torch.equal(NoLan().logits(same), Z)
    assert torch.equal(SIRA().logits(same), Z)
    assert torch.equal(CODE().logits(same), Z)
    assert torch.equal(PAI(beta=0).logits(same), Z)
    assert torch.equal(DoLa(beta=0).logits(same), torch.zeros(4))
    torch.testing.assert_close(AGLA(alpha=2, beta=0).logits(same), 3 * Z)
    torch.testing.assert_close(
        RITUAL(beta=0.1).logits(same).softmax(-1)[:3], torch.tensor([0.880537, 0.119168, 0.000295])
    )
    assert torch.equal(AGLA(alpha=2, beta=0.5).logits(same), Sharpen(scale=3, beta=0.5).logits(same))
