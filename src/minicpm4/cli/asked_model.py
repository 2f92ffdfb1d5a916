"""The model that commands with tools ask: loaded here, or behind an address."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minicpm4.cli.options import EngineFlags, given_of, require_only
from minicpm4.cli.sampling import SamplingFlags
from minicpm4.config.strict import require
from minicpm4.errors import RequestError
from minicpm4.evals.results import Result, hash_of, hashes_of, result_of, weights_of

if TYPE_CHECKING:
    from minicpm4.agents.mcp.models import Model

KEY_VARIABLE = "MINICPM4_ENDPOINT_KEY"
DEFAULTS = {"max_tokens": 1024, "temperature": 0.0}  # a call is right or wrong: nothing is gained by chance
# What of sampling an OpenAI-compatible API has.
SENT = (
    *("max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty"),
    *("logit_bias", "seed", "stop"),
)
MOST_BIAS = 100.0  # of that API
EndpointOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Ask --model at this OpenAI-compatible address (up to /v1) instead of loading it; its key "
        f"stands in {KEY_VARIABLE}.",
    ),
]
HeldOption = Annotated[
    bool | None,
    typer.Option(
        "--held/--free", help="Hold calls to the tools' schemas. Default: held, with --endpoint free."
    ),
]
_TEMPLATE: dict[str, Any] = {  # a conversation with a call, as the template shows it
    "messages": [{"role": "system", "content": "Call tools."}, {"role": "user", "content": "2 + 3?"}],
    "tools": [
        {
            "type": "function",
            "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}},
        }
    ],
}


def asked_model(
    line: typer.Context, model: str, endpoint: str | None, engine: EngineFlags, sampling: SamplingFlags
) -> AskedModel:
    """Who is asked, by the options of ``line``. Raises ConfigError for one that would not be read."""
    if endpoint is not None:
        unread = {f.name for group in (engine, sampling) for f in fields(group)}.difference(SENT)
        every = {one.name or "" for one in line.command.params}
        require_only(line, every - unread, "--endpoint, whose API has no such setting")
    return AskedModel(model=model, endpoint=endpoint, engine=engine, sampling=sampling)


@dataclass(frozen=True, kw_only=True, slots=True)
class AskedModel:
    """Who is asked, and how. Raises ConfigError for values that are wrong."""

    model: str
    endpoint: str | None
    engine: EngineFlags
    sampling: SamplingFlags

    def __post_init__(self) -> None:
        self.sampling.params(DEFAULTS)
        if self.endpoint is not None:
            self._sent()

    def held(self, given: bool | None, option: str = "--held") -> bool:
        """Whether calls are held to the tools' schemas: where nothing is ``given``, if the model is here.
        Raises ConfigError."""
        elsewhere = self.endpoint is not None
        told = f"{option} is for models that are loaded here: nothing holds the calls of --endpoint"
        require(not (elsewhere and given), told, "leave it out: its calls are free")
        return not elsewhere if given is None else given

    @property
    def limit(self) -> str:
        """Of tokens, as the option that says it."""
        return f"--max-tokens {self.sampling.params(DEFAULTS).max_tokens}"

    def load(self, *, hold: bool = True) -> Model:
        """``hold``: its calls. Raises Minicpm4Error."""
        from minicpm4.agents.mcp.models import Endpoint, Local

        if self.endpoint is not None:
            key = os.environ.get(KEY_VARIABLE, "")
            return Endpoint(self.endpoint, self.model, key, self._sent(), hold=hold)
        llm = self.engine.load(self.model)
        if not llm.has_chat_template:
            raise RequestError(f"{self.model} has no chat template", "choose a chat model")
        speaker = Local.of(llm, self.sampling.params(DEFAULTS))
        speaker.hold = hold
        return speaker

    def result(
        self,
        speaker: Model,
        *,
        kind: str,
        tasks: Any,
        settings: Any,
        items: dict[str, float],
        cut: int | None,
    ) -> Result:
        """Of a run, for `eval compare`: scores by item. What an endpoint's model is shown, and in which
        tokens, nobody knows here."""
        from minicpm4.agents.mcp.models import Local

        params = self.sampling.params(DEFAULTS)
        told: dict[str, Any] = {"kind": kind, "model": self.model, "engine": self.engine.told()}
        told |= {"items": items, "cut": cut}
        if isinstance(speaker, Local):
            hashes = hashes_of(speaker.llm, tasks=tasks, settings=settings, chat=True, params=params)
            shown = speaker.llm.chat_ids(**_TEMPLATE)
            hashes["template"] = hash_of(speaker.llm.tokenizer.decode(shown, skip_special_tokens=False))
            return result_of(speaker.llm, hashes=hashes, **told)
        given = [settings, {name: repr(value) for name, value in asdict(params).items()}]
        hashes = {"tasks": hash_of(tasks), "template": "", "tokenizer": "", "settings": hash_of(given)}
        nothing: dict[str, Any] = {
            "prompt_tokens": 0,
            "new_tokens": 0,
            "seconds": 0.0,
            "memory": 0,
            "machine": "",
        }
        return Result(**told, description=str(self.endpoint), hashes=hashes, **nothing)

    def about(self, speaker: Model) -> dict[str, Any]:
        """What decides its answers, for reports and for what is kept: who is asked, what was given; hashes
        of sampling, with what files said, and, where the model is here, of its template and tokenizer, and of
        its weights. Raises CheckpointError."""
        from minicpm4.agents.mcp.models import Local

        llm = speaker.llm if isinstance(speaker, Local) else None
        shown = [] if llm is None else llm.chat_ids(**_TEMPLATE)
        sampling = {name: repr(value) for name, value in asdict(self.sampling.params(DEFAULTS)).items()}
        return {
            "model": self.model,
            "endpoint": self.endpoint,
            "engine": self.engine.told(),
            "sampling": given_of(self.sampling),
            "hash": hash_of([sampling, shown]),
            **({} if llm is None else {"weights": weights_of(llm)}),
        }

    def _sent(self) -> dict[str, Any]:
        """What an endpoint is told beside messages and tools. Raises ConfigError for what it cannot be."""
        params = self.sampling.params(DEFAULTS)
        given = given_of(self.sampling)
        sent = {name: getattr(params, name) for name in SENT if name in given or name in DEFAULTS}
        if "stop" in sent:
            sent["stop"] = list(params.stop)
        if "logit_bias" in sent:
            sent["logit_bias"] = {str(token): bias for token, bias in params.logit_bias.items()}
            wild = [bias for bias in params.logit_bias.values() if not -MOST_BIAS <= bias <= MOST_BIAS]
            told = f"--logit-bias {wild[:1]} for --endpoint"
            require(not wild, told, f"give -{MOST_BIAS:g} to {MOST_BIAS:g}")
        return sent
