import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from decoding.logits_ops import (
    add,
    contrast,
    mask_logits,
    mean_kl_divergence,
    plausibility_mask,
    scale,
    subtract,
    top_p_mask,
)

OUT = -torch.inf
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
logits = st.lists(st.one_of(st.floats(-50, 50, width=32), st.just(OUT)), min_size=1, max_size=12).map(torch.tensor)


@pytest.mark.parametrize(
    ("beta", "kept"),
    [(0, [1, 1, 1, 1, 0]), (0.1, [1, 1, 1, 0, 0]), (0.5, [1, 1, 0, 0, 0]), (1, [1, 0, 0, 0, 0])],
)
def test_plausibility_mask_equals_the_definition(beta: float, kept: list[int]) -> None:
    raw = torch.tensor([2.0, 1.5, 0.0, -1.0, OUT])
    assert plausibility_mask(raw, beta).tolist() == [bool(k) for k in kept]


@every_dtype
@pytest.mark.parametrize("beta", [0.05, 0.1, 0.2, 0.5, 0.9])
def test_plausibility_mask_is_exact_in_any_dtype(dtype: torch.dtype, beta: float) -> None:
    """max + ln(beta), rounded to bfloat16, can fall on a logit below it."""
    raw = torch.linspace(10, 40, 4001, dtype=torch.float64).to(dtype)
    for top in raw[::97]:
        row = raw[raw <= top]
        expected = [value >= top.item() + math.log(beta) for value in row.tolist()]
        assert plausibility_mask(row, beta).tolist() == expected


def test_equally_likely_tokens_are_plausible() -> None:
    assert plausibility_mask(torch.tensor([1.0, 1.0, 0.0]), 1.0).tolist() == [True, True, False]


@given(logits, st.floats(0.01, 10), st.floats(0, 1))
def test_top_p_mask_is_the_smallest_set_that_reaches_the_mass(raw: Tensor, temperature: float, top_p: float) -> None:
    if not (raw > OUT).any():
        return
    keep = top_p_mask(raw, temperature, top_p)
    probabilities = (raw.double() / temperature).softmax(-1)
    chosen = probabilities[keep]
    assert len(chosen) >= 1
    assert chosen.max() >= probabilities.max() - 1e-7
    assert not keep[raw == OUT].any()
    assert chosen.sum() >= top_p - 1e-5
    if len(chosen) > 1:
        assert chosen.sum() - chosen.min() <= top_p + 1e-5
    if len(chosen) < len(probabilities):
        assert chosen.min() >= probabilities[~keep].max() - 1e-9


def test_top_p_one_keeps_every_possible_token() -> None:
    """The tail of 32000 tokens sums to a little more than 1 in float32."""
    raw = torch.randn(32000)
    raw[7] = OUT
    assert top_p_mask(raw, 1.0, 1.0).sum() == 31999


def test_top_p_mask_keeps_at_least_the_likeliest() -> None:
    assert top_p_mask(torch.tensor([0.0, 3.0, 1.0]), 1.0, 0.0).tolist() == [False, True, False]


@pytest.mark.parametrize(("top_p", "kept"), [(0.3, 1), (0.5, 2), (0.9, 3)])
def test_top_p_mask_keeps_as_many_equal_tokens_as_needed(top_p: float, kept: int) -> None:
    assert top_p_mask(torch.tensor([1.0, 1.0, 0.0]), 1.0, top_p).sum() == kept


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
def test_top_p_mask_is_the_same_without_a_full_sort(top_p: float) -> None:
    """Sharp rows are decided by the likeliest token or tokens alone, the flat one needs all of them."""
    rows = torch.randn(6, 2000) * torch.tensor([0.1, 1, 2, 4, 8, 16])[:, None]
    assert torch.equal(torch.stack([top_p_mask(row, 1.0, top_p) for row in rows]), top_p_mask(rows, 1.0, top_p))


@every_dtype
def test_top_p_mask_of_a_batch_equals_its_rows(dtype: torch.dtype) -> None:
    rows = torch.randn(5, 3, 40).to(dtype)
    each = torch.stack([torch.stack([top_p_mask(row, 0.5, 0.7) for row in block]) for block in rows])
    assert torch.equal(top_p_mask(rows, 0.5, 0.7), each)


def test_mask_logits_sets_the_rest_to_minus_infinity() -> None:
    keep = torch.tensor([True, False, True])
    assert mask_logits(torch.tensor([1.0, 2.0, OUT]), keep).tolist() == [1.0, OUT, OUT]


@every_dtype
def test_operations_keep_dtype_and_inputs(dtype: torch.dtype) -> None:
    one, other = torch.randn(9).to(dtype), torch.randn(9).to(dtype)
    before = one.clone(), other.clone()
    for mixed in (contrast(one, other, 1.5), add(one, other, 1.5), mask_logits(one, other > 0)):
        assert mixed.dtype == dtype
    assert torch.equal(one, before[0])
    assert torch.equal(other, before[1])


def test_contrast_equals_the_definition() -> None:
    z, noisy = torch.tensor([2.0, 1.5, 0.0, -1.0]), torch.tensor([1.0, 1.6, 0.2, -1.5])
    torch.testing.assert_close(contrast(z, noisy, 1.0), torch.tensor([3.0, 1.4, -0.2, -0.5]))


@given(logits.flatmap(lambda one: st.tuples(st.just(one), st.just(one.flip(0)))), st.floats(0, 100))
def test_operations_keep_minus_infinity(pair: tuple[Tensor, Tensor], weight: float) -> None:
    """(1 + a)(-inf) - a(-inf) is nan, and z - a(-inf) would force a token."""
    one, other = pair
    for mixed in (contrast(one, other, weight), add(one, other, weight)):
        assert not mixed.isnan().any()
        assert not (mixed == torch.inf).any()
        assert (mixed[one == OUT] == OUT).all()


@given(logits)
def test_weight_zero_and_equal_branches_change_nothing(one: Tensor) -> None:
    assert torch.equal(contrast(one, one.flip(0), 0), one)
    assert torch.equal(contrast(one, one, 2.7), one)
    assert torch.equal(add(one, one.flip(0), 0), one)


@every_dtype
def test_weight_per_row_equals_a_number(dtype: torch.dtype) -> None:
    weights = [0.0, 0.1, 1.1, 2.7, 33.3]
    column = torch.tensor(weights, dtype=torch.float64)[:, None]
    one, other = (4 * torch.randn(2, len(weights), 500)).to(dtype)
    for mixture in (contrast, add, subtract, lambda z, _, weight: scale(z, weight)):
        rows = [mixture(*row) for row in zip(one, other, weights, strict=True)]
        assert torch.equal(mixture(one, other, column), torch.stack(rows))


def test_mean_kl_divergence_leaves_out_tokens_that_are_ruled_out() -> None:
    """Between (.5, .5) and (.9, .1): the mean is (.7, .3)."""
    one, other = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
    expected = sum(m * (math.log(m / p) + math.log(m / q)) / 2 for m, p, q in ((0.7, 0.5, 0.9), (0.3, 0.5, 0.1)))
    assert mean_kl_divergence(one, other) == pytest.approx(expected)
    without = torch.tensor([OUT, *one]), torch.tensor([2.0, *other])
    assert mean_kl_divergence(*without).isfinite()
