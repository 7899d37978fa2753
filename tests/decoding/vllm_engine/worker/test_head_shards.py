"""The heads of processes that share a layer, as threads that meet at each `gather`. No vLLM is needed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch
from torch import Tensor

from decoding.vllm_engine.worker.head_shards import HeadShards

RANKS, HEADS = 2, 6


class ToyGroup:
    """Gathers the tensors of all ranks."""

    def __init__(self) -> None:
        self.parts: list[Tensor | None] = [None] * RANKS
        self.barrier = Barrier(RANKS, timeout=10)

    def build_shards(self, rank: int) -> HeadShards:
        def all_gather(own: Tensor, dim: int) -> Tensor:
            assert own.is_contiguous()
            self.parts[rank] = own
            self.barrier.wait()
            whole = torch.cat([part for part in self.parts if part is not None], dim)
            self.barrier.wait()
            return whole

        return HeadShards(RANKS, rank, all_gather)


def test_ranks_see_all_heads_and_keep_their_own() -> None:
    scores, group = torch.randn(3, HEADS, 5), ToyGroup()

    def run(rank: int) -> tuple[Tensor, Tensor]:
        shards = group.build_shards(rank)
        gathered = shards.gather(shards.select_own(scores, 1), 1)
        return gathered, shards.select_own(gathered, 1)

    with ThreadPoolExecutor(RANKS) as pool:
        results = list(pool.map(run, range(RANKS)))
    for rank, (gathered, own) in enumerate(results):
        assert gathered.equal(scores)
        assert own.equal(scores[:, rank * 3 : rank * 3 + 3])


def test_a_single_process_keeps_its_tensor() -> None:
    scores = torch.randn(3, HEADS, 5)
    assert HeadShards().gather(scores, 1) is scores
    assert HeadShards().select_own(scores, 1).equal(scores)
