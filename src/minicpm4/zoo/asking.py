"""How a hub is asked: with whose token, and through which redirections."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

__all__ = ["hub_request", "opened"]


def hub_request(url: str) -> Any:
    """A request to the hub, with the user's token, which storage that it redirects to does not hear."""
    import urllib.request

    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    for name, value in _headers().items():
        request.add_unredirected_header(name, value)
    return request


def opened(request: Any, timeout: float) -> Any:
    """The answer to a request, after redirections, waited for ``timeout`` seconds at a time. As
    urllib.request.urlopen, which leaves the connection of one open that leads to no address, and sends the
    token nowhere: here it goes on where the same hub is asked. Raises ValueError, OSError."""
    import urllib.request

    class Redirects(urllib.request.HTTPRedirectHandler):
        def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
            try:
                return super().http_error_302(req, fp, code, msg, headers)
            except ValueError:
                fp.close()
                raise

        def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
            made = super().redirect_request(req, fp, code, msg, headers, newurl)
            if made is not None and _origin(made.full_url) == _origin(req.full_url):
                made.unredirected_hdrs.update(req.unredirected_hdrs)  # a renamed repository may be private
            return made

        http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    return urllib.request.build_opener(Redirects).open(request, timeout=timeout)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    """The scheme, host and port of an address: who hears what is asked there. Raises ValueError."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _headers() -> dict[str, str]:
    from huggingface_hub import get_token

    token = get_token()
    return {"User-Agent": "minicpm4"} | ({"Authorization": f"Bearer {token}"} if token else {})
