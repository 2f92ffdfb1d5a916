"""A server's process, spoken to over its standard streams. Nothing that it writes grows without bound.

The SDK's own transport keeps a line that never ends for ever, which is why this is ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import mcp_types as types
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage

from minicpm4.agents.mcp.wire import Wire
from minicpm4.errors import ToolServerError

__all__ = ["minimal_variables", "stdio"]

READ_BYTES = 1 << 16
END_SECONDS = 2.0  # between closing its input, SIGTERM and SIGKILL; for what it said before it ended
WATCH_SECONDS = 0.25  # between two looks whether it lives
_PASSED_ON = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR"),
    *("SYSTEMROOT", "SYSTEMDRIVE", "USERPROFILE", "APPDATA", "LOCALAPPDATA", "PATHEXT", "TEMP", "TMP"),
)
Messages = tuple[MemoryObjectReceiveStream[Any], MemoryObjectSendStream[Any]]


def minimal_variables(given: Mapping[str, str]) -> dict[str, str]:
    """What a server's process finds in its environment: a few names that programs do not run without, and
    ``given``. Keys and tokens of the user's are not among them."""
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | dict(given)


@asynccontextmanager
async def stdio(
    command: str, args: tuple[str, ...], variables: Mapping[str, str], cwd: str | None, wire: Wire
) -> AsyncIterator[Messages]:
    """The streams of a process that is started here and ended, with all that it has started, at the end.

    Raises ToolServerError where it cannot be started.
    """
    # A relative word is one of the folder in which the process begins, and what is found here is what runs.
    place = os.path.join(cwd or "", command) if os.path.dirname(command) else command
    found = shutil.which(place, path=variables.get("PATH"))
    if found is None:
        raise ToolServerError(f"there is no program {command!r:.120}", "install it, or write its whole path")
    try:
        process = await asyncio.create_subprocess_exec(
            *(os.path.abspath(found), *args),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(variables),
            cwd=cwd,
            start_new_session=True,
        )
    except OSError as error:
        raise ToolServerError(f"{command!r:.120} cannot be started: {error.strerror or error}") from error
    said, heard = anyio.create_memory_object_stream[Any](0)
    told, queued = anyio.create_memory_object_stream[Any](0)
    streams = (said, heard, told, queued)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_read, process, said, wire)
            tasks.start_soon(_complaints, process, wire)
            tasks.start_soon(_write, process, queued, said, wire)
            tasks.start_soon(_watch, process, said, wire)
            try:
                yield heard, told
            finally:
                with anyio.CancelScope(shield=True):
                    await _end(process)
                tasks.cancel_scope.cancel()
    finally:
        for stream in streams:
            stream.close()
        with anyio.CancelScope(shield=True):
            await _end(process)


async def _read(process: asyncio.subprocess.Process, said: MemoryObjectSendStream[Any], wire: Wire) -> None:
    """Its messages, line by line, until it ends or says too much."""
    assert process.stdout is not None
    limits, line = wire.limits, bytearray()
    async with said:
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            while chunk := await process.stdout.read(READ_BYTES):
                if not wire.count(len(chunk)):
                    return
                *whole, rest = chunk.split(b"\n")
                for part in whole:
                    line += part
                    if not await _message(bytes(line), said, wire):
                        return
                    line.clear()
                line += rest
                if len(line) > limits.message_bytes:
                    wire.broke(f"it wrote a message of over {limits.message_bytes:,} bytes")
                    return
            await _broke(process, wire, "it closed its output")


async def _watch(process: asyncio.subprocess.Process, said: MemoryObjectSendStream[Any], wire: Wire) -> None:
    """Tell that it has ended where its output does not: children of its may hold that open."""
    await _gone(process, WATCH_SECONDS)
    await anyio.sleep(END_SECONDS)
    await _broke(process, wire, "")
    said.close()


async def _broke(process: asyncio.subprocess.Process, wire: Wire, else_why: str) -> None:
    """Tell how it has ended, as it may be about to, or ``else_why``."""
    with anyio.move_on_after(END_SECONDS):
        await _gone(process)
    code = process.returncode
    wire.broke(else_why if code is None else f"it ended with code {code}")


async def _message(line: bytes, said: MemoryObjectSendStream[Any], wire: Wire) -> bool:
    """Pass a line on; whether to go on."""
    if len(line) > wire.limits.message_bytes:
        wire.broke(f"it wrote a message of over {wire.limits.message_bytes:,} bytes")
        return False
    if not line.strip():
        return wire.noise(len(line) + 1)
    try:
        message = types.jsonrpc_message_adapter.validate_json(line, by_name=False)
    except (ValueError, RecursionError):
        if line.lstrip().startswith(b"{") and b'"jsonrpc"' in line:  # somebody waits for it
            wire.broke("it wrote a message that cannot be read")
            return False
        return wire.noise(len(line))
    if not wire.count(max(0, wire.limits.least_bytes - len(line))):
        return False
    await said.send(SessionMessage(message))
    return True


async def _complaints(process: asyncio.subprocess.Process, wire: Wire) -> None:
    assert process.stderr is not None
    while chunk := await process.stderr.read(READ_BYTES):
        wire.complained(chunk)


async def _write(
    process: asyncio.subprocess.Process,
    queued: MemoryObjectReceiveStream[Any],
    said: MemoryObjectSendStream[Any],
    wire: Wire,
) -> None:
    assert process.stdin is not None
    async with queued:
        async for sent in queued:
            if isinstance(sent.message, types.JSONRPCRequest):  # answers to what it asks give it no more room
                wire.asked()
            text = sent.message.model_dump_json(by_alias=True, exclude_unset=True)
            try:
                process.stdin.write(text.encode() + b"\n")
                await process.stdin.drain()
            except (OSError, RuntimeError):
                await _broke(process, wire, "it reads no more")
                said.close()
                return


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a process and its children: by the end of its input, else by signals; at once where this is
    cancelled, as by a second Ctrl-C."""
    if process.stdin is not None:
        with contextlib.suppress(OSError, RuntimeError):
            process.stdin.close()
    try:
        for name in ("", "SIGTERM", "SIGKILL"):
            if name:
                _signal(process, name)
            with anyio.move_on_after(END_SECONDS):
                await _gone(process)
            if process.returncode is not None:
                break
    finally:
        _signal(process, "SIGKILL")  # what it started and left behind
    transport = getattr(process, "_transport", None)
    if transport is not None:
        with contextlib.suppress(OSError):
            transport.close()


async def _gone(process: asyncio.subprocess.Process, every: float = 0.01) -> None:
    """Wait for a process, unlike its ``wait`` not for pipes as well, which its children may hold."""
    while process.returncode is None:
        await anyio.sleep(every)


def _signal(process: asyncio.subprocess.Process, name: str) -> None:
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            if process.returncode is None:
                process.kill()
        else:
            os.killpg(process.pid, getattr(signal, name))  # its session's group, which is its own
