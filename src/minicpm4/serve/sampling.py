"""How tokens are drawn, as requests say it: the fields that every API of this server shares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from minicpm4.engine.params import (
    MAX_BIAS,
    MAX_CHOICES,
    MAX_SAMPLES,
    RANGES,
    SamplingParams,
)
from minicpm4.errors import ConfigError
from minicpm4.serve.bodies import WHOLE, Shape
from minicpm4.serve.errors import field_of, invalid
from minicpm4.text.stream import MAX_STOP_CHARS, MAX_STOPS

MAX_INTEGER = (1 << 31) - 1
TOP_LOGPROBS = 20


def _within(name: str) -> Any:
    allowed = RANGES[name]
    bounds: dict[str, Any] = {"gt" if allowed.above else "ge": allowed.least, "le": allowed.most}
    return Field(**bounds)


Temperature = Annotated[float, _within("temperature")]
TopP = Annotated[float, _within("top_p")]
Count = Annotated[int, Field(ge=1, le=MAX_INTEGER), WHOLE]
CountOrZero = Annotated[int, Field(ge=0, le=MAX_INTEGER), WHOLE]
TopK = Annotated[int, Field(ge=-1, le=MAX_INTEGER), WHOLE]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 64), WHOLE]
Text = Annotated[str, Field(min_length=1)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
TokenId = Annotated[int, Field(ge=0, le=MAX_INTEGER), WHOLE]


class Sampling(Shape):
    """Bounds are those of SamplingParams, so that the description of the API shows them."""

    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: Annotated[float, _within("min_p")] | None = None
    repetition_penalty: Annotated[float, _within("repetition_penalty")] | None = None
    presence_penalty: Annotated[float, _within("presence_penalty")] | None = None
    frequency_penalty: Annotated[float, _within("frequency_penalty")] | None = None
    seed: Seed | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=1024)] | None = None
    ignore_eos: bool | None = None
    min_tokens: CountOrZero | None = None
    skip_special_tokens: bool | None = None
    n: Annotated[int, Field(ge=1, le=MAX_SAMPLES), WHOLE] | None = None
    json_schema: dict[str, Any] | bool | None = None
    regex: Text | None = None
    grammar: Text | None = None
    choice: Annotated[list[Text], Field(min_length=1, max_length=MAX_CHOICES)] | None = None
    attention: Literal["auto", "dense", "sparse"] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]] | None = None

    def at_once(self, share: int) -> int:
        """See Shape."""
        return self.n or 1

    def params(self, **more: Any) -> SamplingParams:
        """These with ``more``; what is None is left to the model. Raises ApiError."""
        given = {name: getattr(self, name) for name in Sampling.model_fields if name != "logit_bias"}
        given = {name: value for name, value in given.items() if value is not None} | more
        if self.logit_bias:
            given["logit_bias"] = _bias(self.logit_bias)
        try:
            return SamplingParams(**given)
        except ConfigError as error:
            raise invalid(field_of(str(error)), str(error), "invalid_value") from error


def _bias(given: Mapping[str, float]) -> dict[int, float]:
    bias = {}
    for key, value in given.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise invalid(
                "logit_bias", f"logit_bias has the key {key[:80]!r}, not a token id", "invalid_value"
            )
        bias[int(key)] = -math.inf if value <= -100 else value
    return bias
