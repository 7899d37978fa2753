"""What questions and marks depend on, beside the data."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    suffix: str | None = None  # appended to yes-or-no questions; None: the task's own
    prompt: str | None = None  # of captions; None: the task's own
    parser: str = "official"  # of yes and no
    variant: str = "original"  # of CHAIR
    synonyms: Path | None = None
