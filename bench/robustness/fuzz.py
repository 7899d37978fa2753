"""Fuzzing of a running server from /openapi.json, with valid and invalid requests: 5xx and off-schema answers fail.

python -m bench.robustness.fuzz --base-url http://127.0.0.1:8000 --examples 2000
"""

import argparse
import random
from collections import Counter
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import Case, GenerationMode, Response
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
TOKEN_LIMITS = {"max_tokens": 4, "max_completion_tokens": 4, "max_output_tokens": 4}


def fuzz_server(base_url: str, examples: int, seed_value: int = 0) -> Counter[int]:
    """Send requests to all operations and count the statuses.

    An answer that fails a check raises schemathesis's own exception.

    Args:
        base_url: URL of the server.
        examples: Number of requests.
        seed_value: Seed of the requests.

    Returns:
        Answers by status.
    """
    statuses: Counter[int] = Counter()
    schema = schemathesis.openapi.from_url(f"{base_url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    # Completion requests have by far the most fields.
    weights = [8 if operation.body else 1 for operation in operations]
    for operation, weight in zip(operations, weights, strict=True):
        for mode, share in ((GenerationMode.POSITIVE, 0.6), (GenerationMode.NEGATIVE, 0.4)):
            if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query):
                continue  # no invalid request is possible
            count = max(1, round(examples * share * weight / sum(weights)))

            @seed(seed_value)
            @settings(
                max_examples=count,
                deadline=None,
                derandomize=False,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def send_case(case: Case) -> None:
                response: Response = limit_tokens(case).call(timeout=60)
                statuses[response.status_code] += 1
                case.validate_response(response, checks=CHECKS)

            send_case()
    return statuses


def limit_tokens(case: Case) -> Case:
    """Limit the length of answers, because the checks concern the requests."""
    body: Any = case.body
    if isinstance(body, dict):
        case.body = body | {name: limit for name, limit in TOKEN_LIMITS.items() if isinstance(body.get(name), int)}
        if case.path in ("/v1/chat/completions", "/v1/completions") and random.random() < 0.9:  # nosec
            case.body.setdefault("max_tokens", 4)
    return case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000")
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    statuses = fuzz_server(options.base_url, options.examples, options.seed)
    print(f"{sum(statuses.values())} requests, no 5xx, no answer off its schema:", dict(sorted(statuses.items())))


if __name__ == "__main__":
    main()
