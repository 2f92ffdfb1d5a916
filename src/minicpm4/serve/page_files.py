"""The page at ``/``: files of one folder, under a policy that lets it load nothing from elsewhere."""

from __future__ import annotations

import asyncio
import mimetypes
from pathlib import Path
from typing import Any

from starlette.routing import Route

from minicpm4.serve.responses import Reply, Scope, Send

INDEX = "index.html"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; worker-src 'self' blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
# What the registry of the system may call otherwise, or not at all.
_TYPES = {
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".css": "text/css",
    ".wasm": "application/wasm",
}


def page_routes(folder: Path | None) -> list[Route]:
    """Routes of the page, none where the folder has none: ``/`` is index.html, ``/NAME`` a file beside it.

    Only names that are there at the start lead anywhere: no path is made of what a client sends.
    """
    if folder is None or not (folder / INDEX).is_file():
        return []
    files = {f"/{file.name}": file for file in sorted(folder.iterdir()) if file.is_file()}
    files["/"] = files.pop(f"/{INDEX}")
    return [Route(path, _File(file), methods=["GET"]) for path, file in files.items()]


class _File:
    """One file as an ASGI application."""

    def __init__(self, file: Path) -> None:
        self._file = file

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        file = self._file
        kind = _TYPES.get(file.suffix) or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        if kind.startswith("text/"):
            kind += "; charset=utf-8"
        body = await asyncio.to_thread(file.read_bytes)
        await Reply(body, 200, HEADERS, kind)(scope, receive, send)
