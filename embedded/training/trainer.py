"""The training loop of every stage: optimizers, one cosine schedule, resumable checkpoints and a progress bar."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]

from embedded.training.muon import Float32Muon, has_fast_bfloat16

CHECKPOINT_SECONDS = 120.0
SHARDS = 2
"""Parts of a training batch. Each has its own random numbers, so results do not depend on the number of processes."""

LossFunction = Callable[[np.random.Generator], tuple[torch.Tensor, Mapping[str, float]]]
"""Computes the loss of one shard, a scalar [], and figures for the log, from the generator of the shard."""


def select_device() -> torch.device:
    """Return the first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device) -> torch.autocast:
    """Enable bfloat16 where the device has instructions for it; elsewhere it would be slower."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bfloat16(device))


class Trainer:
    """Iterates over the remaining steps and applies updates.

    for step in trainer: trainer.update(compute_loss)

    Matrices inside blocks are trained with Muon, all other weights with AdamW. Schedules count steps, never seconds,
    and the random numbers of a shard depend only on the seed, the step and the shard. So an interrupted stage resumes
    exactly. If `torch.distributed` is initialized, its processes share the shards of each step, average their gradients
    and apply the same update.
    """

    def __init__(
        self,
        name: str,
        work_dir: Path,
        module: nn.Module,
        steps: int,
        *,
        seed: int,
        muon_rate: float = 2e-3,
        adam_rate: float = 1.5e-3,
        slow: Mapping[str, float] | None = None,
        warmup: int = 100,
        horizon: int | None = None,
        shards: int = 1,
    ) -> None:
        """Create the optimizers and load the checkpoint, if there is one.

        Args:
            name: Name of the stage, of its checkpoint and of its log.
            work_dir: Folder of checkpoints and logs.
            module: Module to train.
            steps: Steps of the stage.
            seed: Seed of all random numbers.
            muon_rate: Peak learning rate of Muon.
            adam_rate: Peak learning rate of AdamW.
            slow: Factors on the learning rate, by prefix of the parameter's name.
            warmup: Steps of linear warm-up.
            horizon: Step at which the cosine ends; later than `steps` if the next stage continues from there.
            shards: Parts of the batch of each step; at least the number of processes.
        """
        self.name, self.module, self.steps, self.seed, self.warmup = name, module, steps, seed, warmup
        self.horizon, self.shards = horizon or steps, shards
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.path = work_dir / f"{name}.pt"
        self.done = 0
        matrices: dict[float, list[nn.Parameter]] = {}
        others: dict[float, list[nn.Parameter]] = {}
        for full_name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            factor = next((value for start, value in (slow or {}).items() if full_name.startswith(start)), 1.0)
            in_block = parameter.dim() == 2 and "embed" not in full_name and ".layer" in full_name
            (matrices if in_block else others).setdefault(factor, []).append(parameter)
        self.optimizers: list[torch.optim.Optimizer] = []
        if matrices:
            parameter_groups = [{"params": listed, "lr": muon_rate * factor} for factor, listed in matrices.items()]
            muon = torch.optim.Muon if has_fast_bfloat16(select_device()) else Float32Muon
            self.optimizers.append(
                muon(parameter_groups, lr=muon_rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
            )
        parameter_groups = [{"params": listed, "lr": adam_rate * factor} for factor, listed in others.items()]
        self.optimizers.append(torch.optim.AdamW(parameter_groups, lr=adam_rate, betas=(0.9, 0.98), weight_decay=0.02))
        self._peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self._recent: dict[str, list[float]] = {}
        self._log = work_dir / f"{name}.jsonl"
        self._saved_at = time.monotonic()
        self._bar: Any = None
        work_dir.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._load()

    def __iter__(self) -> Iterator[int]:
        """Yield the remaining steps and save a checkpoint after the last.

        Yields:
            Number of the step.
        """
        self.module.train()
        self._bar = tqdm(
            total=self.steps, initial=self.done, desc=self.name, unit="step", mininterval=10, disable=self.rank > 0
        )
        while self.done < self.steps:
            yield self.done
        self._bar.close()
        self.save()
        self.module.eval()

    def update(self, compute_loss: LossFunction, figures: Mapping[str, float] | None = None) -> None:
        """Apply one step of all optimizers.

        Args:
            compute_loss: Computes the loss of one shard.
            figures: Further values for the progress bar and the log, which has means over 50 steps.
        """
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        found = dict(figures or {})
        for shard in range(self.rank, self.shards, self.world):
            torch.manual_seed((self.seed * 1_000_003 + self.done) * self.shards + shard)
            loss, loss_figures = compute_loss(np.random.default_rng([self.seed, self.done, shard]))
            (loss / self.shards).backward()  # type: ignore[no-untyped-call]
            found |= loss_figures
        if self.world > 1:
            self._sum_gradients()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        factor = self._schedule()
        for optimizer, peaks in zip(self.optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            optimizer.step()
        self.done += 1
        self._report(found)
        if time.monotonic() - self._saved_at > CHECKPOINT_SECONDS:
            self.save()

    def save(self) -> None:
        """Write a checkpoint, in the first process."""
        if self.rank:
            return
        state = {
            "step": self.done,
            "module": self.module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        # A process that is killed while it writes leaves the earlier checkpoint intact.
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)
        self._saved_at = time.monotonic()

    def _sum_gradients(self) -> None:
        """Sum the gradients of all processes, in one message. Weights that no process has used stay without one."""
        parameters = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        is_used = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
        message = torch.cat([*(gradient.flatten() for gradient in gradients), is_used])
        dist.all_reduce(message)
        *sums, is_used = torch.split(message, [*(parameter.numel() for parameter in parameters), len(parameters)])
        for parameter, gradient, used in zip(parameters, sums, is_used.tolist(), strict=True):
            parameter.grad = gradient.view_as(parameter) if used else None

    def _load(self) -> None:
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        self.module.load_state_dict(state["module"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.done = state["step"]

    def _schedule(self) -> float:
        """Return the factor on the learning rate: linear warm-up, then half a cosine down to 3 % of the peak."""
        return min(1.0, (self.done + 1) / self.warmup) * (
            0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(1.0, self.done / self.horizon)))
        )

    def _report(self, figures: Mapping[str, float]) -> None:
        for key, value in figures.items():
            self._recent.setdefault(key, []).append(value)
        self._bar.update(1)
        if self.done % 50 == 0 and not self.rank:
            means = {key: round(float(np.mean(values)), 4) for key, values in self._recent.items()}
            self._recent.clear()
            self._bar.set_postfix(means)
            with self._log.open("a") as log:
                log.write(json.dumps({"step": self.done, "time": round(time.time()), **means}) + "\n")
