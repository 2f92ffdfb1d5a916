"""A client of a server in the same process: nothing listens."""

from __future__ import annotations

from typing import Any

import httpx


def client_of(app: Any, *, timeout: float = 30) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://localhost:8000", timeout=timeout
    )
