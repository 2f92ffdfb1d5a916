"""The way of a request: read, checked, let in, answered; errors in the form of the API that was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from minicpm4.serve.bodies import ClientGoneError, Receive, Shape, read_body, read_table, validated
from minicpm4.serve.errors import ApiError, api_error
from minicpm4.serve.gate import Ticket, late
from minicpm4.serve.responses import EventReply, Events, Reply, Scope, Send, header_list, until_gone
from minicpm4.serve.service import Service
from minicpm4.serve.shelf import Shelf

Answer = Reply | Events


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """``handle(service, body)``; ``body`` is None where there is no shape. ``generates``: it uses the engine,
    so the gate lets it in or not. ``needs``: a loaded "model", that of the field ``model``, or of the query
    where there is no body; what is "known" of it, loaded or not; or the "server": then ``handle`` gets its
    shelf in place of a service."""

    method: str
    path: str
    handle: Callable[[Any, Any], Awaitable[Answer]]
    summary: str
    shape: type[Shape] | None = None
    generates: bool = False
    needs: Literal["model", "known", "server"] = "model"


@dataclass(frozen=True, kw_only=True, slots=True)
class Api:
    """Endpoints that say in one form what is wrong: ``error_body``, and ``error_event`` in a stream.

    ``header``: a request that has it means this API, where others have the same path, or none has.
    """

    endpoints: Sequence[Endpoint]
    error_body: Callable[[ApiError], Any]
    error_event: Callable[[ApiError], str]
    header: bytes | None = None

    def is_meant(self, scope: Scope) -> bool:
        """Whether a request says by its header that it means this API."""
        return self.header is not None and any(name == self.header for name, _ in scope["headers"])

    def refuse(self, error: ApiError) -> Reply:
        return Reply.of(self.error_body(error), error.status, error.headers)


@dataclass(slots=True)
class Route:
    """An endpoint as an ASGI application."""

    api: Api
    endpoint: Endpoint
    shelf: Shelf = field(repr=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        held = ExitStack()  # what the answer holds, until it has ended
        headers: dict[str, str] = {}
        reply: Reply | EventReply | None = None
        try:
            body = await self._body(scope, receive, headers)
            service = None if self.endpoint.needs == "server" else self._service(scope, body)
            ticket = None
            if self.endpoint.generates:
                assert service is not None
                ticket = service.gate.enter(1 if body is None else body.at_once(service.share))
                held.callback(ticket.leave)
            answer = await until_gone(receive, self._answer(service, body, ticket, held))
            if isinstance(answer, Events):
                assert ticket is not None, "only what generates streams"
                on_error = answer.on_error or self.api.error_event
                told_first = _joined(headers, answer.headers)
                reply = EventReply(answer, ticket, told_first, on_error, self.shelf.metrics.gone, held.close)
            else:
                answer.headers = _joined(headers, answer.headers)
                reply = answer
        except ClientGoneError:
            self.shelf.metrics.gone()
            return
        except Exception as error:
            told = api_error(error)
            told.headers.update(headers)
            reply = self.api.refuse(told)
        finally:
            if not isinstance(reply, EventReply):
                held.close()
        await reply(scope, receive, send)

    def _service(self, scope: Scope, body: Any) -> Service:
        """The model that is asked for. Raises ApiError."""
        return self.shelf.named_in(scope) if body is None else self.shelf.find(body.model)

    async def _body(self, scope: Scope, receive: Receive, headers: dict[str, str]) -> Shape | None:
        shape = self.endpoint.shape
        if shape is None:
            return None
        given = {
            name: value for name, value in scope["headers"] if name in (b"content-length", b"content-type")
        }
        kind = given.get(b"content-type", b"application/json").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise ApiError(415, f"the body is {kind.decode('latin-1')[:80]}, send application/json")
        length = given.get(b"content-length", b"").decode("latin-1")
        settings = self.shelf.settings
        raw = await read_body(receive, length, settings.max_body, settings.read)
        body, unknown = validated(shape, await read_table(raw))
        if unknown:
            headers["X-Unknown-Fields"] = header_list(unknown)
        if without := body.without_effect():
            headers["X-Ignored-Fields"] = header_list(without)
        return body

    async def _answer(
        self, service: Service | None, body: Shape | None, ticket: Ticket | None, held: ExitStack
    ) -> Answer:
        async with nullcontext() if ticket is None else ticket.timed():
            if service is None:
                return await self.endpoint.handle(self.shelf, body)
            if self.endpoint.needs == "model":
                try:
                    async with asyncio.timeout(None if ticket else self.shelf.settings.timeout):
                        await self.shelf.borrow(service)
                except TimeoutError as error:
                    raise late(self.shelf.settings.timeout) from error
                held.callback(self.shelf.give_back, service)
            return await self.endpoint.handle(service, body)


def _joined(first: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """Headers of both; a list that both have is one."""
    both = {name: f"{first[name]}, {more[name]}" for name in first.keys() & more.keys()}
    return {**first, **more, **both}


def family(path: str) -> str:
    """A path, as it is counted and worded: that of one model as that of all."""
    return "/v1/models" if path.startswith("/v1/models/") else path
