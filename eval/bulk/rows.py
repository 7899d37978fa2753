"""The rows of the output, and the files that hold them: parquet or JSON lines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from eval.bulk.items import BulkItem, JobSettings
from eval.core.answer_store import ReceivedReceipt, StoredAnswer
from eval.core.parquet import import_parquet

RowFormat = Literal["parquet", "jsonl"]
READ_ROWS = 500  # in memory at a time while a part is written or read


class RowClaim(BaseModel):
    """A claim of the receipt."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    text: str = Field(default="", description="The phrase, as the model wrote it.")
    start: int | None = Field(default=None, description="Offset of its first character. null if it was struck out.")
    end: int | None = Field(default=None, description="Offset after its last character, likewise.")
    question: str = Field(default="", description="The question that the server sent to the model.")
    probability: float = Field(description="P(yes) / (P(yes) + P(no)) of the question.")
    action: str | None = Field(default=None, description="Action of the strategy verify on the phrase.")


class BulkRow(BaseModel):
    """One row of the output: the answer to a picture and a prompt, or the error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str = Field(description="Unique. The hash of id, picture and prompt.")
    id: str = Field(description="The id of the record, or the place of the picture in the input.")
    source: str = Field(description="Place of the picture: file, or file::line, file::row, file::sample.")
    prompt: str = Field(description="The prompt.")
    picture: str | None = Field(description="SHA-256 of the picture file.")
    model: str = Field(description="Name of the model.")
    strategy: str = Field(description="The strategy with its parameters.")
    seed: int | None = Field(default=None, description="Seed of the request. null under greedy decoding.")
    answer: str | None = Field(default=None, description="The generated text. null if there is an error.")
    claims: list[RowClaim] | None = Field(default=None, description="Claims, if the strategy or --check made some.")
    finish_reason: str | None = Field(default=None, description="stop or length.")
    tokens: int | None = Field(default=None, description="Generated tokens of the answer.")
    steps: int | None = Field(default=None, description="Sampled tokens of the answer.")
    forward_passes: int | None = Field(
        default=None, description="Rows that ran through the model, those of discarded drafts and of checks included."
    )
    changed_steps: int | None = Field(default=None, description="Steps whose most likely token was changed.")
    seconds: FiniteFloat | None = Field(default=None, description="Wall-clock time of the request.")
    error: str | None = Field(default=None, description="The reason why there is no answer.")

    @property
    def struck(self) -> int:
        """The number of claims that the answer does not have, because they were struck out."""
        return sum(claim.start is None for claim in self.claims or ())


def build_error_row(item: BulkItem, settings: JobSettings, error: str) -> BulkRow:
    """Build the row of an item without an answer."""
    return BulkRow(**_describe_item(item, settings), error=error)


def build_row(item: BulkItem, settings: JobSettings, answer: StoredAnswer) -> BulkRow:
    """Build the row of an answer."""
    receipt = ReceivedReceipt.model_validate(answer.receipt or {})
    extra = answer.receipt or {}
    claims = None if receipt.claims is None else [RowClaim.model_validate(each.model_dump()) for each in receipt.claims]
    changed = extra.get("changed_steps")
    return BulkRow(
        **_describe_item(item, settings),
        seed=answer.seed,
        answer=answer.text,
        claims=claims,
        finish_reason=answer.finish,
        tokens=answer.tokens,
        steps=int(receipt.steps) if answer.receipt else None,
        forward_passes=int(receipt.forward_passes) if answer.receipt else None,
        changed_steps=changed if isinstance(changed, int) else None,
        seconds=answer.seconds,
    )


def _describe_item(item: BulkItem, settings: JobSettings) -> dict[str, Any]:
    return {
        "key": item.key,
        "id": item.id,
        "source": item.source,
        "prompt": item.prompt,
        "picture": item.image_hash,
        "model": settings.model,
        "strategy": settings.spec.label,
    }


def write_part(slices: Iterable[Sequence[BulkRow]], file: Path, row_format: RowFormat) -> int:
    """Write rows to a file. The file is complete, or does not exist.

    Args:
        slices: The rows, in slices of which one is in memory at a time. Each is a row group of a parquet file.
        file: The file, which is replaced if it exists.
        row_format: Its format.

    Returns:
        The number of rows.
    """
    temporary = file.with_name(f".{file.name}.incomplete")
    writers: dict[RowFormat, Callable[[Iterable[Sequence[BulkRow]], Path], int]] = {
        "parquet": _write_parquet,
        "jsonl": _write_lines,
    }
    try:
        count = writers[row_format](slices, temporary)
        _sync(temporary)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(file.parent)
    return count


def _write_lines(slices: Iterable[Sequence[BulkRow]], file: Path) -> int:
    count = 0
    with file.open("wb") as output:
        for row in chain.from_iterable(slices):
            output.write(row.model_dump_json().encode() + b"\n")
            count += 1
    return count


def _write_parquet(slices: Iterable[Sequence[BulkRow]], file: Path) -> int:
    parquet = import_parquet()
    import pyarrow

    count = 0
    with parquet.ParquetWriter(file, build_schema(), compression="zstd") as writer:
        for rows in slices:
            writer.write_table(pyarrow.Table.from_pylist([row.model_dump() for row in rows], schema=build_schema()))
            count += len(rows)
    return count


def build_schema() -> Any:
    """Build the arrow schema of the rows. Parts have the same types even if a column has only nulls."""
    import pyarrow

    text, count, number = pyarrow.string(), pyarrow.int64(), pyarrow.float64()
    types = {"start": count, "end": count, "probability": number, "seconds": number}
    types |= dict.fromkeys(("seed", "tokens", "steps", "forward_passes", "changed_steps"), count)
    claim = pyarrow.struct([(name, types.get(name, text)) for name in RowClaim.model_fields])
    types["claims"] = pyarrow.list_(claim)
    return pyarrow.schema([(name, types.get(name, text)) for name in BulkRow.model_fields])


def iterate_part(file: Path) -> Iterator[BulkRow]:
    """Iterate over the rows of a file."""
    if file.suffix == ".parquet":
        with import_parquet().ParquetFile(file) as part:
            for batch in part.iter_batches(READ_ROWS):
                yield from map(BulkRow.model_validate, batch.to_pylist())
        return
    with file.open("rb") as lines:
        yield from map(BulkRow.model_validate_json, lines)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
