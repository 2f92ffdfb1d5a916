"""A scripted engine: what stands on an engine can be tested without a model, in milliseconds.

    from minicpm4 import LLM
    from minicpm4.testing import ScriptedEngine

    engine = ScriptedEngine(["Paris.", ["Lon", TimeoutError("gone")]])
    llm = LLM.over(engine, engine.text, name="scripted")
    assert llm.generate("The capital of France?").text == "Paris."
    assert engine.prompts == ["The capital of France?"]

It is the real engine over a runner that computes nothing: requests are checked, scheduled, batched,
sampled, streamed, aborted and counted as ever. A token is a byte.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from minicpm4.engine.engine import Engine, EngineLimits
from minicpm4.engine.grammar import Grammars
from minicpm4.engine.outputs import Piece
from minicpm4.engine.params import SamplingParams
from minicpm4.engine.request import Request, Sample
from minicpm4.engine.runner import StepResult
from minicpm4.engine.sequence import Sequence as Tokens
from minicpm4.engine.steps import StepPlan
from minicpm4.kernels.ref import RefOps
from minicpm4.kernels.step import Array
from minicpm4.model.cache import PAGE_SIZE
from minicpm4.text.model_text import ModelText
from minicpm4.text.pieces import byte_of_char
from minicpm4.text.template import ChatTemplate
from minicpm4.text.tokenizer import Tokenizer

__all__ = ["Answer", "ScriptedEngine", "byte_text"]

Part = str | BaseException | threading.Event
Answer = str | Sequence[Part]
"""Text, or parts of it: an exception is raised when its turn comes, an event is waited for. A Minicpm4Error
fails its request and no other; any other exception leaves the engine's step."""

SPECIALS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
BOS, EOS = 256, 257
VOCAB_SIZE = 256 + len(SPECIALS)
CERTAIN = 1e4  # a logit beside zeros: probability 1 at any sane temperature
STALL_LIMIT = 60.0  # seconds: a test that forgets to set an event fails, it does not hang
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_text(chat_template: str = CHAT_TEMPLATE, tokens: Sequence[str] = ()) -> ModelText:
    """A tokenizer whose tokens are bytes, with ChatML's control tokens and template, or another template and
    more control ``tokens`` that it writes."""
    backend = Backend(models.BPE(byte_of_char(), []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in (*SPECIALS, *tokens)]
    )
    tokenizer = Tokenizer(backend, bos_token_id=BOS, eos_token_ids=[EOS, VOCAB_SIZE - 1], prefix_ids=[BOS])
    return ModelText.of(tokenizer, ChatTemplate(chat_template, bos_token="<s>", eos_token="</s>"))


class ScriptedEngine(Engine):
    """Answers requests in the order in which they are added, from ``answers``: a list whose last one goes
    on for ever, or a function of the prompt's text. What an answer holds of ``tokens`` are these tokens.

    ``prompts`` and ``params``: what it was asked. ``text``: the Text that belongs to it.
    """

    def __init__(
        self,
        answers: Iterable[Answer] | Callable[[str], Answer] = ("ok",),
        *,
        context: int = 4096,
        max_sequences: int = 8,
        max_rows: int = 256,
        seed: int | None = 0,
        chat_template: str = CHAT_TEMPLATE,
        tokens: Sequence[str] = (),
    ) -> None:
        self.text = byte_text(chat_template, tokens)
        self._tokens = tuple(tokens)
        size = VOCAB_SIZE + len(tokens)
        self.prompts: list[str] = []
        self.params: list[SamplingParams] = []
        self._answers = answers if callable(answers) else _in_order(answers)
        self._scripts: dict[int, _Script] = {}
        super().__init__(
            _Runner(self._scripts, size),
            RefOps(),
            EngineLimits(
                vocab_size=size,
                context=context,
                max_sequences=max_sequences,
                num_pages=max_sequences * -(-context // PAGE_SIZE),
                page_size=PAGE_SIZE,
                max_rows=max(max_rows, max_sequences),
            ),
            text_streams=self.text.stream,
            end_ids=self.text.end_ids,
            grammars=Grammars(self.text, self.text.end_ids, size),
            seed=seed,
        )

    def add(self, request_id: int, ids: Sequence[int], params: SamplingParams) -> None:
        """See EngineAPI."""
        super().add(request_id, ids, params)
        if request_id not in self._scripts:
            prompt = self.text.tokenizer.decode([token for token in ids if token != BOS])
            self._scripts[request_id] = _Script(self._answers(prompt), self._tokens)
            self.prompts.append(prompt)
            self.params.append(params)

    def _next_token(self, request: Request, member: Sample, logits: Array) -> Piece:
        self._scripts[request.request_id].act(member.sequence.num_sampled)
        return super()._next_token(request, member, logits)


class _Script:
    """An answer as tokens, and what is to happen before which of them."""

    def __init__(self, answer: Answer, special: Sequence[str] = ()) -> None:
        numbers = {name: VOCAB_SIZE + i for i, name in enumerate(special)}
        spelled = re.compile("(" + "|".join(map(re.escape, special)) + ")") if special else None
        self.tokens: list[int] = []
        self._actions: dict[int, list[BaseException | threading.Event]] = {}
        for part in [answer] if isinstance(answer, str) else answer:
            if isinstance(part, str):
                for piece in [part] if spelled is None else spelled.split(part):
                    self.tokens += [numbers[piece]] if piece in numbers else piece.encode()
            else:
                self._actions.setdefault(len(self.tokens), []).append(part)

    def token(self, position: int) -> int:
        return self.tokens[position] if position < len(self.tokens) else EOS

    def act(self, position: int) -> None:
        for action in self._actions.pop(position, []):
            if isinstance(action, BaseException):
                raise action
            if not action.wait(STALL_LIMIT):
                raise TimeoutError(f"nobody set the event of a scripted answer in {STALL_LIMIT:.0f} s")


class _Runner:
    """Its logits know the next token of the script."""

    version = 0

    def __init__(self, scripts: dict[int, _Script], size: int) -> None:
        self._scripts, self._size = scripts, size

    def execute(self, plan: StepPlan) -> StepResult:
        """See StepRunner."""
        wanted = [
            self._next(span.sequence, end)
            for span in plan.spans
            for end in range(span.stop - span.num_logits, span.stop)
        ]
        rows = np.zeros((len(wanted), self._size), np.float32)
        rows[np.arange(len(wanted)), wanted] = CERTAIN
        return StepResult(rows, lambda some: some, {})

    def settle(self, plan: StepPlan, accepted: Sequence[Sequence[int]]) -> None:
        """See StepRunner. There is nothing to put anywhere."""

    def _next(self, sequence: Tokens, row: int) -> int:
        """The token after ``row``: of the prompt's own, or of the script."""
        position = row + 1 - sequence.num_prompt
        if position < 0:
            return sequence.tokens[row + 1]
        script = self._scripts.get(sequence.request_id)  # a text that is scored has none
        return EOS if script is None else script.token(position)


def _in_order(answers: Iterable[Answer]) -> Callable[[str], Answer]:
    rest: list[Any] = list(answers)
    assert rest, "a scripted engine needs an answer"
    return lambda _: rest.pop(0) if len(rest) > 1 else rest[0]
