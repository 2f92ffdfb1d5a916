"""``/v1/models``."""

from __future__ import annotations

from minicpm4.serve.responses import Reply
from minicpm4.serve.shelf import Shelf


async def list_models(shelf: Shelf, body: None) -> Reply:
    """Every name of every model, and whether it is loaded."""
    listed = [
        {
            "id": name,
            "object": "model",
            "created": one.created,
            "owned_by": "minicpm4",
            "max_model_len": one.offer.context,
            "status": {"value": one.status},
        }
        for one in shelf.services
        for name in one.names
    ]
    return Reply.of({"object": "list", "data": listed})
