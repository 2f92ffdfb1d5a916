"""A request under way: how long it may take, when its time stands still, what is told of its failure."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import anyio
import mcp_types as types
from mcp.client.session import ClientSession
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from minicpm4.agents.mcp.config import ServerSpec
from minicpm4.agents.mcp.wire import Wire
from minicpm4.config.strict import shown
from minicpm4.errors import ToolServerError

__all__ = ["Running", "named_versions", "told_of", "why_not"]

T = TypeVar("T")
_TOLD = 200  # characters of an error that are told
TOLD_SECONDS = 2.0  # until a connection that is lost has told why
_CLOSED = "Connection closed"
_LOST = ("SSE stream ended", "SSE stream failed")
_UNREAD = ("Failed to parse JSON response: ", "Failed to parse SSE message: ")


class Running:
    """A request under way: how long it may take, what it asked, and why it was given up."""

    def __init__(
        self, spec: ServerSpec, wire: Wire, session: ClientSession, seconds: float, what: str, tool: str
    ) -> None:
        self.session, self.tool = session, tool
        self._spec, self._wire, self._seconds, self._what = spec, wire, seconds, what
        self._scope = anyio.CancelScope()
        self._why = ""
        self._open: set[anyio.CancelScope] = set()  # questions that are not answered yet
        self._left = 0.0  # seconds, when the first of these came
        self.questions = 0

    def __enter__(self) -> Running:
        self._scope.deadline = anyio.current_time() + self._seconds
        self._scope.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        questions, self._open = self._open, set()
        for question in questions:
            question.cancel()
        swallowed = bool(self._scope.__exit__(kind, error, trace))
        if self._scope.cancelled_caught:
            name, wire = self._spec.name, self._wire
            if self._why:
                wire.broke(f"it {self._why}")
                raise ToolServerError(f"{name}: {self.tool} was given up: it {self._why}")
            wire.broke(f"it did not {self._what} in {self._seconds:g} s")
            raise ToolServerError(
                f"{name} did not {self._what} in {self._seconds:g} s",
                "give more seconds as timeout in its entry"
                if self.tool
                else "see what it writes: mcp servers",
            )
        return swallowed

    def give_up(self, why: str) -> None:
        self._why = self._why or why
        self._scope.cancel()

    async def answered(self, ask: Callable[[], Awaitable[T]]) -> T | None:
        """What the user says, while this request's time stands still; None where it ends before: then the
        question is taken back."""
        with anyio.CancelScope() as question, self._paused(question):
            return await ask()
        return None

    @contextmanager
    def _paused(self, question: anyio.CancelScope) -> Iterator[None]:
        """Time stands still from the first of the open questions to the last: a server may ask several at
        once."""
        if not self._open:
            self._left = self._scope.deadline - anyio.current_time()
            self._scope.deadline = math.inf
        self._open.add(question)
        try:
            yield
        finally:
            if question in self._open:  # the request has not ended
                self._open.remove(question)
                if not self._open:
                    self._scope.deadline = anyio.current_time() + self._left

    async def wait(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        """What the server answers. Raises ToolServerError."""
        name = self._spec.name
        try:
            return await ask()
        except MCPError as error:
            if is_unread(error) and not self._wire.why:
                raise self._misspoken() from error
            if not self._wire.why and not is_lost(error):
                told = f"{error.error.code}: {error.error.message:.2000}"
                raise ToolServerError(f"{name} answered with error {told}") from error
            raise await self._ended("" if error.error.message == _CLOSED else error.error.message) from error
        except (anyio.ClosedResourceError, anyio.BrokenResourceError) as error:
            raise await self._ended() from error
        except (ValidationError, ValueError) as error:
            raise self._misspoken() from error

    def _misspoken(self) -> ToolServerError:
        return ToolServerError(f"{self._spec.name} did not {self._what} in the protocol's form")

    async def _ended(self, why: str = "") -> ToolServerError:
        """Of a connection that is lost; ``why`` is told a moment later, where the request cannot know."""
        if why:
            self._wire.broke(why)
        with anyio.move_on_after(TOLD_SECONDS):
            while not self._wire.why:
                await anyio.sleep(0.01)
        self._wire.broke("it ended")
        return ToolServerError(why_not(self._spec, [self._wire.why], self._wire))


def is_unread(error: MCPError) -> bool:
    """Whether the SDK made it itself of an answer that is no message, whose whole text it puts in there."""
    return error.error.code == types.PARSE_ERROR and error.error.message.startswith(_UNREAD)


def is_lost(error: MCPError) -> bool:
    """Whether the SDK made it itself since no answer can come any more. Servers use its code for errors of
    all kinds."""
    message = error.error.message
    return error.error.code == types.CONNECTION_CLOSED and (message == _CLOSED or message.startswith(_LOST))


def named_versions(error: MCPError) -> list[str] | None:
    """Of the refusal of a version: the new versions that the server speaks too; None: of an older one, or
    another error."""
    if error.error.code != types.UNSUPPORTED_PROTOCOL_VERSION:
        return None
    data = error.error.data
    speaks = data.get("supported") if isinstance(data, dict) else None
    if not isinstance(speaks, list):
        return None
    mutual = [version for version in MODERN_PROTOCOL_VERSIONS if version in speaks]
    modern = all(isinstance(one, str) and one >= MODERN_PROTOCOL_VERSIONS[0] for one in speaks)
    return mutual if mutual or (speaks and modern) else None


def told_of(error: BaseException) -> str:
    """Of a group of errors, the first of those that say something."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, ToolServerError):
        return str(error)
    if isinstance(error, MCPError):
        if is_unread(error):
            return "its answer is no message of the protocol"
        return f"error {error.error.code}: {shown(error.error.message, _TOLD)}"
    kind, text = type(error).__name__, f"{error}"
    return f"{kind}: {text if len(text) <= _TOLD else text[:_TOLD] + '…'}" if text else kind


def why_not(spec: ServerSpec, said: list[str], wire: Wire) -> str:
    reasons = "; then: ".join(dict.fromkeys(filter(None, said))) or "it ended"
    noise = "; it writes lines that are no JSON-RPC on standard output" if wire.was_noisy else ""
    last = [line for line in wire.complaints.splitlines() if line.strip()][-3:]
    complaint = f"; its last words: {' | '.join(last)[:1000]}" if last else ""
    verb = "cannot be used" if spec.command is not None else "cannot be reached"
    return f"{spec.name} {verb}: {reasons}{noise}{complaint}"
