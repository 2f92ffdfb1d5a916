"""Who takes part: a process for each engine, and the columns that it fills."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from .child import Child, Unavailable
from .contest import Column
from .parts import ATTENTIONS, Part

OURS = "minicpm4"
PATIENCE = 5  # our own deep points are to be measured, not worked out: so many times the peers' cap


@dataclass(frozen=True, kw_only=True)
class Flavour:
    """Settings of our engine, and what to call them: nothing for the usual ones."""

    name: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    attentions: tuple[str, ...] = ATTENTIONS


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A process to be started. A peer has one column, of the fastest of its ``variants`` at each point; we
    have one for each of the flavour's attentions."""

    name: str
    python: str
    script: str
    cap: float
    request: dict[str, Any] = field(default_factory=dict)
    variants: tuple[str, ...] = ()
    shallow: frozenset[str] = frozenset()
    flavour: Flavour | None = None

    def columns(self, child: Child) -> list[Column]:
        """What ``child`` fills."""
        if self.flavour is None:
            return [
                Column(
                    name=self.name,
                    child=child,
                    variants=self.variants,
                    cap=self.cap,
                    shallow=self.shallow,
                )
            ]
        return [
            Column(
                name=f"{self.name} {attention}",
                child=child,
                variants=(attention,),
                cap=self.cap,
                flavour=self.flavour.name,
                attention=attention,
            )
            for attention in self.flavour.attentions
        ]


def parse_flavour(text: str) -> Flavour:
    """Read ``NAME:key=value,key=value``. Keys are fields of minicpm4.evals.speed.BenchOptions, most of which
    LLM has too; or ``attention``, which of dense and sparse is shown (both unless said); or, in capitals, a
    variable of the environment. Raises ValueError."""
    name, colon, settings = (part.strip() for part in text.partition(":"))
    pairs = [pair.partition("=") for pair in settings.split(",")]
    if not (name and colon and all(key.strip() and equals for key, equals, _ in pairs)):
        raise ValueError(f"{text!r} is not NAME:key=value,key=value")
    values = {key.strip(): value.strip() for key, _, value in pairs}
    attention = values.pop("attention", None)
    if attention not in (None, *ATTENTIONS):
        raise ValueError(f"attention={attention} in {text!r} is neither dense nor sparse")
    return Flavour(
        name=name,
        options={key: _value(value) for key, value in values.items() if not key.isupper()},
        environment={key: value for key, value in values.items() if key.isupper()},
        attentions=(attention,) if attention else ATTENTIONS,
    )


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    try:
        return int(text)
    except ValueError:
        return text


def entries(part: Part, args: argparse.Namespace, batch: int) -> list[Entry]:
    """Everyone who may take part, us first; ``batch``: the most sequences that a point decodes."""
    found = [_ours(Flavour(), part, args, batch)]
    for text in (*part.flavours, *args.ours):
        found.append(_ours(parse_flavour(text), part, args, batch))
    for entry in _peers(args):
        names = {entry.name, entry.name.split()[0]}
        if names & set(part.peers) and not names & set(args.without):
            found.append(replace(entry, request=entry.request | {"batch": batch}))
    return found


def _ours(flavour: Flavour, part: Part, args: argparse.Namespace, batch: int) -> Entry:
    shown = tuple(name for name in flavour.attentions if name in part.attentions) or flavour.attentions
    environment = dict(part.environment) | flavour.environment
    return Entry(
        name=f"{OURS} {flavour.name}".strip(),
        python=sys.executable,
        script="minicpm4_peer.py",
        cap=args.cap * PATIENCE,
        request={"options": flavour.options, "batch": batch},
        flavour=replace(flavour, environment=environment, attentions=shown),
    )


def _peers(args: argparse.Namespace) -> Iterable[Entry]:
    for name, python in (("llama.cpp", args.llama_python), ("llama.cpp-avx2", args.avx2_llama_python)):
        yield Entry(
            name=name, python=python, script="llama_cpp_peer.py", cap=args.cap, variants=("fa-off", "fa-on")
        )
    for precision in ("8-bit", "16-bit"):
        yield Entry(
            name=f"OpenVINO {precision}",
            python=args.openvino_python,
            script="openvino_peer.py",
            cap=args.cap,
            request={"precision": precision, "work": str(args.work.resolve())},
            variants=("", "float32"),
            shallow=frozenset({"float32"}),
        )
    for dtype, cap in (("bfloat16", args.cap), ("float32", args.cap / 2)):
        yield Entry(
            name=f"transformers {dtype}",
            python=args.torch_python,
            script="transformers_peer.py",
            cap=cap,
            request={"dtype": dtype},
            variants=("dynamic", "static"),
        )


def start(
    wanted: Iterable[Entry], request: dict[str, Any], log: Callable[[str], None]
) -> tuple[list[Column], list[Child], dict[str, str]]:
    """Start the processes; also return those left out, and why."""
    columns: list[Column] = []
    children: list[Child] = []
    left_out: dict[str, str] = {}
    for entry in wanted:
        environment = entry.flavour.environment if entry.flavour else {}
        try:
            if not entry.python:
                raise Unavailable("no Python that has it was given")
            child = Child(entry.python, entry.script, request | entry.request, environment)
        except Unavailable as error:
            log(f"{entry.name} is left out: {error}")
            left_out[entry.name] = str(error)
            continue
        children.append(child)
        columns += entry.columns(child)
    return columns, children, left_out
