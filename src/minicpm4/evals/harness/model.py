"""lm-evaluation-harness's model ``minicpm4``: an LLM in this process, asked by the harness's own rules.

Contexts and ends are cut into tokens as the harness's ``hf`` does, so that what differs between the two is
arithmetic alone. Nothing is cut to fit unless ``truncate=True`` says so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lm_eval.models  # noqa: F401 - it makes the others known, only where none is yet
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from minicpm4 import LLM, SamplingParams
from minicpm4.config.strict import check_integer, require, suggest
from minicpm4.errors import ConfigError, RequestError

__all__ = ["Minicpm4", "sampling_of"]

TOGETHER = 128  # asked at a time: enough to keep a batch full
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_TAKEN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
logger = logging.getLogger("minicpm4")
Pair = tuple[tuple[str, str], list[int], list[int]]


@dataclass(frozen=True, slots=True)
class _Answer:
    """``stopped``: within a thought; ``cut``: by the limit of tokens, before what ends it."""

    text: str
    stopped: bool
    cut: bool


@register_model("minicpm4")
class Minicpm4(TemplateLM):  # type: ignore[misc]
    """``model`` (or ``pretrained``): a name, folder, .gguf file or hub repository; further arguments are
    those of ``minicpm4.LLM``. ``batch_size``: sequences at a time (auto: 8). ``enable_thinking`` as in chats:
    thoughts are left out of answers. ``truncate``: contexts that do not fit lose tokens at their start, as
    the harness's other models have it; else they are refused before anything is asked. Raises Minicpm4Error.
    """

    backend = "causal"

    def __init__(
        self,
        model: str | None = None,
        pretrained: str | None = None,
        *,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        truncate: bool = False,
        enable_thinking: bool | None = None,
        max_gen_toks: int = 256,
        **settings: Any,
    ) -> None:
        super().__init__()
        name = model or pretrained
        require(name is not None, "no model is named", "give --model_args model=NAME")
        require(not (model and pretrained), "model and pretrained are given", "give one of them")
        for what, value in (("truncate", truncate), ("enable_thinking", enable_thinking)):
            require(value in (None, True, False), f"{what} = {value!r} is neither True nor False")
        check_integer("max_gen_toks", max_gen_toks, 1, 1 << 24)
        # The command says cuda:0 where nobody says anything: which kernels run is for backend=… to say.
        known = device is None or device == "cpu" or str(device).startswith("cuda")
        require(known, f"device = {device!r} is not known here", "give model_args backend=cpu or gpu")
        settings.setdefault("max_batch", _batch(batch_size, max_batch_size))
        self.llm = LLM(str(name), **settings)
        self.truncate, self.enable_thinking, self.max_gen_toks = truncate, enable_thinking, max_gen_toks

    # -- what the harness asks of the text ------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        ends = self.llm.tokenizer.eos_token_ids
        if not ends:
            raise RequestError(
                f"{self.llm.name} has no end token", "nothing can stand before an empty context"
            )
        return ends[0]

    @property
    def prefix_token_id(self) -> int:
        first = self.llm.tokenizer.bos_token_id
        return self.eot_token_id if first is None else first

    @property
    def max_length(self) -> int:
        return self.llm.limits.context

    @property
    def tokenizer_name(self) -> str:
        return f"minicpm4-{self.llm.tokenizer.digest[:16]}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **more: Any) -> list[int]:
        """With the begin token where the checkpoint wants one, unless it stands there or is not wanted."""
        own = self.llm.tokenizer
        ids = own.encode(string, add_special_tokens=False)
        return ids if add_special_tokens is False else own.with_prefix(ids)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Its source, for the harness's report."""
        if not chat_template:
            return None
        require(chat_template is True, "a chat template by name is not built here", "give none")
        require(self.llm.has_chat_template, f"{self.llm.name} has no chat template", "ask without")
        return self.llm.chat_template

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """As text; without ``add_generation_prompt`` it ends where its last message does, to go on there."""
        text = self.llm.chat_text(
            chat_history,
            enable_thinking=self.enable_thinking,
            variables={"add_generation_prompt": add_generation_prompt},
        )
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"].strip()
        at = text.rfind(last)
        require(at >= 0, "the chat template alters the beginning of an answer", "ask without gen_prefix")
        return text[: at + len(last)]

    # -- likelihoods ----------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = False, **more: Any
    ) -> list[tuple[float, bool]]:
        texts = []
        for (context, continuation), before, after in requests:
            if not after:
                told = f"the tokens of {_short(continuation)} are all part of {_short(context)}'s last one"
                raise RequestError(told, "change the task's target_delimiter")
            texts.append(([*before, *after], len(before)))
        texts = self._fitted(texts, self.max_length + 1)
        # Alike ones stand together: what is asked at a time then takes alike long, and is read once.
        order = sorted(range(len(texts)), key=lambda i: (-len(texts[i][0]), texts[i][0]))
        places: dict[int, tuple[float, bool]] = {}
        for some in _pieces(order, disable_tqdm, "log likelihoods"):
            for place, ending in zip(some, self.llm.endings([texts[i] for i in some]), strict=True):
                places[place] = (ending.logprob, ending.greedy)
                pair = requests[place][0]
                if pair is not None:
                    self.cache_hook.add_partial("loglikelihood", pair, places[place])
        return [places[i] for i in range(len(texts))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows of the context where they are longer: each token is foreseen once."""
        texts: list[tuple[list[int], int]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for before, after in map(make_disjoint_window, windows):
                texts.append(([*before, *after], len(before)))
                owners.append(number)
        sums = [0.0] * len(requests)
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i][0]))
        for some in _pieces(order, disable_tqdm, "texts"):
            for place, ending in zip(some, self.llm.endings([texts[i] for i in some]), strict=True):
                sums[owners[place]] += ending.logprob
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def _fitted(self, texts: list[tuple[list[int], int]], room: int) -> list[tuple[list[int], int]]:
        """Texts of at most ``room`` tokens, each with at least one before its end. Raises RequestError."""
        long = [ids for ids, _ in texts if len(ids) > room]
        if not long:
            return texts
        self._require_truncate(len(long), len(texts), max(map(len, long)))
        return [(ids[-room:], max(1, first - max(0, len(ids) - room))) for ids, first in texts]

    def _require_truncate(self, long: int, every: int, longest: int) -> None:
        if not self.truncate:
            raise RequestError(
                f"{long} of {every} requests do not fit the context of {self.max_length:,} tokens "
                f"(the longest has {longest:,})",
                "give model_args context=…, or truncate=True, which cuts their beginnings",
            )

    # -- answers --------------------------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers without their thoughts, up to the first of the texts in ``until``; how many the limit of
        tokens ended is logged."""
        asked = [self._asked(*request.args[:2]) for request in requests]
        long = [len(ids) for ids, params in asked if len(ids) + (params.max_tokens or 0) > self.max_length]
        if long:
            self._require_truncate(len(long), len(asked), max(long))
            asked = [(self._cut(ids, params), params) for ids, params in asked]
        found, cut = [""] * len(asked), 0
        for some in _pieces(list(range(len(asked))), disable_tqdm, "answers"):
            for place, one in zip(some, self._answers([asked[i] for i in some]), strict=True):
                found[place], cut = one.text, cut + one.cut
                self.cache_hook.add_partial("generate_until", requests[place].args, one.text)
        if cut:
            most = max(params.max_tokens or 0 for _, params in asked)
            logger.warning("%d of %d answers were cut at max_gen_toks, %d at most", cut, len(asked), most)
        return found

    def _asked(self, context: str, given: Mapping[str, Any]) -> tuple[list[int], SamplingParams]:
        params = sampling_of(given, self.max_gen_toks)
        return self.tok_encode(context) or [self.prefix_token_id], params

    def _cut(self, ids: list[int], params: SamplingParams) -> list[int]:
        room = self.max_length - (params.max_tokens or 0)
        require(room > 0, f"max_gen_toks = {params.max_tokens} leaves no room for a prompt", "lower it")
        return ids[-room:]

    def _answers(self, asked: Sequence[tuple[list[int], SamplingParams]]) -> list[_Answer]:
        """What ends an answer may stand in a thought, where it ends nothing: who thinks is not stopped by
        it, and whose thought it did stop is asked again."""
        thinks = self.enable_thinking is not False and self.llm.switches_thinking
        found = self._said(asked, [thinks] * len(asked))
        again = [i for i, one in enumerate(found) if one.stopped]
        if again:
            said = self._said([asked[i] for i in again], [True] * len(again))
            for place, one in zip(again, said, strict=True):
                found[place] = one
        return found

    def _said(
        self, asked: Sequence[tuple[list[int], SamplingParams]], freely: Sequence[bool]
    ) -> list[_Answer]:
        """``freely``: without stops."""
        params = [one.changed(stop=()) if free else one for (_, one), free in zip(asked, freely, strict=True)]
        outputs = self.llm.generate([ids for ids, _ in asked], params)
        found = []
        for (_, wanted), free, out in zip(asked, freely, outputs, strict=True):
            thought, answer = self.llm.replies.apart(out.text, out.token_ids, prompt=out.prompt_token_ids)
            within = bool(thought or out.text) and not answer
            stopped = within and not free and bool(wanted.stop) and out.finish_reason == "stop"
            text, long = _until(answer, wanted.stop), out.finish_reason == "length"
            found.append(_Answer(text, stopped, long and text == answer))
        return found


def sampling_of(given: Mapping[str, Any], most: int) -> SamplingParams:
    """What a task's generation_kwargs say, ``most`` tokens unless they say so. Raises ConfigError for what is
    not known."""
    known = ("until", "do_sample", *_LENGTHS, *_TAKEN)
    for name in given:
        if name not in known:
            raise ConfigError(f"generation_kwargs has {name!r}", suggest(str(name), list(known)))
    until = given.get("until") or []
    lengths = [given[name] for name in _LENGTHS if given.get(name) is not None]
    taken = {name: given[name] for name in _TAKEN if given.get(name) is not None}
    temperature = taken.pop("temperature", None)
    drawn = given.get("do_sample")
    if drawn is None:  # as the harness has it where a task does not say
        drawn = temperature not in (None, 0, 0.0)
    # What else is said, as a repetition penalty, counts for the likeliest token, too.
    taken["temperature"] = float(1.0 if temperature is None else temperature) if drawn else 0.0
    stops = [until] if isinstance(until, str) else list(until)
    return SamplingParams(
        max_tokens=int(lengths[0]) if lengths else most, stop=tuple(filter(None, stops)), **taken
    )


def _batch(given: int | str | None, most: int | None) -> int:
    """Sequences at a time, of what the harness was told: a number, or auto, which may have more behind it."""
    if given is None or str(given).startswith("auto"):
        return most or 8
    require(
        str(given).isdecimal() and int(given) > 0,
        f"batch_size = {given!r} is no number above 0",
        "give one, or auto",
    )
    return int(given)


def _pieces(places: list[int], silent: bool, what: str) -> Iterator[list[int]]:
    with tqdm(total=len(places), disable=silent, desc=what) as bar:
        for begin in range(0, len(places), TOGETHER):
            some = places[begin : begin + TOGETHER]
            yield some
            bar.update(len(some))


def _until(text: str, stops: str | Iterable[str]) -> str:
    ends = [text.find(stop) for stop in ([stops] if isinstance(stops, str) else stops)]
    return text[: min((end for end in ends if end >= 0), default=len(text))]


def _short(text: str) -> str:
    return repr(text[-40:])
