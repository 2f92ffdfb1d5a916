"""A server under load: ours, and llama-server where one is named, one after the other in turns.

    .venv/bin/python benchmarks/serving.py PART... [--model NAME] [--llama-server PATH --gguf FILE]

race     1, 4, 16 and 32 clients, each a chat of its own: tokens a second, first token, time between tokens
fair     8 chats are written alone, then beside new short chats, then a long prompt is read beside both: time
         between their tokens, and the newcomers' first token
cached   a long prompt, another chat, the long prompt again: how much of it came from the cache
toll     32 clients, and the same chats as one batch of the engine by itself, in turns: what HTTP takes
soak     32 clients for --minutes, a third of which go away at a random moment: errors, pages held, growth of
         memory, threads or open files; any of these is a failure

Times are a client's: from its request to what it reads. Prompts are texts of random words, so that nothing is
found in the cache but where that is the question.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from commits import dated
from endurance import facts, faults, quarters
from peers.quiet import Watch, is_loud
from toll import batches, pairs, shares

from minicpm4.files import finite, write_json
from minicpm4.machine import cpu_name, total_cores

ROOT = Path(__file__).parents[1]
CLIENTS = (1, 4, 16, 32)
WORDS = (ROOT / "examples" / "how_sqlite_is_tested.txt").read_text(encoding="utf-8").split()
CHAT = 1000  # tokens of an answer that others come beside
START = 600.0  # seconds for a server to be there


@dataclass
class Answer:
    """What a client saw: seconds from its request to each piece of text, and the usage that it was told."""

    times: list[float] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def gaps(self) -> list[float]:
        return np.diff(self.times).tolist()


@dataclass(frozen=True)
class Server:
    """One that runs: ``name`` in the tables, ``url``, and its process."""

    name: str
    url: str
    process: subprocess.Popen[bytes]


async def ask(client: httpx.AsyncClient, text: str, tokens: int, leave: float | None = None) -> Answer:
    """One streamed chat of exactly ``tokens`` tokens; ``leave``: go away after so many seconds."""
    answer, began = Answer(), time.perf_counter()
    body = {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    try:
        async with asyncio.timeout(leave), client.stream("POST", "/v1/chat/completions", json=body) as reply:
            if reply.status_code != 200:
                answer.error = f"{reply.status_code}: {(await reply.aread())[:200]!r}"
                return answer
            async for event in events(reply):
                if any(choice["delta"].get("content") for choice in event.get("choices", ())):
                    answer.times.append(time.perf_counter() - began)
                answer.usage = event.get("usage") or answer.usage
    except TimeoutError:
        pass
    except httpx.HTTPError as error:
        answer.error = f"{type(error).__name__}: {error}"
    return answer


async def events(reply: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in reply.aiter_lines():
        if line.startswith("data: {"):
            yield json.loads(line[6:])


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(WORDS, k=count))


def millis(seconds: Sequence[float]) -> dict[str, float]:
    if not seconds:
        return {}
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    return {"p50_ms": p50, "p99_ms": p99, "count": len(seconds)}


async def race(client: httpx.AsyncClient, args: argparse.Namespace, server: Server) -> dict[str, Any]:
    """Tokens a second of so many clients that ask again and again."""
    rng, found = random.Random(args.seed), {}
    for count in args.clients:
        asked = [words(rng, 80) for _ in range(count)]
        began = time.perf_counter()
        answers = await asyncio.gather(*(ask(client, text, args.tokens) for text in asked))
        seconds = time.perf_counter() - began
        written = sum(one.usage.get("completion_tokens", 0) for one in answers)
        found[str(count)] = {
            "tokens_per_second": written / seconds,
            "first": millis([one.times[0] for one in answers if one.times]),
            "between": millis([gap for one in answers for gap in one.gaps]),
            "errors": [one.error for one in answers if one.error],
        }
    return found


async def fair(client: httpx.AsyncClient, args: argparse.Namespace, server: Server) -> dict[str, Any]:
    """Running chats and a newcomer, without and with a long prompt beside them."""
    rng = random.Random(args.seed + 1)

    async def running(stop: asyncio.Event, seen: list[tuple[float, float]]) -> None:
        while not stop.is_set():
            began = time.perf_counter()
            answer = await ask(client, words(rng, 30), CHAT)  # long: its own prompt is no part of this
            seen += [(began + at, gap) for at, gap in zip(answer.times[1:], answer.gaps, strict=True)]

    async def newcomers(seconds: float | None, done: asyncio.Event) -> list[float]:
        first, began = [], time.perf_counter()
        while not done.is_set() and (seconds is None or time.perf_counter() - began < seconds):
            answer = await ask(client, words(rng, 20), 2)
            first += answer.times[:1]
            await asyncio.sleep(0.5)
        return first

    stop, never, seen = asyncio.Event(), asyncio.Event(), []
    chats = [asyncio.create_task(running(stop, seen)) for _ in range(8)]
    await asyncio.sleep(8)
    first = time.perf_counter()
    await asyncio.sleep(args.idle)
    since = time.perf_counter()
    idle_first = await newcomers(args.idle, never)
    began = time.perf_counter()
    read = asyncio.Event()

    async def long() -> Answer:
        try:
            return await ask(client, words(rng, args.long), 2)
        finally:
            read.set()

    answer, busy_first = await asyncio.gather(long(), newcomers(None, read))
    ended = time.perf_counter()
    stop.set()
    await asyncio.gather(*chats)  # a chat's times are known when it has ended
    times = (first, since, began, ended)
    undisturbed, idle, busy = ([gap for at, gap in seen if a <= at < b] for a, b in pairwise(times))
    alone = [(await ask(client, words(rng, 20), 2)).times[0] for _ in range(5)]
    return {
        "prompt_tokens": answer.usage.get("prompt_tokens"),
        "prompt_seconds": answer.times[:1],
        "error": answer.error,
        "between": {"undisturbed": millis(undisturbed), "idle": millis(idle), "busy": millis(busy)},
        "first": {"nobody": millis(alone), "idle": millis(idle_first), "busy": millis(busy_first)},
        "p99_ratio": float(np.percentile(busy, 99) / np.percentile(idle, 99)),
        "p99_ratio_undisturbed": float(np.percentile(busy, 99) / np.percentile(undisturbed, 99)),
        "first_ratio": float(np.median(busy_first) / np.median(idle_first)),
    }


async def cached(client: httpx.AsyncClient, args: argparse.Namespace, server: Server) -> dict[str, Any]:
    """The same long prompt twice, another chat between."""
    rng = random.Random(args.seed + 2)
    text, other = words(rng, args.long), words(rng, 200)
    answers = [await ask(client, one, 8) for one in (text, other, text)]
    usage = answers[2].usage
    told = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    return {
        "prompt_tokens": usage.get("prompt_tokens"),
        "cached_tokens": told,
        "share": told / usage["prompt_tokens"] if told is not None and usage else None,
        "first_seconds": [one.times[:1] for one in answers],
        "errors": [one.error for one in answers if one.error],
    }


async def toll(client: httpx.AsyncClient, args: argparse.Namespace, server: Server) -> dict[str, Any]:
    """Pairs of the server and of the engine alone."""
    rng, options = random.Random(args.seed + 4), {"max_batch": args.slots, "context": args.context}
    rounds = [[words(rng, 80) for _ in range(args.slots)] for _ in range(1 + args.pairs)]
    with batches(args.model, options) as batch:
        return shares(await pairs(client.base_url.port, batch, rounds, args.tokens))


async def soak(client: httpx.AsyncClient, args: argparse.Namespace, server: Server) -> dict[str, Any]:
    """Many clients, some of which go away; what is held meanwhile and afterwards."""
    rng, errors, seen, asked, gone = random.Random(args.seed + 3), [], [], 0, 0
    until = time.perf_counter() + args.minutes * 60

    async def one_client() -> None:
        nonlocal asked, gone
        while time.perf_counter() < until:
            leave = rng.uniform(0.05, 5.0) if rng.random() < 1 / 3 else None
            answer = await ask(client, words(rng, rng.randint(5, 200)), rng.randint(4, 64), leave)
            asked, gone = asked + 1, gone + (leave is not None)
            if answer.error:
                errors.append(answer.error)

    async def watch() -> None:
        while time.perf_counter() < until:
            seen.append(facts(server.process.pid))
            await asyncio.sleep(1)

    async def held(name: str) -> float:
        """Of all models, once it is nothing, or half a minute has passed."""
        for _ in range(60):
            found = re.findall(rf"^minicpm4_{name}\S* (\S+)", (await client.get("/metrics")).text, re.M)
            if sum(map(float, found)) == 0:
                break
            await asyncio.sleep(0.5)
        return sum(map(float, found))

    await asyncio.gather(watch(), *(one_client() for _ in range(32)))
    return {
        "minutes": args.minutes,
        "requests": asked,
        "told to leave early": gone,
        "errors": len(errors),
        "first errors": errors[:5],
        "pages held afterwards": await held("pages_held"),
        "requests held afterwards": await held("requests(?!_)"),
        "quarters": quarters(seen),
    }


PARTS: dict[str, Callable[[httpx.AsyncClient, argparse.Namespace, Server], Any]] = {
    "race": race,
    "fair": fair,
    "cached": cached,
    "toll": toll,
    "soak": soak,
}


@contextlib.contextmanager
def started(name: str, command: Sequence[str], port: int, health: str) -> Iterator[Server]:
    """Start a server, and end it."""
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + START
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(url + health, timeout=5).status_code == 200:
                        break
                if process.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"error: {' '.join(command)} did not start (code {process.poll()})")
                time.sleep(0.2)
            yield Server(name, url, process)
        finally:
            process.terminate()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def servers(args: argparse.Namespace, part: str) -> dict[str, tuple[list[str], str]]:
    """Commands without the port, and where to ask whether they are there."""
    slots, context = args.slots, args.context
    if part == "soak" and not context:  # all pages of the cache are in use soon: later growth is growth
        context = 1024
    ours = [sys.executable, "-m", "minicpm4", "serve", args.model, "--quiet", "--max-batch", str(slots)]
    if context:
        ours += ["--context", str(context)]
    found = {"minicpm4": (ours, "/health")}
    if args.llama_server:
        # Its context is that of all slots together.
        each = str((context or 4096) * slots)
        flags = ["-np", str(slots), "-c", each, "-t", str(total_cores()), "-cb", "--no-webui"]
        found["llama-server"] = ([args.llama_server, "-m", args.gguf, *flags], "/health")
    return found


async def run_part(part: str, args: argparse.Namespace, server: Server) -> Any:
    # A connection for each request: llama-server closes those that it keeps just when they are used again.
    limits = httpx.Limits(max_connections=200, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=server.url, timeout=1800, limits=limits) as client:
        await ask(client, "warm up", 8)
        return await PARTS[part](client, args, server)


def main() -> None:
    args = parse()
    watch, results = Watch(), {}
    for part in args.parts:
        for repeat in range(args.repeats if part == "race" else 1):
            for name, (command, health) in servers(args, part).items():
                if part in ("toll", "soak") and name != "minicpm4":
                    continue
                port = free_port()
                with started(name, [*command, "--port", str(port)], port, health) as server:
                    found = asyncio.run(run_part(part, args, server))
                results.setdefault(part, {}).setdefault(name, []).append(found)
                print(part, name, repeat, json.dumps(finite(found)), flush=True)
    others = watch.others()
    report = {
        **dated(),
        "machine": {"cpu": cpu_name(), "cpus": total_cores()},
        "other load": others,
        "model": Path(args.model).name,
        **{key: getattr(args, key) for key in ("slots", "context", "tokens", "long", "repeats")},
        "results": results,
    }
    if "race" in results:
        print(table(results["race"]))
    if others is not None and is_loud(others):
        print(f"warning: {sum(others.values()):.2f} cores were at other work meanwhile", file=sys.stderr)
    cpu = re.sub(r"[^a-z0-9]+", "-", cpu_name().lower())[:10].strip("-")
    file = args.json or ROOT / f"benchmarks/results/serving_{args.model}_{cpu}_{report['date'][:10]}.json"
    write_json(file, finite(report), indent=1)
    print(f"written: {file}", file=sys.stderr)
    if wrong := [one for found in results.get("soak", {}).get("minicpm4", ()) for one in faults(found)]:
        raise SystemExit(f"error: the soak failed: {'; '.join(wrong)}")


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Medians over repeats of each server, by clients."""
    lines = [
        "| clients | server | tokens/s | first token, ms | between tokens p50, p99, ms |",
        "| --- " * 5 + "|",
    ]
    for count in next(iter(found.values()))[0]:
        for name, runs in found.items():
            rows = [run[count] for run in runs]
            rate = np.median([row["tokens_per_second"] for row in rows])
            first = np.median([row["first"].get("p50_ms", np.nan) for row in rows])
            gaps = [[row["between"].get(key, np.nan) for key in ("p50_ms", "p99_ms")] for row in rows]
            p50, p99 = np.median(gaps, axis=0)
            lines.append(f"| {count} | {name} | {rate:.1f} | {first:.0f} | {p50:.0f}, {p99:.0f} |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("parts", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    add("--model", default="smollm2-135m-instruct")
    add("--llama-server", help="a llama-server to measure beside ours")
    add("--gguf", help="the file of the same weights, for it")
    add("--slots", type=int, default=32, help="chats at a time, of both servers (%(default)s)")
    add("--context", type=int, help="tokens of a chat; the model's unless said, 1024 in the soak")
    add("--clients", type=int, nargs="+", default=list(CLIENTS))
    add("--tokens", type=int, default=64, help="of an answer in race and toll (%(default)s)")
    add("--long", type=int, default=4500, help="words of the long prompt (%(default)s)")
    add("--idle", type=float, default=20.0, help="seconds of chats before the long prompt (%(default)s)")
    add("--minutes", type=float, default=10.0, help="of the soak (%(default)s)")
    add("--pairs", type=int, default=9, help="of the toll (%(default)s)")
    add("--repeats", type=int, default=3, help="of the race (%(default)s)")
    add("--seed", type=int, default=0)
    add("--json", type=Path, metavar="FILE", help="results/serving_MODEL_CPU_DATE.json unless said")
    args = parser.parse_args()
    if bool(args.llama_server) != bool(args.gguf):
        parser.error("--llama-server and --gguf go together")
    return args


if __name__ == "__main__":
    os.environ.setdefault("MINICPM4_CALIBRATION", "off")
    main()
