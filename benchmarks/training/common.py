"""What experiments of training share: short runs made of recipes, which go on where they were cut off, and a
result with its picture.

A run's folder is under ``--folder`` (runs/experiments); a result is written into ``--results`` when all runs
are there. Runs of the same settings are taken as they are, so that an experiment may be made in pieces.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from benchmarks.commits import heading
from minicpm4.files import finite, write_file, write_json
from minicpm4.machine import cpu_name
from minicpm4.plot import Curve, chart
from minicpm4.train.going_on import recipe_table
from minicpm4.train.loop import TrainingRun
from minicpm4.train.metrics import read_metrics, thinned
from minicpm4.train.prepare import Prepared, prepare
from minicpm4.train.recipe import Recipe, model_config, parse_recipe
from minicpm4.train.session import TrainingSession
from minicpm4.train.sources import sources
from minicpm4.train.world import World

__all__ = ["MANUALS", "Lab", "Run", "arguments", "last", "only_stage", "recipe", "shape"]

ROOT = Path(__file__).parents[2]
MANUALS = {"kind": "package", "paths": ["apt:python3.11-doc", "apt:sqlite3-doc"], "holdout": 0.02}


def shape(width: int, layers: int = 4, **changed: Any) -> dict[str, Any]:
    """A small model with muP's scales: heads of 32, half as many of keys and values, vocabulary apart."""
    plain = {
        "hidden_size": width,
        "intermediate_size": width * 5 // 2,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 32,
        "num_key_value_heads": width // 64,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "scale_emb": 12.0,
        "scale_depth": 1.4,
        "dim_model_base": 64,
        "tie_word_embeddings": True,
    }
    return plain | changed


def recipe(model: Mapping[str, Any], stages: Sequence[Mapping[str, Any]], **changed: Any) -> dict[str, Any]:
    """A recipe of ``stages`` over MANUALS; validation comes at their ends."""
    plain = {
        "model": model,
        "tokenizer": {"vocab_size": 2048, "corpora": ["manuals"]},
        "corpora": {"manuals": MANUALS},
        "optimiser": {"kind": "muon"},
        "checkpoints": {"every": 250, "last": 1},
        "precision": "float32",
        "seed": 1,
        "validate": 1 << 20,
        "stages": stages,
    }
    return plain | changed


def only_stage(steps: int, **changed: Any) -> list[dict[str, Any]]:
    """The stages of a recipe that has one: constant rate, in the last quarter linear decay."""
    plain = {
        "name": "all",
        "steps": steps,
        "batch_tokens": 2048,
        "context": 256,
        "rate": 0.02,
        "warmup": 20,
        "data": {"manuals": 1.0},
        "decay": {"kind": "linear", "steps": steps // 4},
    }
    return [plain | changed]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run that is done: its lines of metrics and, where asked for, its model's session."""

    lines: Sequence[Mapping[str, Any]]
    session: TrainingSession
    sources: Mapping[str, Any]

    @property
    def validation(self) -> float:
        """Held-out loss at the end, nats a token."""
        return float(next(line["validation"] for line in reversed(self.lines) if "validation" in line))

    def curve(self, name: str = "loss", points: int = 60) -> list[tuple[float, float]]:
        """``name`` over steps, means of neighbours."""
        every = [(float(x["step"]), float(x[name])) for x in self.lines if x.get(name) is not None]
        return [(x, round(y, 4)) for x, y in thinned(every, points)]


class Lab:
    """Where an experiment is made; ``name`` names its folder and result."""

    def __init__(self, name: str, given: argparse.Namespace) -> None:
        self.name, self.given = name, given
        self.console = Console(stderr=True)
        torch.set_num_threads(given.threads)

    def run(self, label: str, table: Mapping[str, Any]) -> Run:
        """Make the run that ``table``, a recipe, says, or find it; corpora and tokenizer are shared by all
        runs with the same ones."""
        recipe = parse_recipe({"name": label, "output": "unused", **table})
        prepared = self.prepared(recipe)
        folder = self.given.folder / self.name / re.sub(r"[^\w.]+", "-", label)
        config = None if recipe.model.start else model_config(recipe, prepared.vocab_size, prepared.special)
        session, given = TrainingSession(recipe, config, World()), sources(recipe, prepared.data)
        with Progress(console=self.console, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task(label, total=recipe.steps)
            runner = TrainingRun(
                recipe,
                folder,
                session,
                given,
                tokenizer=prepared.tokenizer,
                data=prepared.hashes(),
                report=lambda line: bar.update(task, completed=line["step"]),
            )
            outcome = runner.run()
        if not outcome.finished:
            raise SystemExit("interrupted; the same command goes on")
        made = Run(lines=read_metrics(folder), session=session, sources=given)
        self.console.print(f"{label}: training {last(made.lines):.4f}, validation {made.validation:.4f}")
        return made

    def prepared(self, recipe: Recipe) -> Prepared:
        """Tokenizer and packed corpora of ``recipe``, made once."""
        table = recipe_table(recipe)
        about = json.dumps([table["tokenizer"], table["corpora"]], sort_keys=True)
        mark = hashlib.sha256(about.encode()).hexdigest()[:16]
        return prepare(recipe, self.given.folder / "data" / mark, self.console.print)

    def write(
        self,
        title: str,
        curves: Mapping[str, Curve],
        findings: Mapping[str, Any],
        *,
        x: str,
        y: str = "loss, nats a token",
        log_x: bool = False,
        log_y: bool = False,
    ) -> None:
        """Write result and picture, named by processor and date."""
        result = {
            "experiment": self.name,
            "question": title,
            **heading(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "threads": self.given.threads,
            **findings,
            "curves": {label: [list(point) for point in curve] for label, curve in curves.items()},
        }
        words = re.findall(r"[a-z]+", cpu_name().lower())
        stem = f"training_{self.name}_{'-'.join(words[:2]) or 'unknown'}_{datetime.now(UTC):%Y-%m-%d}"
        self.given.results.mkdir(parents=True, exist_ok=True)
        write_json(self.given.results / f"{stem}.json", finite(result))
        picture = chart(title, curves, x, y, log_x=log_x, log_y=log_y)
        write_file(self.given.results / f"{stem}.svg", picture)
        self.console.print(f"{self.given.results / stem}.json and .svg")


def last(lines: Sequence[Mapping[str, Any]], share: float = 0.1) -> float:
    """Mean training loss over the last part of a run."""
    losses = [line["loss"] for line in lines if line.get("loss") is not None]
    return statistics.fmean(losses[-max(1, round(len(losses) * share)) :])


def arguments(doc: str | None, **more: Any) -> argparse.Namespace:
    """The options that all experiments have; ``more``: name=default, of type str."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/experiments"), help="where runs are kept")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads of torch")
    for name, default in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, help=f"default: {default}")
    return parser.parse_args()
