"""Bodies that Schemathesis makes from /openapi.json: no 5xx, answers as they are described, and the
description says enough that many of the bodies which it calls valid are answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.clients.conftest import needed
from tests.serve.processes import Running

schemathesis = needed("schemathesis")
checks = needed("schemathesis.openapi.checks")

SHARE = 0.3  # of valid bodies that are answered, at least
EXAMPLES = 80
MODEL_EXAMPLES = 15
GENERATE = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
OTHERS = ("/v1/messages/count_tokens", "/tokenize", "/detokenize")
CONFORM = [
    needed("schemathesis.checks").not_a_server_error,
    needed("schemathesis.specs.openapi.checks").status_code_conformance,
    needed("schemathesis.specs.openapi.checks").content_type_conformance,
    needed("schemathesis.specs.openapi.checks").response_schema_conformance,
]


def asked(
    server: Running, path: str, mode: Any, count: int, change: Callable[[Any], None] = lambda body: None
) -> Counter[int]:
    """How many of so many bodies got which status; every answer is as it is described."""
    schema = schemathesis.openapi.from_url(f"{server.address}/openapi.json")
    statuses: Counter[int] = Counter()

    @seed(1)
    @settings(
        max_examples=count,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(schema[path]["POST"].as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        change(case.body)
        response = case.call(base_url=server.address, timeout=60)
        case.validate_response(response, checks=CONFORM)
        statuses[response.status_code] += 1

    ask()
    return statuses


def tell(capsys: Any, path: str, statuses: Counter[int]) -> float:
    """The share that was answered."""
    share = statuses[200] / statuses.total()
    with capsys.disabled():
        print(f"\n{path}: {share:.0%} of {statuses.total()} valid bodies answered {dict(statuses)}")
    return share


@pytest.mark.parametrize("path", [*GENERATE, *OTHERS])
def test_valid_bodies(scripted_server: Running, path: str, capsys: Any) -> None:
    statuses = asked(scripted_server, path, schemathesis.GenerationMode.POSITIVE, EXAMPLES)
    assert statuses.total() >= EXAMPLES // 2 and tell(capsys, path, statuses) >= SHARE


@pytest.mark.parametrize("path", [*GENERATE, *OTHERS])
def test_bodies_that_are_not_valid(scripted_server: Running, path: str) -> None:
    statuses = asked(scripted_server, path, schemathesis.GenerationMode.NEGATIVE, EXAMPLES)
    assert statuses.keys() <= {200, 400, 404, 415, 429}
    # 404: the name of a model is drawn as well, and the draws differ with the order of sets: 64 to 70 of 80.
    assert statuses[400] > 0.7 * statuses.total() and statuses[200] < 0.15 * statuses.total()


@pytest.mark.parametrize("path", [*GENERATE, "/v1/embeddings"])
def test_the_embedded_model(small_server: Running, path: str, capsys: Any) -> None:
    """Answers of two tokens: it is asked whether it answers, not for long ones."""

    def brief(body: Any) -> None:
        if path in GENERATE:
            for name in ("n", "min_tokens", "ignore_eos", "max_completion_tokens"):
                body.pop(name, None)
            body["max_output_tokens" if path == "/v1/responses" else "max_tokens"] = 2

    statuses = asked(small_server, path, schemathesis.GenerationMode.POSITIVE, MODEL_EXAMPLES, brief)
    assert tell(capsys, path, statuses) >= SHARE
    assert small_server.metric("minicpm4_pages_held") == 0
