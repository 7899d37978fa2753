"""Which patches PAINT amplifies, how much, and in which heads."""

import torch
from torch import Tensor

from decoding.strategies.paint import PAINT
from decoding.strategy import Captured, Keys


def tower(first: list[float], late: list[float]) -> Tensor:
    """[4 layers, 1 picture, 2 heads, patches] attention whose sums over heads are given, in layers 0 and 2."""
    layers = [torch.tensor(row).expand(2, -1) / 2 for row in (first, first[::-1], late, late[::-1])]
    return torch.stack(layers)[:, None]


FIRST = [0.8, 0.1, 0.7, 0.2, 0.0, 0.3, 0.1, 0.4]
LATE = [5.0, 0.2, 0.3, 0.2, 0.1, 0.2, 0.3, 0.2]  # Q1 .2, Q3 .3: the first alone lies above .45


def test_the_sets_follow_from_the_first_layer_and_the_last_but_one() -> None:
    """A quarter of eight is two, of which the summary takes one."""
    louder = PAINT().louder(tower(FIRST, LATE))
    torch.testing.assert_close(louder, torch.tensor([0.3, 0, 0.7, 0, 0, 0, 0, 0]))
    louder = PAINT(ratio=0.5).louder(tower(FIRST, LATE))
    torch.testing.assert_close(louder, torch.tensor([0.3, 0, 0.7, 0, 0, 0.7, 0, 0.7]))


def test_each_picture_has_sets_of_its_own() -> None:
    pictures = torch.cat([tower(FIRST, LATE), tower(FIRST[::-1], LATE[::-1])], dim=1)
    louder = PAINT().louder(pictures)
    torch.testing.assert_close(louder, torch.tensor([0.3, 0, 0.7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.7, 0, 0.3]))


def test_scores_grow_by_their_size_where_their_patch_is_chosen() -> None:
    """The keys are a text token, patches 0, 2 and 1, and another text token."""
    memory = PAINT().digest({}, Captured(vision={"seeing": tower(FIRST, LATE)}))
    keys = Keys(torch.tensor([-1, 0, 2, 1, -1]), layer=2, layers=4)
    after = PAINT().attend(torch.tensor([[2.0, 2.0, -1.0, 3.0, 1.0]]), keys, memory)
    torch.testing.assert_close(after, torch.tensor([[2.0, 2.6, -0.3, 3.0, 1.0]]))


def test_sensitive_heads_are_amplified_more() -> None:
    """Heads that move by 3, 1 and 2 of a mean of 2."""
    strategy = PAINT(modulation="sensitive")
    blind = torch.ones(3, 4)
    seeing = blind + torch.tensor([3.0, 1.0, 2.0])[:, None] * torch.tensor([0.5, -0.5, 0.5, 0.5])
    captured = Captured({"seeing": seeing, "blind": blind}, 2, 4, {"seeing": tower(FIRST, LATE)})
    memory = strategy.digest({}, captured)
    after = strategy.attend(torch.ones(3, 1), Keys(torch.tensor([2]), 2, 4), memory)
    torch.testing.assert_close(after, torch.tensor([[1 + 0.7 * 1.5], [1 + 0.7 * 0.5], [1.7]]))
