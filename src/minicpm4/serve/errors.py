"""What a client is told when something is wrong: one kind of error, which each API puts in its own form."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from minicpm4.errors import (
    ConfigError,
    EngineError,
    MemoryPlanError,
    Minicpm4Error,
    RequestError,
    TextError,
    UnsupportedError,
)

logger = logging.getLogger("minicpm4.serve")

# A message of ours begins with the field that is wrong: "messages[0].content is …", "top_p = 7 is …".
_FIELD = re.compile(r"(?:json_schema|regex|grammar|choice|stop|tools)\b|[a-z]\w*(?= = | is missing| names )")
_PATH = re.compile(r"(?:messages|tools)\[\d+\](?:\.\w+|\[\d+\])*")


class ApiError(Exception):
    """An answer that is an error. ``kind`` and ``code`` are OpenAI's words, from which other APIs find
    theirs; ``param`` is the path of the field that is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.param, self.code, self.headers = param, code, dict(headers or {})


def invalid(param: str | None, message: str, code: str | None = None) -> ApiError:
    """A field that is wrong: 400."""
    return ApiError(400, message, param=param, code=code)


def not_built(param: str, message: str) -> ApiError:
    """A field that is known, and that this server cannot do: refused by name rather than ignored."""
    return ApiError(400, message, param=param, code="unsupported_parameter")


def busy(status: int, message: str, seconds: float, code: str) -> ApiError:
    """Not now: ask again in so many seconds."""
    wait = {"Retry-After": str(max(1, round(seconds)))}
    kind = "rate_limit_error" if status == 429 else "server_error"
    return ApiError(status, message, kind=kind, code=code, headers=wait)


def api_error(error: BaseException) -> ApiError:
    """What a client is told of an exception. What is no error of ours stays in the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineError):
        return busy(503, str(error), 1, "engine_error")
    if isinstance(error, UnsupportedError):
        return ApiError(501, str(error), kind="server_error", code="unsupported")
    if isinstance(error, RequestError | TextError | ConfigError | MemoryPlanError):
        return invalid(field_of(str(error)), str(error))
    if isinstance(error, Minicpm4Error):
        logger.error("%s", error)
        return ApiError(500, str(error), kind="server_error", code="server_error")
    logger.error("an answer failed", exc_info=error)
    return ApiError(
        500, "an error of this server: its log has more", kind="server_error", code="server_error"
    )


def field_of(message: str) -> str | None:
    """The field that a message of ours names first, if any."""
    found = _PATH.match(message) or _FIELD.match(message)
    return None if found is None else found[0].strip()


def openai_error(error: ApiError) -> dict[str, Any]:
    """OpenAI's form, which endpoints without an API of their own have too."""
    told = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    return {"error": told}
