"""How a server behaves, apart from its model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from minicpm4.config.strict import check_integer, require

MAX_REPLICAS = 64
PAGE = Path(__file__).parent / "page"


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeSettings:
    """``names``: what the model is called by clients, the first is what it calls itself; none: its own name.
    ``api_keys``: one of them is needed where there are any. ``hosts``: names in a Host header beside those of
    this machine; ``origins``: pages elsewhere that may ask (``https://host:port``). ``max_waiting``: requests
    beyond those that the engine answers at a time. Seconds: ``timeout`` for an answer, ``drain`` for those
    under way at the end, ``read`` for a request's head, and for its body, to arrive, ``stalled`` for a client
    to take some of what waits for it. ``page``: a folder with
    what is shown at ``/``.

    Raises ConfigError.
    """

    names: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    max_waiting: int = 64
    max_body: int = 32 << 20
    timeout: float = 3600.0
    drain: float = 30.0
    read: float = 30.0
    stalled: float = 60.0
    log_prompts: bool = False
    page: Path | None = PAGE

    def __post_init__(self) -> None:
        check_integer("max_waiting", self.max_waiting, 0, 1 << 20)
        check_integer("max_body", self.max_body, 1 << 10, 1 << 32)
        for name in ("timeout", "drain", "read", "stalled"):
            value = getattr(self, name)
            require(0 < value <= 1e6, f"{name} = {value} is not a number of seconds from 0 (excluded) to 1e6")
        for key in self.api_keys:
            check_key(key, "api_keys")


def check_key(key: str, where: str) -> None:
    """Raise ConfigError, which says ``where`` it is from and not what it is, unless it is an API key."""
    require(
        key.isascii() and key.isprintable() and 8 <= len(key) <= 1024 and " " not in key,
        f"{where}: an API key is not 8 to 1,024 printable ASCII characters without spaces",
        "comments are not read",
    )
