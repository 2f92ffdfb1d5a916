"""Several processes of one server, on Ray Serve: it starts them, spreads requests and replaces what dies.

Each replica is the whole server as ``app`` makes it, over models of its own. Requests go round: Ray's router
by prefixes reads arguments of its own engines (it needs vLLM or SGLang installed), and an HTTP request has
none. With a ``cache_dir`` that all replicas share, what one has read the others find there.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import HTTPOptions, RequestRouterConfig
from ray.serve.schema import LoggingConfig

from minicpm4.engine.options import EngineOptions
from minicpm4.errors import ConfigError, EngineError
from minicpm4.machine.signals import ending_signals
from minicpm4.serve.app import Server, create_app
from minicpm4.serve.offers import shared
from minicpm4.serve.run import Socket
from minicpm4.serve.settings import MAX_REPLICAS, ServeSettings
from minicpm4.serve.shelf import Shelf

__all__ = ["Replica", "application", "serve_replicas"]

NAME = "minicpm4"
ROUTER = "ray.serve.experimental.round_robin_router.RoundRobinRouter"
OPEN = 1 << 16  # requests that Ray sends to one replica: the server's own gate refuses what is too much
OBJECTS = (
    100 << 20
)  # bytes for Ray's objects, which we have none of: hardly more than the least that it takes


class Replica:
    """One process: loads the first model, and answers what Ray sends to it."""

    def __init__(self, models: Sequence[str], options: EngineOptions, settings: ServeSettings) -> None:
        self.shelf = Shelf.planned(models, options, settings)
        self.shelf.load_first()

    def __serve_build_asgi_app__(self) -> Server:
        return create_app(self.shelf)

    async def check_health(self) -> None:
        """What Ray asks now and then. Raises EngineError where a model has died for good: Ray then makes
        another replica."""
        if failed := [one.name for one in self.shelf.services if one.has_failed]:
            raise EngineError(f"the engine of {', '.join(failed)} has died")


def application(
    models: Sequence[str | Path],
    options: EngineOptions | None = None,
    settings: ServeSettings | None = None,
    *,
    replicas: int = 2,
) -> Any:
    """The Application that ``ray.serve.run`` takes, for a cluster of yours: ``replicas`` processes that each
    have ``models``, by paths and names that mean the same on each machine."""
    chosen = settings or ServeSettings()
    router: dict[str, Any] = {"request_router_class": ROUTER}
    made: Any = serve.deployment(
        serve.ingress()(Replica),
        name=NAME,
        num_replicas=replicas,
        max_ongoing_requests=OPEN,
        ray_actor_options={"num_cpus": 1},
        graceful_shutdown_timeout_s=chosen.drain,
        max_constructor_retry_count=1,
        health_check_period_s=5.0,
        request_router_config=RequestRouterConfig(**router),
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
    )
    return made.bind([*map(str, models)], options or EngineOptions(fair=True), chosen)


def serve_replicas(
    models: Sequence[str],
    options: EngineOptions,
    settings: ServeSettings,
    where: Socket,
    replicas: int,
    started: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or SIGINT. In a cluster (``RAY_ADDRESS``) replicas are where it has room; else Ray
    is started on this machine, whose memory and cores the replicas share evenly.

    Raises ConfigError, EngineError where Ray cannot start them, and as ``offers_of`` does.
    """
    if not 1 <= replicas <= MAX_REPLICAS:
        raise ConfigError(f"--replicas {replicas} is outside 1 to {MAX_REPLICAS}")
    with where.open(settings) as door:  # Ray takes a number, so it is given back
        port = door.getsockname()[1]
    cluster = os.environ.get("RAY_ADDRESS")
    if not cluster:
        options = shared(models, options, settings.names, replicas)
    else:
        _require_cluster(cluster)
    told = threading.Event()
    _start_ray(replicas, cluster)
    try:
        # After Ray's own, which would end this process where it stands.
        for number in ending_signals():
            signal.signal(number, lambda *_: told.set())
        http: dict[str, Any] = {"host": where.host, "port": port, "keep_alive_timeout_s": 75}
        if where.certificate is not None:
            http |= {"ssl_certfile": str(where.certificate), "ssl_keyfile": str(where.key)}
        log = LoggingConfig(log_level="WARNING", enable_access_log=False)
        serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(**http), logging_config=log)
        try:
            serve.run(application(models, options, settings, replicas=replicas), name=NAME)
        except RuntimeError as error:
            raise EngineError(f"Ray could not start {replicas} replicas: {error}") from error
        started(where.address(port))
        told.wait()
    finally:
        with suppress(Exception):
            serve.delete(NAME)  # answers under way end first; to shut down at once breaks them
        if not cluster:  # in a cluster others may have applications of their own
            end: Any = serve.shutdown
            end()
        ray.shutdown()


def _require_cluster(address: str) -> None:
    """Raise EngineError unless something listens at ``address``, where it names a host and a port: Ray itself
    would wait for minutes, and could not be interrupted."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
    except (OSError, OverflowError) as error:
        raise EngineError(
            f"RAY_ADDRESS = {address!r:.100} is no cluster that can be reached: {error}",
            "start it, or unset it",
        ) from error


def _start_ray(replicas: int, cluster: str | None) -> None:
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "WARNING"}
    if cluster:
        ray.init(address=cluster, **quiet)
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would tell its makers that it was started
    ray.init(
        address="local",
        num_cpus=replicas + 1,
        object_store_memory=OBJECTS,
        include_dashboard=False,
        **quiet,
    )
