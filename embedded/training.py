"""The loop around every stage: optimisers, one long cosine, checkpoints from which a stage resumes, a progress bar."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]

CHECKPOINT_SECONDS = 120.0


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def half_precision(device: torch.device) -> torch.autocast:
    """bfloat16 products where the machine has instructions for them; elsewhere they would be slower, not faster."""
    fast = device.type == "cuda" or bool(torch.cpu._is_avx512_bf16_supported())
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


class Trainer:
    """Iterates over the steps that are left and applies updates.

    for step in trainer: ...; trainer.update(loss, figures)

    Matrices inside blocks are trained with Muon, all other weights with AdamW. Schedules count steps, never seconds,
    and `random(step)` depends on the seed and the step only: an interrupted stage goes on as if nothing had happened.
    """

    def __init__(
        self,
        name: str,
        work: Path,
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
        """`horizon`: where the cosine ends, if the stage is to stop before, because the next one goes on from there."""
        self.name, self.module, self.steps, self.seed, self.warmup = name, module, steps, seed, warmup
        self.horizon = horizon or steps
        self.path = work / f"{name}.pt"
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
            groups = [{"params": listed, "lr": muon_rate * factor} for factor, listed in matrices.items()]
            self.optimizers.append(
                torch.optim.Muon(groups, lr=muon_rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
            )
        groups = [{"params": listed, "lr": adam_rate * factor} for factor, listed in others.items()]
        self.optimizers.append(torch.optim.AdamW(groups, lr=adam_rate, betas=(0.9, 0.98), weight_decay=0.02))
        self._peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self._recent: dict[str, list[float]] = {}
        self._log = work / f"{name}.jsonl"
        self._saved_at = time.monotonic()
        self._bar: Any = None
        work.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._load()

    def random(self, step: int, stream: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, step, stream])

    def __iter__(self) -> Iterator[int]:
        self.module.train()
        self._bar = tqdm(total=self.steps, initial=self.done, desc=self.name, unit="step", mininterval=10)
        while self.done < self.steps:
            torch.manual_seed(self.seed * 1_000_003 + self.done)
            yield self.done
        self._bar.close()
        self.save()
        self.module.eval()

    def update(self, loss: torch.Tensor, figures: Mapping[str, float]) -> None:
        """One step of all optimisers; `figures` are averaged over 50 steps for the bar and the log."""
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
        state = {
            "step": self.done,
            "module": self.module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        partial = self.path.with_suffix(".partial")
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
        """Linear warm-up, then half a cosine down to 3 % of the peak."""
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
