"""The server as an ASGI application, over an AsyncLLM: a real one, or one over a scripted engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.routing import Route as Path
from starlette.routing import Router

from minicpm4.engine.async_llm import AsyncLLM
from minicpm4.serve import anthropic, items, openai, tools
from minicpm4.serve.endpoints import Api, Endpoint, Route, family
from minicpm4.serve.errors import ApiError, openai_error
from minicpm4.serve.guard import Guard
from minicpm4.serve.openapi import openapi
from minicpm4.serve.page_files import page_routes
from minicpm4.serve.responses import Reply, Scope, Send
from minicpm4.serve.service import Service
from minicpm4.serve.settings import ServeSettings
from minicpm4.serve.shelf import Shelf

__all__ = ["APIS", "Server", "create_app"]

# Each is asked first for its own paths; what no one knows is answered in the form of the first.
APIS: tuple[Api, ...] = (openai.API, items.API, anthropic.API, tools.API)


@dataclass(slots=True)
class Server:
    """An ASGI application; ``shelf`` has its models, and ends them."""

    shelf: Shelf
    guard: Guard

    @property
    def service(self) -> Service:
        """The first model."""
        return self.shelf.services[0]

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        await self.guard(scope, receive, send)


def create_app(
    models: AsyncLLM | Shelf, settings: ServeSettings | None = None, apis: Sequence[Api] = APIS
) -> Server:
    """A server over a model, or over a shelf of them, which has its settings; both stay the caller's to
    close."""
    shelf = models if isinstance(models, Shelf) else Shelf.over(models, settings or ServeSettings())

    async def describe(shelf: Shelf, body: None) -> Reply:
        return Reply.of(description)

    path = "/openapi.json"
    own = Endpoint(method="GET", path=path, handle=describe, summary="This description.", needs="server")
    apis = [*apis, Api(endpoints=(own,), error_body=openai_error, error_event=openai.error_event)]
    description = openapi(apis, [one.offer for one in shelf.services])
    homes = _Homes(apis)
    ways: dict[tuple[str, str], list[Route]] = {}
    for api in apis:
        for endpoint in api.endpoints:
            ways.setdefault((endpoint.path, endpoint.method), []).append(Route(api, endpoint, shelf))
    routes = [Path(path, _Shared(some), methods=[method]) for (path, method), some in ways.items()]
    page = page_routes(shelf.settings.page)
    router = Router([*routes, *page], redirect_slashes=False)

    async def app(scope: Scope, receive: Any, send: Send) -> None:
        if scope["type"] == "http":
            scope["app"] = router  # so that what has no route is raised, and worded by its API
        try:
            await router(scope, receive, send)
        except HTTPException as error:
            said = HTTPStatus(error.status_code).phrase
            message = f"{scope['method']} {str(scope['path'])[:200]}: {said}"
            code = said.lower().replace(" ", "_")
            raise ApiError(error.status_code, message, code=code, headers=error.headers) from error

    return Server(
        shelf,
        Guard(
            app=app,
            shelf=shelf,
            api_of=homes.of,
            paths=frozenset(homes.by_path),
            open_paths=frozenset({"/health", *(route.path for route in page)}),
        ),
    )


class _Homes:
    """Which API a request means: by its path, else by its header, else the first."""

    def __init__(self, apis: Sequence[Api]) -> None:
        self._apis = apis
        self.by_path: dict[str, list[Api]] = {}
        for api in apis:
            for endpoint in api.endpoints:
                self.by_path.setdefault(endpoint.path, []).append(api)

    def of(self, scope: Scope) -> Api:
        """Never none: what nobody answers is refused in some form too."""
        here = self.by_path.get(family(str(scope["path"])), self._apis)
        return next((api for api in here if api.is_meant(scope)), here[0])


@dataclass(frozen=True, slots=True)
class _Shared:
    """Endpoints of several APIs at one path, as an ASGI application."""

    routes: Sequence[Route]

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        meant = next((route for route in self.routes if route.api.is_meant(scope)), self.routes[0])
        await meant(scope, receive, send)
