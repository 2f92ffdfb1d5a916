"""``/v1/models``, and each of them."""

from __future__ import annotations

from typing import Any

from minicpm4.serve.responses import Reply
from minicpm4.serve.service import Service
from minicpm4.serve.shelf import Shelf


async def list_models(shelf: Shelf, body: None) -> Reply:
    """Every name of every model, and whether it is loaded."""
    listed = [_told(one, name) for one in shelf.services for name in one.names]
    return Reply.of({"object": "list", "data": listed})


async def one_model(service: Service, body: None) -> Reply:
    """A model, by its own name."""
    return Reply.of(_told(service, service.name))


def _told(one: Service, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": one.created,
        "owned_by": "minicpm4",
        "max_model_len": one.offer.context,
        "status": {"value": one.status},
    }
