from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from eval.benchmarks.chair.object_extraction import Variant
from eval.benchmarks.chair.score import CaptionScore, score_captions
from tests.eval.cli_driver import write_jsonl
from tests.eval.coco_data import CAPTIONS


@pytest.fixture
def score_variant(tmp_path: Path, annotations: Path, synonyms: Path) -> Callable[[Variant], list[CaptionScore]]:
    captions = write_jsonl(tmp_path / "captions.jsonl", CAPTIONS)
    return lambda variant: score_captions(captions, annotations, [variant], synonyms)[variant]
