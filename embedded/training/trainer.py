"""The training loop of every stage: optimizers, one cosine schedule, resumable checkpoints and a progress bar."""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]

CHECKPOINT_SECONDS = 120.0


def select_device() -> torch.device:
    """Return the first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device) -> torch.autocast:
    """Enable bfloat16 where the device has instructions for it; elsewhere it would be slower."""
    fast = device.type == "cuda" or bool(torch.cpu._is_avx512_bf16_supported())
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


class Trainer:
    """Iterates over the remaining steps and applies updates.

    for step in trainer: ...; trainer.update(loss, figures)

    Matrices inside blocks are trained with Muon, all other weights with AdamW. Schedules count steps, never seconds,
    and `rng(step)` depends only on the seed and the step. So an interrupted stage resumes exactly.
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
    ) -> None:
        """Create the optimizers and load the checkpoint, if there is one.

        Args:
            name: Name of the stage, of its checkpoint and of its log.
            work_dir: Folder of checkpoints and logs.
            module: Module to train.
            steps: Steps of the stage.
            seed: Seed of `rng` and of torch.
            muon_rate: Peak learning rate of Muon.
            adam_rate: Peak learning rate of AdamW.
            slow: Factors on the learning rate, by prefix of the parameter's name.
            warmup: Steps of linear warm-up.
            horizon: Step at which the cosine ends; later than `steps` if the next stage continues from there.
        """
        self.name, self.module, self.steps, self.seed, self.warmup = name, module, steps, seed, warmup
        self.horizon = horizon or steps
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
            objects_by_category = [{"params": listed, "lr": muon_rate * factor} for factor, listed in matrices.items()]
            self.optimizers.append(
                torch.optim.Muon(objects_by_category, lr=muon_rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
            )
        objects_by_category = [{"params": listed, "lr": adam_rate * factor} for factor, listed in others.items()]
        self.optimizers.append(
            torch.optim.AdamW(objects_by_category, lr=adam_rate, betas=(0.9, 0.98), weight_decay=0.02)
        )
        self._peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self._recent: dict[str, list[float]] = {}
        self._log = work_dir / f"{name}.jsonl"
        self._saved_at = time.monotonic()
        self._bar: Any = None
        work_dir.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._load()

    def create_rng(self, step: int, stream: int = 0) -> np.random.Generator:
        """Return the generator of a step."""
        return np.random.default_rng([self.seed, step, stream])

    def __iter__(self) -> Iterator[int]:
        """Yield the remaining steps and save a checkpoint after the last.

        Yields:
            Number of the step.
        """
        self.module.train()
        self._bar = tqdm(total=self.steps, initial=self.done, desc=self.name, unit="step", mininterval=10)
        while self.done < self.steps:
            torch.manual_seed(self.seed * 1_000_003 + self.done)
            yield self.done
        self._bar.close()
        self.save()
        self.module.eval()

    def update(self, loss: torch.Tensor, figures: Mapping[str, float]) -> None:
        """Apply one step of all optimizers.

        Args:
            loss: Scalar.
            figures: Values for the progress bar and the log, averaged over 50 steps.
        """
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        factor = self._schedule()
        for optimizer, peaks in zip(self.optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            optimizer.step()
        self.done += 1
        self._report(figures)
        if time.monotonic() - self._saved_at > CHECKPOINT_SECONDS:
            self.save()

    def save(self) -> None:
        """Write a checkpoint."""
        state = {
            "step": self.done,
            "module": self.module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        # Two processes may complete the same stage: details and the matcher both begin with vision.
        partial = self.path.with_suffix(f".{os.getpid()}.partial")
        torch.save(state, partial)
        partial.replace(self.path)
        self._saved_at = time.monotonic()

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
        if self.done % 50 == 0:
            means = {key: round(float(np.mean(values)), 4) for key, values in self._recent.items()}
            self._recent.clear()
            self._bar.set_postfix(means)
            with self._log.open("a") as log:
                log.write(json.dumps({"step": self.done, "time": round(time.time()), **means}) + "\n")
