"""Which models of a server are loaded: each when it is asked for, all within one budget of memory.

Loads go one after another, in the order in which they were asked for, on threads of their own. Where there is
no room the models that were unused longest leave; one with requests under way is waited for, and meanwhile
those who ask for it anew wait behind the one that comes: nobody waits for ever. All of it happens in one
event loop: what is not awaited is not interrupted.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from minicpm4.engine.async_llm import AsyncLLM
from minicpm4.engine.options import EngineOptions
from minicpm4.errors import EngineError, MemoryPlanError
from minicpm4.machine import give_back_freed, human
from minicpm4.progress import Progress
from minicpm4.serve.errors import ApiError, api_error, busy
from minicpm4.serve.metrics import Metrics
from minicpm4.serve.offers import Offer, offers_of
from minicpm4.serve.responses import Scope
from minicpm4.serve.service import MAX_DEATHS, WITHIN, Service
from minicpm4.serve.settings import ServeSettings

logger = logging.getLogger("minicpm4.serve")


class Shelf:
    """The models of a server. ``budget``: bytes that the plans of all loaded ones may take together; None:
    as many as there are."""

    def __init__(self, offers: Sequence[Offer], settings: ServeSettings, budget: int | None = None) -> None:
        self.settings, self.budget = settings, budget
        self.metrics = Metrics()
        self.services = [Service(offer, settings, self.metrics) for offer in offers]
        self._by_name: Mapping[str, Service] = {name: one for one in self.services for name in one.names}
        self._moving = asyncio.Lock()
        # One thread for all: what a thread has freed the C library keeps for that thread.
        self._mover = ThreadPoolExecutor(1, "minicpm4 models")
        self._changed = asyncio.Event()  # something was given back, or is not wanted any more
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending = False

    @classmethod
    def over(cls, llm: AsyncLLM, settings: ServeSettings) -> Shelf:
        """A shelf of one model, which stays the caller's to close."""
        made = cls([Offer.loaded(llm, settings.names)], settings)
        made.services[0].put(llm)
        return made

    @classmethod
    def planned(cls, models: Sequence[str | Path], options: EngineOptions, settings: ServeSettings) -> Shelf:
        """Models that are opened and planned, none of which is loaded. Raises as ``offers_of`` does."""
        offers, budget = offers_of(models, options, settings.names)
        if len(offers) > 1:
            sizes = ", ".join(f"{one.names[0]} {human(one.nbytes)}" for one in offers)
            most = "of memory whose size nobody tells" if budget is None else f"of {human(budget)}"
            logger.info("loaded on demand, by their plans: %s, %s", sizes, most)
        return cls(offers, settings, budget)

    @property
    def names(self) -> list[str]:
        """What clients call the models."""
        return list(self._by_name)

    @property
    def closed(self) -> bool:
        """Whether nobody is let in any more."""
        return any(one.gate.closed for one in self.services)

    @property
    def count(self) -> int:
        """Requests in hand."""
        return sum(one.gate.count for one in self.services)

    def find(self, name: str | None) -> Service:
        """The model of a name, loaded or not; None: the first. Raises ApiError."""
        if name is None:
            return self.services[0]
        found = self._by_name.get(name)
        if found is None:
            message = f"there is no model {name[:100]!r} here, there is {', '.join(self._by_name)}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return found

    def named_in(self, scope: Scope) -> Service:
        """The model that a request without a body names: in its path, or as ``?model=``. Raises ApiError."""
        if "model" in (named := scope.get("path_params", {})):
            return self.find(named["model"])
        given = parse_qs(scope.get("query_string", b"")[:4096].decode("latin-1")).get("model")
        return self.find(given[0] if given else None)

    async def borrow(self, service: Service) -> None:
        """Have a model loaded and see to it that it stays: until ``give_back``. Raises ApiError."""
        if service.stays:
            service.users += 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        service.waiting.append(place)
        if not service.comes:
            service.comes = True
            self._begin(self._bring(service))
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self.give_back(service)
            raise
        finally:
            service.waiting.remove(place)
            self._changed.set()

    def give_back(self, service: Service) -> None:
        """A borrower needs it no more."""
        service.users -= 1
        service.used = time.monotonic()
        self._changed.set()
        if service.is_to_go and not service.comes:
            self._begin(self._put_off(service))

    def load_first(self, progress: Progress | None = None) -> None:
        """Load the first model before the server runs. Raises as its load does."""
        first = self.services[0]
        first.put(first.offer.load(progress))

    async def drain(self, seconds: float) -> None:
        """Let nobody in, and wait until all requests have ended; end those that have not after so long."""
        await asyncio.gather(*(one.gate.drain(seconds) for one in self.services))

    def hurry(self) -> None:
        """End all requests now."""
        for one in self.services:
            one.gate.hurry()

    def close(self) -> None:
        """Close all models, when no loop runs any more; what is being loaded is not loaded to its end."""
        self._ending = True
        self._mover.shutdown(cancel_futures=True)
        for one in self.services:
            if (llm := one.take()) is not None:
                llm.llm.close()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _put_off(self, service: Service) -> None:
        """Unload a model whose engine has died, as soon as all whom it failed have gone: who asks for it next
        gets another, unless it has died too often."""
        while service.is_to_go and service.users:
            self._changed.clear()
            await self._changed.wait()
        async with self._moving:
            if service.is_to_go:
                await self._unload(service)

    async def _bring(self, service: Service) -> None:
        """Load a model that somebody waits for, and let in who does."""
        try:
            while not await self._try_to_bring(service):
                logger.info("%s died while it was waited for", service.name)
        except Exception as error:
            logger.error("%s could not be loaded", service.name, exc_info=error)
            for place in service.waiting:
                if not place.done():  # each gets its own: a route adds headers to it
                    place.set_exception(_refusal(service.name, error))
        finally:
            service.comes = False
        if not service.stays:  # nobody had waited any more; whoever came since asks anew
            return
        for place in service.waiting:
            if not place.done():
                service.users += 1
                place.set_result(None)

    async def _try_to_bring(self, service: Service) -> bool:
        """Load a model; False: there is one whose engine has died meanwhile. Raises EngineError."""
        await self._put_off(service)
        if service.given_up:
            often = f"{MAX_DEATHS} times in {WITHIN / 60:g} minutes"
            raise EngineError(f"its engine has died {often}", "start the server anew")
        async with self._moving:
            if service.is_to_go:
                return False
            wanted = service.stays or await self._make_room(service)
            if wanted and not service.stays:
                await self._load(service)
        return True

    async def _load(self, service: Service) -> None:
        began = time.monotonic()
        logger.info("loading %s", service.name)
        # In the thread: should the loop end meanwhile, ``close`` still finds it.
        await self._apart(lambda: service.put(service.offer.load(self._go_on)))
        service.used = time.monotonic()
        self.metrics.loaded(service.name)
        logger.info("loaded %s in %.1f s; %s", service.name, service.used - began, self._said())

    def _go_on(self, done: int, total: int) -> None:
        """Called while a model is loaded. Raises EngineError when nobody wants it any more."""
        if self._ending:
            raise EngineError("the server is ending")

    async def _make_room(self, service: Service) -> bool:
        """Unload what must be; whether anybody still waits for the model."""
        leaving: list[Service] = []
        try:
            while True:
                self._changed.clear()
                if all(place.done() for place in service.waiting):
                    return False
                if self.budget is None:
                    return True
                over = self._taken() + service.offer.nbytes - self.budget
                if over <= 0:
                    return True
                leaving += self._oldest(over - sum(one.offer.nbytes for one in leaving), leaving)
                idle = [one for one in leaving if not one.users]
                for one in idle:
                    await self._unload(one)
                    leaving.remove(one)
                if not idle:
                    if not leaving:
                        raise MemoryPlanError(f"{human(over)} are missing, with no other model loaded")
                    await self._changed.wait()
        finally:
            for one in leaving:
                one.leaving = False

    def _oldest(self, over: int, leaving: Sequence[Service]) -> list[Service]:
        """Those that must go to free ``over`` bytes, beside ``leaving``: idle ones first, each time the one
        that was unused longest. Nobody borrows them any more."""
        there = [one for one in self.services if one.is_loaded and one not in leaving]
        found = []
        for one in sorted(there, key=lambda one: (one.users > 0, one.used)):
            if over <= 0:
                break
            one.leaving = True
            found.append(one)
            over -= one.offer.nbytes
        return found

    async def _unload(self, service: Service) -> None:
        if service.is_to_go:
            service.died()
            logger.error("the engine of %s has died", service.name)
        llm = service.take()
        service.leaving = False
        if llm is None:
            return
        try:
            await self._apart(llm.llm.close)
        except Exception as error:  # of what a fault has left
            logger.error("%s was not closed well", service.name, exc_info=error)
        del llm
        gc.collect()  # arrays that a circle of references would keep
        give_back_freed()
        logger.info("unloaded %s; %s", service.name, self._said())

    async def _apart(self, work: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._mover, work)

    def _taken(self) -> int:
        return sum(one.offer.nbytes for one in self.services if one.is_loaded)

    def _said(self) -> str:
        of = "" if self.budget is None else f" of {human(self.budget)}"
        return f"{human(self._taken())}{of} planned for loaded models"


def _refusal(name: str, error: Exception) -> ApiError:
    """What those are told who asked for a model that could not be loaded."""
    if isinstance(error, MemoryError | MemoryPlanError | EngineError):
        return busy(
            503, f"{name} could not be loaded: {str(error) or 'memory ran out'}", 10, "model_not_loaded"
        )
    told = api_error(error)
    message = f"{name} could not be loaded: {told.message}"
    return ApiError(500, message, kind="server_error", code="model_not_loaded")
