"""Options that say how tokens are chosen: one for every field of SamplingParams (a test ties them).

``attention`` is among the options of the engine, where it holds for all that a command asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from minicpm4.cli.options import given_of
from minicpm4.config.strict import require
from minicpm4.errors import ConfigError
from minicpm4.files import parse_json, read_text

if TYPE_CHECKING:
    from minicpm4 import SamplingParams

MAX_TOOLS_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingFlags:
    """How tokens are chosen, and when to stop."""

    max_tokens: Annotated[
        int | None,
        Option("--max-tokens", "-n", help="Most new tokens (256; evaluations: 512, of calls 1,024)."),
    ] = None
    temperature: Annotated[
        float | None,
        Option(
            "--temperature",
            "-t",
            help="0 takes the likeliest token. Without these settings: as the model suggests, else 0.7 "
            "with --top-p 0.7; in evaluations 0.",
        ),
    ] = None
    top_k: Annotated[int | None, Option(help="Choose among the k likeliest tokens.")] = None
    top_p: Annotated[
        float | None, Option(help="Choose among the likeliest tokens that sum to this probability.")
    ] = None
    min_p: Annotated[
        float | None, Option(help="Drop tokens below this share of the likeliest one's probability.")
    ] = None
    repetition_penalty: Annotated[float | None, Option(help="Above 1: fewer repeats (1: off).")] = None
    presence_penalty: Annotated[
        float | None, Option(help="Subtracted from logits of tokens already written.")
    ] = None
    frequency_penalty: Annotated[float | None, Option(help="The same, once per occurrence.")] = None
    logit_bias: Annotated[
        list[str] | None,
        Option(metavar="ID=BIAS", help="Added to the logit of a token id; -inf forbids it. Several times."),
    ] = None
    seed: Annotated[int | None, Option(help="Makes sampling repeatable.")] = None
    min_tokens: Annotated[int | None, Option(help="Fewest new tokens: none ends the answer before.")] = None
    ignore_eos: Annotated[
        bool | None, Option("--ignore-eos", help="Go on behind tokens that end an answer.")
    ] = None
    stop_token_ids: Annotated[
        list[int] | None, Option("--stop-token-id", metavar="ID", help="Stop at this token. Several times.")
    ] = None
    stop: Annotated[
        list[str] | None,
        Option(
            metavar="TEXT",
            help="Stop before this text, which may name special tokens; may be given several times.",
        ),
    ] = None
    skip_special_tokens: Annotated[
        bool | None,
        Option(
            "--hide-special/--show-special", help="Special tokens in the text of an answer. Default: hidden."
        ),
    ] = None
    json_schema: Annotated[
        str | None,
        Option(metavar="FILE|TEXT", help="Answer with JSON that fits this schema; {} is any object."),
    ] = None
    regex: Annotated[
        str | None, Option(metavar="PATTERN", help="Answer with text that this regular expression matches.")
    ] = None
    grammar: Annotated[
        str | None,
        Option(metavar="FILE", help="Answer by this grammar, in Lark or GBNF; sql is a SELECT statement."),
    ] = None
    choice: Annotated[
        list[str] | None,
        Option(metavar="TEXT", help="Answer with one of these texts; to be given several times."),
    ] = None

    def params(self, defaults: Mapping[str, Any] | None = None) -> SamplingParams:
        """Sampling parameters with what was given, over ``defaults`` of the model. Raises ConfigError."""
        from minicpm4.engine.params import MAX_GRAMMAR_CHARS, SamplingParams

        given = given_of(self)
        if self.logit_bias is not None:
            given["logit_bias"] = dict(map(_bias, self.logit_bias))
        for name in ("stop", "choice", "stop_token_ids"):
            if name in given:
                given[name] = tuple(given[name])
        most = 4 * MAX_GRAMMAR_CHARS  # bytes
        if self.json_schema is not None:
            given["json_schema"] = _schema(self.json_schema, most)
        if self.grammar is not None and self.grammar != "sql":
            given["grammar"] = read_text(Path(self.grammar), most, ConfigError, "give the file of a grammar")
        return SamplingParams(**{**(defaults or {}), **given})


def _schema(given: str, most: int) -> Any:
    """The JSON of --json-schema: the option itself, or the file that it names. Raises ConfigError."""
    text = given
    if given.strip() != "true" and not given.lstrip().startswith("{"):
        text = read_text(Path(given), most, ConfigError, "give a JSON schema, or a file with one")
    if text.strip() == "true":
        return True
    return parse_json(text, "--json-schema", ConfigError)


def _bias(text: str) -> tuple[int, float]:
    """A token id and its bias, of ``ID=BIAS``. Raises ConfigError."""
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise ConfigError(f"--logit-bias has {text!r:.60}", "write ID=BIAS, as in 42=-5 or 42=-inf") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleFlags:
    """What of a single answer is told, and how many of it there are."""

    samples: Annotated[int | None, Option("--samples", help="So many answers to the prompt (1).")] = None
    logprobs: Annotated[
        int | None,
        Option(metavar="K", help="With --json: log probabilities of each token and of the K best there."),
    ] = None
    tools: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="Tools that the answer may call: JSON, a list of functions as chat templates take them. "
            "Calls are held to their schemas; nothing is called.",
        ),
    ] = None

    @property
    def parameters(self) -> dict[str, Any]:
        """Fields of SamplingParams, by name. Raises ConfigError."""
        given = {"n": self.samples, "logprobs": self.logprobs}
        found: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if (tools := self.functions) is not None:
            from minicpm4.engine.calls import Calls

            found["calls"] = Calls(tools=tools)
        return found

    @property
    def functions(self) -> list[dict[str, Any]] | None:
        """The tools of the file. Raises ConfigError."""
        if self.tools is None:
            return None
        remedy = 'give a list, as in [{"type": "function", "function": {"name": …, "parameters": …}}]'
        found = parse_json(
            read_text(self.tools, MAX_TOOLS_BYTES, ConfigError, remedy), str(self.tools), ConfigError, remedy
        )
        right = isinstance(found, list) and found and all(isinstance(one, dict) for one in found)
        require(bool(right), f"{self.tools} holds no tools", remedy)
        return list(found)
