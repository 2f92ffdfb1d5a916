"""How long constrained decoding takes, and whether its answers are what they should be.

Schemas are made at random by category, after those of JSONSchemaBench: functions of tools, bounds, patterns
and formats, nesting, references, unions, intersections, open objects, and schemas as found, which have rare
keywords. Each is compiled afresh and answered at temperature 1; the package jsonschema checks the answers.
Told are milliseconds of compiling, microseconds of a token's mask (made and laid over the logits) and of
asking for a forced token, in processor time of the thread, and how many answers are valid, refused by name,
or cut by length. An invalid one is a mistake.

    .venv/bin/python benchmarks/grammar.py [MODEL] [--schemas 300] [--noise] [--json FILE]

``--noise`` draws from random logits, over the model's vocabulary: no weights are loaded, so masks of a large
vocabulary can be timed with any tokenizer.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
from commits import heading

from minicpm4 import LLM, SamplingParams
from minicpm4.engine.grammar import Grammars
from minicpm4.engine.held import Grammar
from minicpm4.errors import RequestError
from minicpm4.files import json_text, write_file
from minicpm4.machine import watch_others
from minicpm4.model.source import open_model

Schema = dict[str, Any]
Draft = jsonschema.Draft202012Validator


def _words(text: str) -> list[str]:
    return text.split()


NAMES = _words("id name title status count price tags owner email created city color size level note items")
WORDS = _words("red green blue small large open closed new paid cat dog north south high low")
PATTERNS = ["^[A-Z]{2}[0-9]{4}$", "^[a-z]+(-[a-z]+)*$", "[0-9]{3}", "^#[0-9a-f]{6}$", r"^\d{1,3}\.\d{1,3}$"]
FORMATS = ["date", "date-time", "time", "email", "ipv4", "ipv6", "uuid", "hostname"]
# Keywords of schemas in the wild that few programs follow; some are refused.
RARE: list[Schema] = [
    {"uniqueItems": True},
    {"not": {"type": "null"}},
    {"if": {"properties": {"id": {"const": 1}}}, "then": {"required": ["name"]}},
    {"dependentRequired": {"id": ["name"]}},
    {"format": "iri-reference"},
]


class Maker:
    """Makes schemas of a seed, each by one of ``CATEGORIES``."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def names(self, low: int = 2, high: int = 5) -> list[str]:
        return self.rng.sample(NAMES, self.rng.randint(low, high))

    def table(self, make: Callable[[], Schema], **more: Any) -> Schema:
        """An object of some properties that ``make`` makes, most of them required."""
        names = self.names()
        required = [name for name in names if self.rng.random() < 0.7]
        made = {"type": "object", "properties": {name: make() for name in names}, "required": required}
        return {**made, "additionalProperties": False, **more}

    def plain(self) -> Schema:
        return self.rng.choice(
            [
                {"type": "string", "maxLength": 40},
                {"type": "integer"},
                {"type": "number"},
                {"type": "boolean"},
                {"type": "null"},
                {"enum": self.rng.sample(WORDS, 4)},
                {"const": self.rng.choice(WORDS)},
            ]
        )

    def bounded(self) -> Schema:
        low = self.rng.randint(-50, 50)
        high = low + self.rng.randint(0, 500)
        return self.rng.choice(
            [
                {"type": "integer", "minimum": low, "maximum": high},
                {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": high + 2},
                {"type": "number", "minimum": low / 4, "maximum": high / 4},
                {"type": "integer", "multipleOf": self.rng.choice([2, 5, 10]), "minimum": 0},
                {"type": "string", "minLength": abs(low) % 5, "maxLength": 5 + abs(low)},
            ]
        )

    def text(self) -> Schema:
        if self.rng.random() < 0.5:
            return {"type": "string", "pattern": self.rng.choice(PATTERNS), "maxLength": 60}
        return {"type": "string", "format": self.rng.choice(FORMATS)}

    def array(self, depth: int = 2) -> Schema:
        low = self.rng.randint(0, 2)
        made: Schema = {"type": "array", "minItems": low, "maxItems": low + self.rng.randint(1, 3)}
        if depth and self.rng.random() < 0.4:
            return {**made, "items": self.array(depth - 1)}
        if self.rng.random() < 0.2:
            return {"type": "array", "prefixItems": [self.plain(), self.bounded()], "items": False}
        return {**made, "items": self.rng.choice([self.plain, self.bounded])()}

    def nested(self, depth: int = 3) -> Schema:
        deeper = depth and self.rng.random() < 0.5
        return self.table(lambda: self.nested(depth - 1)) if deeper else self.plain()

    def function(self) -> Schema:
        """The arguments of a tool, as programs declare them."""
        made = self.table(lambda: {**self.plain(), "description": " ".join(self.rng.sample(WORDS, 6))})
        return {"$schema": "http://json-schema.org/draft-07/schema#", **made}

    def references(self) -> Schema:
        parts = {"point": self.table(self.bounded), "label": self.plain()}
        parts["node"] = self.table(self.plain)
        parts["node"]["properties"]["next"] = {"$ref": "#/$defs/node"}
        made = self.table(lambda: {"$ref": f"#/$defs/{self.rng.choice([*parts])}"})
        return {"$defs": parts, **made}

    def union(self) -> Schema:
        def one() -> Schema:
            return self.rng.choice(
                [
                    {"anyOf": [self.plain(), self.bounded(), {"type": "null"}]},
                    {"type": ["string", "null"], "maxLength": 20},
                    {"oneOf": [{"type": "integer", "minimum": 0}, {"enum": self.rng.sample(WORDS, 3)}]},
                ]
            )

        kinds = self.rng.sample(WORDS, 2)
        tagged = [self.table(self.plain) for _ in kinds]
        for kind, table in zip(kinds, tagged, strict=True):
            table["properties"] = {"kind": {"const": kind}, **table["properties"]}
            table["required"] = ["kind", *table["required"]]
        return self.rng.choice([self.table(one), {"anyOf": tagged}, {"oneOf": tagged}])

    def intersection(self) -> Schema:
        first, second = self.names(1, 2), self.names(1, 2)
        return {
            "type": "object",
            "allOf": [{"required": first}, {"required": second}],
            "properties": {name: self.bounded() for name in {*first, *second}},
            "additionalProperties": False,
        }

    def open(self) -> Schema:
        made = self.table(self.plain)
        made["additionalProperties"] = self.rng.choice([{"type": "boolean"}, self.bounded(), False])
        if self.rng.random() < 0.5:
            made["patternProperties"] = {"^x_[a-z]{1,6}$": self.plain()}
        return made

    def found(self) -> Schema:
        """Of everything, some with a rare keyword."""
        makers = [self.plain, self.bounded, self.text, self.array, self.nested, self.open]
        made = self.table(lambda: self.rng.choice(makers)())
        made = {"title": "Record", "description": "As found", "x-order": 3, **made}
        return {**made, **self.rng.choice(RARE)} if self.rng.random() < 0.2 else made


CATEGORIES: dict[str, Callable[[Maker], Schema]] = {
    "functions": Maker.function,
    "bounds": lambda maker: maker.table(maker.bounded),
    "patterns and formats": lambda maker: maker.table(maker.text),
    "arrays": Maker.array,
    "nested objects": lambda maker: maker.table(maker.nested),
    "references": Maker.references,
    "unions": Maker.union,
    "intersections": Maker.intersection,
    "open objects": Maker.open,
    "as found": Maker.found,
}


class Times:
    """Seconds of the processor that calls took, by name."""

    def __init__(self) -> None:
        self.taken: dict[str, list[float]] = {"mask": [], "forced": [], "compile": []}

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(work)
        def call(*values: Any) -> Any:
            start = time.thread_time()
            try:
                return work(*values)
            finally:
                self.taken[name].append(time.thread_time() - start)

        return call

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Times each mask and each question for a forced token meanwhile."""
        adjust, forced = Grammar.adjust, Grammar.forced
        Grammar.adjust = self.timed("mask", adjust)  # type: ignore[method-assign]
        Grammar.forced = self.timed("forced", forced)  # type: ignore[method-assign]
        try:
            yield
        finally:
            Grammar.adjust, Grammar.forced = adjust, forced  # type: ignore[method-assign]

    def figures(self) -> dict[str, Any]:
        units = {"mask": ("us", 1e6), "forced": ("us", 1e6), "compile": ("ms", 1e3)}
        made = {}
        for name, (unit, factor) in units.items():
            values = np.array(self.taken[name] or [0.0]) * factor
            made[f"{name}_{unit}"] = {
                "count": len(self.taken[name]),
                "p50": round(float(np.percentile(values, 50)), 2),
                "p99": round(float(np.percentile(values, 99)), 2),
                "most": round(float(values.max()), 2),
            }
        return made


class Noise:
    """Stands for a model: draws evenly spread logits, by the steps that the engine's sampler takes."""

    def __init__(self, name: str) -> None:
        self.text = open_model(name).text()
        self.size = self.text.tokenizer.vocab_size
        self.grammars = Grammars(self.text, self.text.end_ids, self.size)

    def answer(self, params: SamplingParams, seed: int, most: int) -> tuple[str, str, int]:
        rng, ids = np.random.default_rng(seed), []
        grammar = self.grammars.start(params, [0])
        assert grammar is not None
        while not grammar.complete and len(ids) < most:
            token = grammar.forced()
            if token is None:
                logits = rng.gumbel(size=self.size).astype(np.float32)
                grammar.adjust(logits)
                token = int(np.argmax(logits))
            if token in self.text.end_ids:
                break
            ids.append(token)
            grammar.accept(token)
        whole = grammar.complete or len(ids) < most
        text = self.text.tokenizer.decode(ids, continuation=True)
        return text, "stop" if whole else "length", len(ids)


class Model:
    """A model, asked in chats."""

    def __init__(self, name: str) -> None:
        self.llm = LLM(name, context=2048, max_batch=1)
        self.grammars: Grammars = self.llm.engine._grammars  # type: ignore[attr-defined]

    def answer(self, params: SamplingParams, seed: int, most: int) -> tuple[str, str, int]:
        question = [{"role": "user", "content": f"Invent record number {seed} as JSON."}]
        out = self.llm.chat(question, params)
        return out.text, out.finish_reason, len(out.token_ids)


def measure(source: Noise | Model, schemas: list[Schema], most: int) -> tuple[dict[str, Any], Times]:
    """The answers of one category, and the times."""
    times, ends, tokens, notes = Times(), Counter[str](), 0, []
    for seed, schema in enumerate(schemas):
        params = SamplingParams(json_schema=schema, temperature=1.0, seed=seed, max_tokens=most)
        source.grammars._kept.clear()
        try:
            times.timed("compile", source.grammars.check)(params)
            with times.watch():
                text, reason, count = source.answer(params, seed, most)
        except RequestError as error:
            ends["refused"] += 1
            notes.append(f"refused: {error.condition}")
            continue
        tokens += count
        if reason == "length":
            ends["cut"] += 1
            continue
        try:
            Draft.validate(Draft(schema, format_checker=Draft.FORMAT_CHECKER), json.loads(text))
            ends["valid"] += 1
        except (ValueError, jsonschema.ValidationError) as error:
            ends["invalid"] += 1
            notes.append(f"invalid: {text[:300]}: {str(error).splitlines()[0]}")
    counts = {name: ends[name] for name in ("valid", "invalid", "refused", "cut")}
    return {"schemas": len(schemas), **counts, "tokens": tokens, **times.figures(), "notes": notes}, times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--schemas", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--noise", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    source = Noise(arguments.model) if arguments.noise else Model(arguments.model)
    source.grammars.check(SamplingParams(json_schema=True))  # the vocabulary is made once a model
    others, maker, rows, every = watch_others(), Maker(arguments.seed), {}, Times()
    heads = f"{'mask us p50, p99':>20}{'compile ms p50, p99':>21}"
    print(f"{'':22}{'valid':>7}{'invalid':>9}{'refused':>9}{'cut':>5}{heads}")
    for place, (name, make) in enumerate(CATEGORIES.items()):
        count = arguments.schemas // len(CATEGORIES) + (place < arguments.schemas % len(CATEGORIES))
        rows[name], times = measure(source, [make(maker) for _ in range(count)], arguments.max_tokens)
        for kind, values in times.taken.items():
            every.taken[kind] += values
        show(name, rows[name])
    sums = {
        key: sum(row[key] for row in rows.values())
        for key in ("schemas", "valid", "invalid", "refused", "cut", "tokens")
    }
    total = {**sums, **every.figures()}
    show("all", total)
    if arguments.json:
        report = {
            **heading(),
            "other_processes_cores": others(),
            "model": Path(arguments.model).name,
            "vocabulary": source.grammars.vocab_size,
            "logits": "noise" if arguments.noise else "the model's",
            "seed": arguments.seed,
            "max_tokens": arguments.max_tokens,
            "total": total,
            "categories": rows,
        }
        write_file(arguments.json, json_text(report, indent=1, ascii_only=False) + "\n")


def show(name: str, row: dict[str, Any]) -> None:
    mask, made = row["mask_us"], row["compile_ms"]
    print(
        f"{name:22}{row['valid']:>7}{row['invalid']:>9}{row['refused']:>9}{row['cut']:>5}"
        f"{mask['p50']:>11.1f}{mask['p99']:>9.1f}{made['p50']:>12.2f}{made['p99']:>9.2f}"
    )


if __name__ == "__main__":
    main()
