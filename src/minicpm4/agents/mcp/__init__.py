"""Tools over the Model Context Protocol: servers, asked first and held within bounds. docs/mcp.md."""

from __future__ import annotations

from minicpm4.errors import UnsupportedError

try:
    import mcp as _sdk
except ImportError as error:
    raise UnsupportedError(
        f"tools of MCP servers need {error.name}", "in the checkout: pip install -e '.[apps]'"
    ) from error

__all__: list[str] = []
_ = _sdk
