"""One step as it stands before the model: a row for every engine request that runs in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decoding.vllm_engine.member import Member

Notes = dict[str, dict[str, Any]]  # request id -> what the engine is told with the token of this step
FAILED = "The strategy failed on this request."


@dataclass(frozen=True, slots=True)
class Rows:
    """Whatever the model runner calls these things, here they have one name. All arrays are [rows]."""

    ids: Sequence[str]  # of the engine requests
    members: Mapping[int, Member]  # by row; rows without a member are of no concern
    starts: NDArray[np.integer]  # [rows + 1] where each row's tokens begin among the step's tokens
    computed: NDArray[np.integer]  # tokens that were in the cache before this step
    prompts: NDArray[np.integer]  # lengths of the prompts
    generated: NDArray[np.integer]  # tokens of the answer so far
    draws: NDArray[np.bool_]  # does the row's last token run, so that a new one is drawn?

    @property
    def composition(self) -> tuple[object, ...]:
        """Equal as long as the same rows stand in the same places and draw."""
        return (tuple(self.ids), self.draws.tobytes())
