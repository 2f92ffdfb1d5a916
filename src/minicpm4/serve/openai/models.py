"""``/v1/models``."""

from __future__ import annotations

from minicpm4.serve.responses import Reply
from minicpm4.serve.service import Service


async def list_models(service: Service, body: None) -> Reply:
    """Every name of the model."""
    shared = {
        "object": "model",
        "created": service.created,
        "owned_by": "minicpm4",
        "max_model_len": service.llm.limits.context,
    }
    return Reply.of({"object": "list", "data": [{"id": name, **shared} for name in service.names]})
