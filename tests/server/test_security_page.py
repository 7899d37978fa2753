"""The limits in SECURITY.md against the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from decoding import registry
from decoding.hf_engine import engine
from decoding.hf_engine.settings import DEFAULT_CONTEXTS
from decoding.matcher import model
from decoding.multimodal import vector_files
from decoding.text import grammar, prompt_logprobs
from decoding.text.grammar_check import LIMITS
from server import __main__ as main
from server import h11_bounds, service, timed_protocol
from server.batch import pagination, runner, store, uploads, validation
from server.media import image_bounds, image_fetcher, image_structure, images
from server.middleware import request_body, response_body
from server.routes import batches
from server.schemas import base, completion_request, json_bounds, normalized_request, structural_tags, tool_calls
from server.schemas.chat_request import ChatCompletionRequest
from server.serving import request_handler, schema_compiler
from server.settings import Settings

PAGE = Path(__file__).parents[2] / "SECURITY.md"
MAX_CHOICES = next(
    bound.le for bound in ChatCompletionRequest.model_fields["n"].metadata if getattr(bound, "le", None) is not None
)
FIXED = {
    "Levels of JSON, in a body or in a line of a batch": json_bounds.MAX_DEPTH,
    "Members of a JSON object": json_bounds.MAX_MEMBERS,
    "Bytes of a JSON key": json_bounds.MAX_KEY_BYTES,
    "Elements of a JSON list": json_bounds.MAX_ELEMENTS,
    "Values of a JSON document": json_bounds.MAX_VALUES,
    "Size of an integer of a JSON document": base.MAX_INTEGER.bit_length(),
    "Text of a JSON document, without long data URLs of images": json_bounds.MAX_TEXT_BYTES / 1_000_000,
    "Messages of a request": base.MAX_MESSAGES,
    "Characters and classes of a regular expression, with its repetitions": grammar.MAX_ATOMS,
    "Texts of `structured_outputs.choice`": normalized_request.MAX_CHOICES,
    "Tools of a request": tool_calls.MAX_TOOLS,
    "Entries of `logit_bias`": normalized_request.MAX_BIASED_TOKENS,
    "Entries of `stop_token_ids`": normalized_request.MAX_STOP_TOKENS,
    "Tags of a structural tag, and its triggers": structural_tags.MAX_TAGS,
    "Log-probabilities of a prompt, with those of other tokens": prompt_logprobs.MAX_ENTRIES,
    "Content parts of a message": base.MAX_PARTS,
    "Choices of a request (`n`), for each of its prompts": MAX_CHOICES,
    "Prompts of a request for completions": completion_request.MAX_PROMPTS,
    "Chunks of a body, of fewer than 16 bytes on average": h11_bounds.MAX_TINY_CHUNKS,
    "Headers of a request, or trailers of its body": h11_bounds.MAX_HEAD_BYTES / 1024,
    "Lines of the headers of a request": h11_bounds.MAX_HEADERS,
    "Time for the rest of a refused body": request_body.DRAIN_TIMEOUT,
    "Time for the rest of a body after the response": timed_protocol.LINGER_SECONDS,
    "Idle time of a connection between requests": main.KEEP_ALIVE,
    "Pixels of all images of a request": image_bounds.MAX_PIXELS / 1_000_000,
    "Pixels of a WebP or CMYK image": image_bounds.MAX_COSTLY_PIXELS / 1_000_000,
    "Longest side of an image": image_bounds.MAX_SIDE,
    "Ratio of the sides of an image": image_bounds.MAX_ASPECT_RATIO,
    "Scans of a JPEG": image_structure.MAX_SCANS,
    "Segments of a JPEG": image_structure.MAX_SEGMENTS,
    "Chunks of metadata of a PNG": image_structure.MAX_METADATA_CHUNKS,
    "KV cache of the transformers engine, without `--cache-gb`": DEFAULT_CONTEXTS,
    "Time for an image URL": image_fetcher.FETCH_TIMEOUT,
    "Size of the image of a URL": image_fetcher.MAX_BYTES / 1_000_000,
    "Fetched images that are not decoded, each counted as 10 MB": images.MAX_FETCHED_BYTES / 1_000_000,
    "Redirects of an image URL": image_fetcher.MAX_REDIRECTS,
    "Characters of the parameters of a strategy": registry.MAX_PARAMETERS_SIZE,
    "Characters of a JSON schema": grammar.MAX_CHARACTERS,
    "Time of a core to check a JSON schema": schema_compiler.CHECK_SECONDS,
    "Memory to check a JSON schema": schema_compiler.CHECK_MEGABYTES,
    "JSON schemas that are checked or compiled at a time": schema_compiler.TURNS,
    "Wait of a JSON schema for its turn": schema_compiler.TURN_TIMEOUT,
    "States of the automaton of a JSON schema (`hf`)": LIMITS.max_lexer_states,
    "Time for a client to read one event": request_handler.SEND_TIMEOUT,
    "Time for a client to take 64 kB of a response, or its rest": timed_protocol.WRITE_TIMEOUT,
    "Time to read a full response of more than 64 kB, in addition to a second for each 100 kB": (
        response_body.READ_TIMEOUT
    ),
    "Share of rows for batches": service.BATCH_SHARE,
    "Share of the KV cache for the prompts of a request with branches": engine.MAX_PROMPT_SHARE,
    "Memory of decoders beside the decoded images": images.MAX_DECODING_BYTES / 1_000_000,
    "Fields of an upload, beside its file": uploads.MAX_FIELDS,
    "Bytes of a field of an upload": uploads.MAX_FIELD_BYTES,
    "Files of a key": store.MAX_FILES,
    "Batches of a key that are remembered": store.MAX_BATCHES,
    "Files of batches that are validated at a time": runner.VALIDATION_THREADS,
    "Threads that read lines and results of batches": runner.READING_THREADS,
    "Threads that parse uploads": service.FORM_THREADS,
    "Page of files or batches, beyond its first item": pagination.MAX_PAGE_BYTES / 1_000_000,
    "Pages of files and batches in memory": service.LIST_PAGES,
    "Requests of a key that wait for a page": pagination.MAX_WAITING_PAGES,
    "Lines of a batch, blank ones included": validation.MAX_LINES,
    "Time of a batch, on the wall clock": batches.COMPLETION_WINDOW / 3600,
    "Results in memory that the storage does not take": runner.MAX_UNSTORED_BYTES / 1_000_000,
    "Relevance maps in the matcher's cache": model.CACHE_SIZE,
    "File of steering vectors": vector_files.MAX_FILE_BYTES >> 20,
    "Steering vectors of all files that requests have named": vector_files.MAX_BYTES >> 30,
}
ROWS = {"Rows in one batch of the transformers engine": "hf", "Rows in one batch of the vLLM engine": "vllm"}


def read_limits() -> list[list[str]]:
    section = PAGE.read_text().partition("\n## Limits\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return rows[2:]


def read_number(text: str) -> float | None:
    match = re.match(r"[\d,.]+", text)
    return float(match[0].replace(",", "")) if match else None


def test_limits_are_those_of_the_code() -> None:
    fixed, by_setting = {}, set()
    for name, default, setting in read_limits():
        if setting == "fixed":
            fixed[name] = read_number(default)
            continue
        field = setting.strip("`-").replace("-", "_")
        by_setting.add(field)
        value = Settings.model_fields[field].default
        if name in ROWS:
            value = Settings(engine=ROWS[name]).resolved_max_rows
        assert read_number(default) == value, name
    assert fixed == FIXED
    limits = {name for name in Settings.model_fields if name.startswith("max_") or name.endswith(("_mb", "_timeout"))}
    assert limits <= by_setting


def test_body_gets_a_second_for_each_100_kb() -> None:
    assert request_body.MIN_BYTES_PER_SECOND == response_body.MIN_BYTES_PER_SECOND == 100_000


def test_large_response_has_more_than_64_kb() -> None:
    assert response_body.PART_BYTES == 65_536


def test_engines_with_rows_are_complete() -> None:
    assert set(ROWS.values()) == set(get_args(Settings.model_fields["engine"].annotation))
