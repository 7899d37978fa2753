"""Patches and heads whose attention PAINT raises."""

import torch
from torch import Tensor

from decoding.strategies.attention.paint import PAINT
from decoding.strategy import Activations, AttentionKeys


def make_tower_attention(first: list[float], late: list[float]) -> Tensor:
    """Build [4 layers, 1 image, 2 heads, patches] attention from its sums over heads in layers 0 and 2."""
    layers = [torch.tensor(row).expand(2, -1) / 2 for row in (first, first[::-1], late, late[::-1])]
    return torch.stack(layers)[:, None]


FIRST = [0.8, 0.1, 0.7, 0.2, 0.0, 0.3, 0.1, 0.4]
LATE = [5.0, 0.2, 0.3, 0.2, 0.1, 0.2, 0.3, 0.2]  # Q1 .2, Q3 .3: the first alone lies above .45


def test_patch_sets_follow_from_two_tower_layers() -> None:
    """A quarter of eight is two, of which the summary takes one."""
    increase = PAINT().compute_attention_increase(make_tower_attention(FIRST, LATE))
    torch.testing.assert_close(increase, torch.tensor([0.3, 0, 0.7, 0, 0, 0, 0, 0]))
    increase = PAINT(ratio=0.5).compute_attention_increase(make_tower_attention(FIRST, LATE))
    torch.testing.assert_close(increase, torch.tensor([0.3, 0, 0.7, 0, 0, 0.7, 0, 0.7]))


def test_each_image_has_its_own_patch_sets() -> None:
    images = torch.cat([make_tower_attention(FIRST, LATE), make_tower_attention(FIRST[::-1], LATE[::-1])], dim=1)
    increase = PAINT().compute_attention_increase(images)
    torch.testing.assert_close(increase, torch.tensor([0.3, 0, 0.7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.7, 0, 0.3]))


def test_scores_of_chosen_patches_grow_by_their_size() -> None:
    """The keys are a text token, patches 0, 2 and 1, and another text token."""
    state = PAINT().update_state({}, Activations(vision_attention={"with_image": make_tower_attention(FIRST, LATE)}))
    keys = AttentionKeys(torch.tensor([-1, 0, 2, 1, -1]), layer=2, layers=4)
    after = PAINT().edit_attention_scores(torch.tensor([[2.0, 2.0, -1.0, 3.0, 1.0]]), keys, state)
    torch.testing.assert_close(after, torch.tensor([[2.0, 2.6, -0.3, 3.0, 1.0]]))


def test_sensitive_heads_have_larger_factors() -> None:
    """Heads that move by 3, 1 and 2 of a mean of 2."""
    strategy = PAINT(modulation="sensitive")
    without_image = torch.ones(3, 4)
    with_image = without_image + torch.tensor([3.0, 1.0, 2.0])[:, None] * torch.tensor([0.5, -0.5, 0.5, 0.5])
    activations = Activations(
        {"with_image": with_image, "without_image": without_image},
        2,
        4,
        {"with_image": make_tower_attention(FIRST, LATE)},
    )
    state = strategy.update_state({}, activations)
    after = strategy.edit_attention_scores(torch.ones(3, 1), AttentionKeys(torch.tensor([2]), 2, 4), state)
    torch.testing.assert_close(after, torch.tensor([[1 + 0.7 * 1.5], [1 + 0.7 * 0.5], [1.7]]))
