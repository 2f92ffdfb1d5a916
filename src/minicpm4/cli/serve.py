"""``minicpm4 serve``: a model over HTTP."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minicpm4.cli.options import DEFAULT_MODEL, EngineFlags, bytes_of, expand, gigabytes
from minicpm4.cli.terminal import SafeLog, one_line, progress_bar
from minicpm4.config.strict import require
from minicpm4.errors import ConfigError, UnsupportedError
from minicpm4.files import lines_of, read_text

if TYPE_CHECKING:
    from minicpm4.agents.mcp.page import PageTools

KEY_VARIABLE = "MINICPM4_API_KEY"
MAX_KEY_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerFlags:
    """Who may ask, and how much."""

    host: Annotated[
        str, typer.Option(help="Interface to listen on. Others than this machine's own need an API key.")
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000
    name: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="What clients call the model; may be given several times."),
    ] = None
    max_batch: Annotated[int, typer.Option(help="Answers written at a time.")] = 8
    max_waiting: Annotated[
        int | None,
        typer.Option(help="Prompts that may wait beyond these (64), each of a body counted; more get a 429."),
    ] = None
    timeout: Annotated[float | None, typer.Option(help="Seconds that a request may take (3600).")] = None
    stalled: Annotated[
        float | None,
        typer.Option(help="Seconds after which a client that reads nothing of its answer is cut (60)."),
    ] = None
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep what was read of prompts in this folder, and find it there after a restart. It holds "
            "what was asked.",
        ),
    ] = None
    cache_size: Annotated[
        float | None,
        typer.Option(
            parser=gigabytes,
            metavar="GB",
            help="What it may take (10); what was used longest ago is removed first.",
        ),
    ] = None
    drain: Annotated[
        float | None,
        typer.Option(help="Seconds that answers under way get when the server is told to end (30)."),
    ] = None
    max_body: Annotated[int | None, typer.Option(help="Most bytes of a request's body (33554432).")] = None
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File of API keys, one a line: 8 to 1,024 printable ASCII characters without spaces, no "
            f"comments. One key may stand in {KEY_VARIABLE} instead.",
        ),
    ] = None
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A name of this server beside localhost and addresses; repeatable."
        ),
    ] = None
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Pages elsewhere that may ask, as https://host:port; repeatable."),
    ] = None
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate chain (PEM) for TLS.")
    ] = None
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key (PEM).")] = None
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write prompts to the log. Without it, it has none of them.")
    ] = False
    replicas: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Processes that each have the models, on Ray Serve; they share memory and cores evenly.",
        ),
    ] = None
    mcp: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Servers of tools (a table mcpServers) for the page: each is started, and each call made, "
            "when you have said so in the page.",
        ),
    ] = None
    quiet: Annotated[bool, typer.Option("--quiet", help="No line for each request.")] = False

    def settings(self) -> Any:
        """Raises ConfigError."""
        from minicpm4.serve.settings import ServeSettings

        names = ("max_waiting", "timeout", "stalled", "drain", "max_body")
        given = {name: getattr(self, name) for name in names}
        return ServeSettings(
            **{name: value for name, value in given.items() if value is not None},
            names=tuple(self.name or ()),
            hosts=tuple(self.allow_host or ()),
            origins=tuple(self.allow_origin or ()),
            api_keys=self._keys(),
            log_prompts=self.log_prompts,
        )

    def kept(self) -> dict[str, Any]:
        """Keyword arguments of ``LLM`` for what is kept of prompts. Raises ConfigError."""
        if self.cache_size is None:
            return {} if self.cache_dir is None else {"cache_dir": self.cache_dir}
        require(self.cache_dir is not None, "--cache-size bounds a --cache-dir", "give that too")
        return {"cache_dir": self.cache_dir, "cache_size": bytes_of("--cache-size", self.cache_size)}

    def _keys(self) -> tuple[str, ...]:
        from minicpm4.serve.settings import check_key

        keys = [os.environ.get(KEY_VARIABLE, "")]
        if keys[0]:
            check_key(keys[0], KEY_VARIABLE)
        if self.api_key_file is not None:
            try:
                text = read_text(self.api_key_file, MAX_KEY_BYTES, ConfigError)
            except OSError as error:
                raise ConfigError(
                    f"cannot read --api-key-file {self.api_key_file}: {error.strerror}"
                ) from error
            for number, line in enumerate(lines_of(text), 1):
                if line.strip():
                    check_key(line.strip(), f"--api-key-file {self.api_key_file}, line {number}")
                    keys.append(line.strip())
            if len(keys) == 1:
                raise ConfigError(f"--api-key-file {self.api_key_file} holds no key", "write one a line")
        return tuple(key for key in keys if key)


@expand
def command(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Known names, folders, .gguf files, or hub repositories; the first is "
            "what requests get that name none.",
        ),
    ] = None,
    *,
    server: ServerFlags,
    engine: EngineFlags,
) -> None:
    """Answer over HTTP: by the APIs of OpenAI and Anthropic, and a page at the server's address.

    Of several models the first is loaded at once, the others when they are asked for, all within
    --memory: where there is no room, the one that was unused longest is unloaded. Ctrl-C, SIGTERM or
    a terminal that closes lets nobody in any more, and it ends when the answers under way are written.
    """
    try:
        from minicpm4.serve.run import Socket
    except ImportError as error:
        raise UnsupportedError(
            f"minicpm4 serve needs {error.name}, which is not installed",
            "in the checkout: pip install -e '.[serve]'",
        ) from error
    from minicpm4.engine.options import EngineOptions
    from minicpm4.serve.settings import MAX_REPLICAS
    from minicpm4.serve.shelf import Shelf

    settings = server.settings()
    where = Socket(host=server.host, port=server.port, certificate=server.tls_cert, key=server.tls_key)
    more = {"max_batch": server.max_batch, "fair": True, **server.kept()}
    options = EngineOptions(**{**engine.settings(), **more})
    asked = models or [DEFAULT_MODEL]
    level = logging.WARNING if server.quiet else logging.INFO
    log = logging.StreamHandler(sys.stderr)
    log.setFormatter(SafeLog("%(asctime)s %(message)s"))
    logging.basicConfig(level=level, handlers=[log])

    names = server.name or asked

    tools = _page_tools(server.mcp) if server.mcp is not None else None
    require(tools is None or server.replicas is None, "--mcp is for one process", "leave out --replicas")

    def started(address: str) -> None:
        # Others on this machine reach the server too: only who sees this line may allow calls.
        token = "" if tools is None else f"/#tools={tools.token}"
        print(f"{one_line(', '.join(names))} at {address}{token}", flush=True)

    if server.replicas is not None:
        require(
            1 <= server.replicas <= MAX_REPLICAS,
            f"--replicas {server.replicas} is outside 1 to {MAX_REPLICAS}",
        )
        _serve_replicas(asked, options, settings, where, server.replicas, started)
        return
    with closing(where.open(settings)) as door, closing(Shelf.planned(asked, options, settings)) as shelf:
        names = shelf.names  # as clients must send them
        with progress_bar("loading", "layers") as progress:
            shelf.load_first(progress)
        asyncio.run(_serve(tools, shelf, settings, where, door, started))


async def _serve(
    tools: PageTools | None, shelf: Any, settings: Any, where: Any, door: Any, told: Any
) -> None:
    from minicpm4.serve.app import APIS
    from minicpm4.serve.run import serve

    if tools is None:
        await serve(shelf, settings, where, door, told)
        return
    try:
        await serve(shelf, settings, where, door, told, (*APIS, tools.api))
    finally:
        await tools.close()


def _page_tools(file: Path) -> PageTools:
    """Tools of the servers of a file; none is started. Raises ConfigError."""
    from minicpm4.agents.mcp.approvals import Approvals, approvals_file
    from minicpm4.agents.mcp.config import read_config
    from minicpm4.agents.mcp.page import PageTools

    config = read_config(file)
    for note in config.notes:
        print(f"note: {one_line(note)}", file=sys.stderr)
    return PageTools(config, Approvals(approvals_file()))


def _serve_replicas(*arguments: Any) -> None:
    try:
        from minicpm4.serve.replicas import serve_replicas
    except ImportError as error:
        raise UnsupportedError(
            f"--replicas needs {error.name}, which is not installed",
            "in the checkout: pip install -e '.[serve-ray]'",
        ) from error
    serve_replicas(*arguments)
