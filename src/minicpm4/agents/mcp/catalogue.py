"""The 16 servers with which MiniCPM4-MCP was published, and some more: where they come from, what they need.

What is said of them was seen, in November 2026; what could not be had has a stand-in, or says so.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["CATALOGUE", "Entry"]

State = Literal["works", "local part", "needs network", "not here"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """``published``: its name there ("": it is one of ours). ``packages``: of ``source``, pinned;
    ``program``: what they install that is started with ``args``, in which {NAME} is a value of ``settings``:
    by name, what the user has to give. ``needs``: variables, by name, what for; ``system``: programs of the
    system. ``alone``: its packages are all that is installed, not what they say that they need.
    ``stands_in``: what it is in place of; "": it is that server. ``state``: what of it works without a
    network."""

    name: str
    published: str = ""
    source: Literal["pip", "npm", ""] = "pip"
    packages: tuple[str, ...] = ()
    program: str = ""
    args: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    needs: Mapping[str, str] = field(default_factory=dict)
    system: tuple[str, ...] = ()
    python: tuple[int, int] = (3, 11)
    alone: bool = False
    stands_in: str = ""
    state: State = "works"
    note: str = ""

    @property
    def missing(self) -> str:
        """Why it cannot be installed on this machine; "": it can be tried."""
        if not self.packages:
            return self.note
        if sys.version_info[:2] < self.python:
            return f"it needs Python {self.python[0]}.{self.python[1]}"
        return ""


_OLD = "mcp<2"  # servers made with the SDK before 2.0, which do not say so
_KEY = "a key of Amap's web services"
_ENTRIES = (
    Entry(
        name="airbnb",
        published="Airbnb",
        source="npm",
        packages=("@openbnb/mcp-server-airbnb@0.3.0",),
        program="mcp-server-airbnb",
        state="needs network",
    ),
    Entry(
        name="amap-maps",
        published="Amap-Maps",
        source="npm",
        packages=("@amap/amap-maps-mcp-server@0.0.8",),
        program="mcp-amap",
        needs={"AMAP_MAPS_API_KEY": _KEY},
        state="needs network",
    ),
    Entry(
        name="arxiv",
        published="Arxiv",
        packages=("arxiv-mcp-server==0.8.2",),
        program="arxiv-mcp-server",
        args=("--storage-path", "{folder}"),
        settings={"folder": "where papers are kept"},
        state="local part",
        note="without a network it lists what is kept",
    ),
    Entry(
        name="calculator",
        published="Calculator",
        packages=("mcp-server-calculator==0.2.1", _OLD),
        program="mcp-server-calculator",
    ),
    Entry(
        name="computer-control",
        published="Computer-Control",
        packages=("computer-control-mcp==0.3.14",),
        program="computer-control-mcp",
        args=("server",),
        system=("xvfb-run", "xauth"),
        note="550 MB; it moves the mouse of the screen that it is given: without one of its own, yours",
    ),
    Entry(
        name="desktop-commander",
        published="Desktop-Commander",
        source="npm",
        packages=("@wonderwhy-er/desktop-commander@0.2.52",),
        program="desktop-commander",
        note="250 MB; it runs any program",
    ),
    Entry(
        name="filesystem",
        published="Filesystem",
        source="npm",
        packages=("@modelcontextprotocol/server-filesystem@2026.8.31",),
        program="mcp-server-filesystem",
        args=("{folder}",),
        settings={"folder": "the only folder that it reads and writes"},
    ),
    Entry(
        name="github",
        published="GitHub",
        source="npm",
        packages=("@modelcontextprotocol/server-github@2025.4.8",),
        program="mcp-server-github",
        needs={"GITHUB_PERSONAL_ACCESS_TOKEN": "a token of GitHub's"},
        state="needs network",
    ),
    Entry(
        name="gaode",
        published="Gaode",
        packages=("amap-mcp-server==0.1.11", "pydantic<2.12"),
        program="amap-mcp-server",
        needs={"AMAP_MAPS_API_KEY": _KEY},
        stands_in="gaode-mcp-server, which needs Python 3.13; the same service's API",
        state="needs network",
    ),
    Entry(
        name="code-executor",
        published="Code-Executor",
        packages=("mcp-run-python-code==0.0.2", _OLD),
        program="mcp-run-python-code",
        stands_in="mcp_code_executor, which is in no index under that name",
        note="it runs Python with your rights, in no sandbox",
    ),
    Entry(
        name="docx",
        published="Docx",
        packages=("office-word-mcp-server==1.1.11",),
        program="word_mcp_server",
        stands_in="MCP-Doc, which is in no index under that name",
    ),
    Entry(
        name="ppt",
        published="PPT",
        packages=("office-powerpoint-mcp-server==2.0.7", _OLD),
        program="ppt_mcp_server",
        note="give presentation_id with every call",
    ),
    Entry(
        name="pptx",
        published="PPTx",
        source="",
        state="not here",
        note="in no index under its name; what may be a copy needs Python 3.12 and was not tried: use ppt",
    ),
    Entry(
        name="simple-time",
        published="Simple-Time",
        packages=("mcp-simple-timeserver==3.3.2",),
        program="mcp-simple-timeserver",
        note="270 MB",
    ),
    Entry(
        name="slack",
        published="Slack",
        source="npm",
        packages=("@modelcontextprotocol/server-slack@2025.4.25",),
        program="mcp-server-slack",
        needs={"SLACK_BOT_TOKEN": "a bot's token", "SLACK_TEAM_ID": "the team's id"},
        state="needs network",
    ),
    Entry(
        name="whisper",
        published="Whisper",
        packages=("mcp-server-whisper==1.1.0", _OLD),
        program="mcp-server-whisper",
        settings={"folder": "where recordings are"},
        env={"AUDIO_FILES_PATH": "{folder}"},
        needs={"OPENAI_API_KEY": "a key of OpenAI's, who transcribes"},
        state="local part",
        note="without a network it lists recordings",
    ),
    Entry(name="time", packages=("mcp-server-time==2026.10.19",), program="mcp-server-time"),
    Entry(
        name="git",
        packages=("mcp-server-git==2026.10.19",),
        program="mcp-server-git",
        system=("git",),
    ),
    Entry(
        name="sqlite",
        packages=("mcp-server-sqlite==2025.4.25", _OLD),
        program="mcp-server-sqlite",
        args=("--db-path", "{file}"),
        settings={"file": "the database"},
    ),
    Entry(
        name="fetch",
        packages=("mcp-server-fetch==2026.10.24",),
        program="mcp-server-fetch",
        state="needs network",
    ),
    Entry(
        name="memory",
        source="npm",
        packages=("@modelcontextprotocol/server-memory@2026.8.31",),
        program="mcp-server-memory",
        settings={"file": "where it remembers, as file.jsonl"},
        env={"MEMORY_FILE_PATH": "{file}"},
    ),
    Entry(
        name="everything",
        source="npm",
        packages=("@modelcontextprotocol/server-everything@2026.8.31",),
        program="mcp-server-everything",
        note="a server for tests of clients",
    ),
)
CATALOGUE = {entry.name: entry for entry in _ENTRIES}
