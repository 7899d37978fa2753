"""What is exported can be read by our scorers, which read what the official scripts read."""

import json
from pathlib import Path

from eval.amber.answers import items
from eval.export import FORMATS, Reply
from eval.inputs import ANSWER_KEYS, records

REPLIES = [Reply(1, "a.jpg", "Is there a cup?", "No, \u201cnone\u201d\u2028", "no"), Reply(2, "b.jpg", "And?", "")]


def test_answers_come_back(tmp_path: Path) -> None:
    for name in ("pope", "llava", "chair"):
        FORMATS[name](REPLIES, tmp_path / f"{name}.jsonl")
        assert [each.text(*ANSWER_KEYS) for each in records(tmp_path / f"{name}.jsonl")] == [
            reply.answer for reply in REPLIES
        ]
    FORMATS["chair"](REPLIES, tmp_path / "chair.json")
    assert json.loads((tmp_path / "chair.json").read_text())[1] == {"image_id": 2, "caption": ""}


def test_amber(tmp_path: Path) -> None:
    (tmp_path / "annotations.json").write_text(json.dumps([{"type": "relation", "truth": "no"}] * 2))
    FORMATS["amber"](REPLIES, tmp_path / "amber.json")
    assert [item.response for item in items(tmp_path / "amber.json", tmp_path / "annotations.json")] == [
        reply.answer for reply in REPLIES
    ]
