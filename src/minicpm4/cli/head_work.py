"""The work of ``minicpm4 spec train``: what is asked for is checked, answers are made, a head is trained."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from minicpm4.cli.steps import Progress, tell
from minicpm4.cli.terminal import progress_or_lines, sanitize, show, table
from minicpm4.config.strict import require, suggest
from minicpm4.errors import ConfigError, MemoryPlanError
from minicpm4.evals.results import hash_of
from minicpm4.files import making

if TYPE_CHECKING:
    from minicpm4.train.draft_estimate import HeadCost

BATCH = 16  # answers that are generated at a time
PROMPT = 384  # tokens of a prompt at most
RUN, ANSWERS = "training", "answers"  # folders in the output
MAX_STEPS = 10_000_000
SHARE = 0.4  # of the measured peak that training is taken to reach
DTYPES = ("float16", "float32")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What the command was asked for. Raises ConfigError."""

    model: str
    corpus: tuple[str, ...]
    output: Path
    form: str
    prompts: int
    held_out: int
    answer_tokens: int
    temperature: float
    draft_vocab: str
    ranks: Path | None
    epochs: float
    batch: int
    rate: float
    turns: int
    seed: int
    every: int
    validate: int
    dtype: str
    rounding: str

    def __post_init__(self) -> None:
        from minicpm4.engine.drafters import draft_count
        from minicpm4.model.head_layout import FORMS

        require(self.form in FORMS, f"--form {self.form!r} is unknown", suggest(self.form, list(FORMS)))
        require(self.dtype in DTYPES, f"--dtype {self.dtype!r} is unknown", suggest(self.dtype, list(DTYPES)))
        bounds = {
            "prompts": (2, 1 << 24),
            "held_out": (1, 4096),
            "answer_tokens": (8, 8192),
            "batch": (1, 512),
        }
        bounds |= {"turns": (1, 16), "every": (1, 1 << 24), "validate": (1, 1 << 24), "seed": (0, 1 << 62)}
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            require(low <= value <= high, f"--{name.replace('_', '-')} {value} is outside {low} to {high}")
        require(0 < self.epochs <= 1000, f"--epochs {self.epochs:g} is not above 0 and at most 1000")
        require(0 < self.rate <= 1, f"--rate {self.rate:g} is not above 0 and at most 1")
        require(0 <= self.temperature <= 2, f"--temperature {self.temperature:g} is outside 0 to 2")
        rest = self.prompts - self.held_out
        require(
            rest >= self.batch,
            f"--prompts {self.prompts}, less {self.held_out} held out, are fewer than a step's {self.batch}",
        )
        if self.form == "eagle2":
            given = self.ranks is not None
            require(not given, "an EAGLE-2 head has the model's vocabulary: --frspec-path says nothing to it")
        told = f"--epochs {self.epochs:g} of {rest:,} answers, {self.batch} a step, are {self.steps:,} steps"
        require(self.steps <= MAX_STEPS, told, f"{MAX_STEPS:,} are allowed: lower --epochs, or raise --batch")
        draft_count(self.draft_vocab, 1 << 30)
        if self.rounding:
            self.spec()

    def spec(self) -> Any:
        """The format of ``rounding``, None where there is none. Raises ConfigError."""
        from minicpm4.train.recipe import parse_spec

        return parse_spec(self.rounding, "--rounding:") if self.rounding else None

    @property
    def steps(self) -> int:
        return max(1, int(self.epochs * (self.prompts - self.held_out) / self.batch))

    @property
    def longest(self) -> int:
        """Tokens of a text at most."""
        return PROMPT + self.answer_tokens


class Work:
    """One training: checked as it is made."""

    def __init__(self, wanted: Wanted, threads: int | None) -> None:
        from minicpm4.data.asks import asks, corpora_of
        from minicpm4.engine.load import inspect
        from minicpm4.engine.options import EngineOptions
        from minicpm4.model.head_layout import HeadLayout
        from minicpm4.train.draft_estimate import head_cost

        self.wanted, self.threads = wanted, threads
        self.held: list[list[int]] = []
        options = EngineOptions(
            backend="cpu",
            context=wanted.longest + 8,
            threads=threads,
            max_batch=BATCH,
            prefix_cache=False,
            draft="off",
        )
        self.found = inspect(wanted.model, options)
        vocab = self.found.config.vocab_size
        count = self._vocabulary(vocab)
        self.layout = HeadLayout(form=wanted.form, model=self.found.config, tokens=_range(count))
        spec = wanted.spec()
        for name, shape in self.layout.shapes().items():
            require(
                spec is None or len(shape) < 2 or spec.fits(shape[1]),
                f"the {shape[-1]} columns of {name} do not fit weight format {spec}",
                "choose a group size that divides them",
            )
        rows = wanted.batch * wanted.longest
        self.cost: HeadCost = head_cost(self.layout, turns=wanted.turns, rows=rows, longest=wanted.longest)
        self._check_room()
        spare = wanted.prompts + wanted.prompts // 8  # some are too long
        self.asks = asks(corpora_of(wanted.corpus), spare)
        require(
            len(self.asks) >= wanted.prompts,
            f"{', '.join(wanted.corpus)} have passages for {len(self.asks):,} prompts, --prompts asks for "
            f"{wanted.prompts:,}",
            "give more text, or a smaller --prompts",
        )

    def _vocabulary(self, vocab: int) -> int:
        """How many tokens the head is to guess among; a file of ranks is read."""
        from minicpm4.engine.drafters import draft_count

        if self.wanted.form == "eagle2":
            return vocab
        self.ranked = None
        count = draft_count(self.wanted.draft_vocab, vocab)
        if self.wanted.ranks is not None:
            from minicpm4.model.ranks import chosen_tokens

            digest = self.found.text.tokenizer.digest
            self.ranked = chosen_tokens(self.wanted.ranks, digest, vocab, count, self._ends)
            count = len(self.ranked)
        return count

    @property
    def _ends(self) -> list[int]:
        config = self.found.config
        return [i for i in (*config.eos_token_ids, *self.found.text.end_ids) if i < config.vocab_size]

    def _check_room(self) -> None:
        from minicpm4.machine import available_memory, human

        room = available_memory()  # the model itself, which is closed before, has been planned
        if room is not None and self.cost.memory > room:
            raise MemoryPlanError(
                f"training takes {human(self.cost.memory)}, {human(room)} are available",
                "lower --batch, --answer-tokens or --draft-vocab",
            )

    def check_place(self) -> None:
        """Raise ConfigError where the head could not be written, or is there already and not of this run."""
        from minicpm4.machine import human

        output = self.wanted.output
        there = [name for name in ("config.json", "model.safetensors") if (output / name).exists()]
        own = (output / RUN).is_dir()
        require(own or not there, f"{output} holds a model or head already", "give another --output")
        try:
            with making(output):
                free, need = shutil.disk_usage(output).free, self.disk - _bytes_in(output / RUN)
                told = (
                    f"{output} has {human(free)} left, answers and checkpoints take up to {human(need)} more"
                )
                require(free > need, told, "free some, or give another --output")
        except OSError as error:
            raise ConfigError(
                f"cannot write to {output}: {error.strerror}", "give another --output"
            ) from error

    @property
    def disk(self) -> int:
        """Bytes of checkpoints, head and answers at most."""
        from minicpm4.train.draft_head import states_wanted

        row = 2 * self.found.config.hidden_size * len(states_wanted(self.layout))
        return self.cost.disk + self.wanted.prompts * self.wanted.longest * (row + 4)

    def explain(self) -> None:
        """Print what the training would take."""
        from minicpm4.machine import available_memory, human
        from minicpm4.train.draft_estimate import answer_flops
        from minicpm4.train.peak import measured_here

        wanted, cost = self.wanted, self.cost
        peak, _ = measured_here("float32")
        speed = SHARE * peak.flops_per_s
        answers, texts = wanted.answer_tokens * wanted.prompts, wanted.steps * wanted.batch
        rows = (
            ("answering", answers, answer_flops(self.layout) * (answers + PROMPT // 2 * wanted.prompts)),
            (
                "training",
                wanted.answer_tokens * texts,
                cost.flops(wanted.answer_tokens * texts, PROMPT // 2 * texts),
            ),
        )
        among = f"{len(self.layout.tokens):,} tokens of {self.found.config.vocab_size:,}"
        print(f"{wanted.form} head for {sanitize(wanted.model)}: {cost.parameters:,} parameters")
        print(f"it guesses among {among}\n")
        shown = table("", "tokens at most", "TFLOP", "minutes", left=1)
        for what, tokens, flops in rows:
            shown.add_row(what, f"{tokens:,}", f"{flops / 1e12:,.1f}", f"{flops / speed / 60:,.1f}")
        show(shown)
        room = available_memory()
        of = "" if room is None else f" of {human(room)}"
        planned, needed = self.found.plan.sums()[0]
        print(f"\n{planned}: {human(needed)} to answer, {human(cost.memory)} to train{of}")
        print(f"disk: {human(cost.disk)} for checkpoints, up to {human(self.disk - cost.disk)} for answers")
        print(f"assumed: {SHARE:.0%} of the {sanitize(str(peak))}; prompts of {PROMPT // 2} tokens")

    def run(self, until: int | None) -> bool:
        """Answer, train, write; whether it came to the end."""
        from minicpm4 import LLM
        from minicpm4.spec.answers import Asking, answered, prompts_of
        from minicpm4.train.draft_head import states_wanted

        wanted = self.wanted
        with LLM.from_inspection(self.found) as llm:
            prompts = prompts_of(llm, self.asks, PROMPT)[: wanted.prompts]
            require(
                len(prompts) == wanted.prompts,
                f"{len(prompts):,} prompts have at most {PROMPT} tokens, "
                f"--prompts asks for {wanted.prompts:,}",
                "give more text, or a smaller --prompts",
            )
            about = {"model": wanted.model, "kernels": self.found.ops.name}
            about["weights"] = hash_of(self.found.origin)
            asking = Asking(
                held=wanted.held_out,
                tokens=wanted.answer_tokens,
                temperature=wanted.temperature,
                piece=BATCH,
            )
            with progress_or_lines("answering", "prompts") as progress:
                folder = wanted.output / RUN / ANSWERS
                every = answered(llm, folder, prompts, asking, states_wanted(self.layout), about, progress)
        held, learnt = ([one for one in part if one] for part in _split(every, wanted.held_out))
        enough = bool(held) and len(learnt) >= wanted.batch
        require(enough, "the model's answers are too short to learn from", "give it other prompts")
        self.held = [one.ids[: one.start].tolist() for one in held]
        return self._train(learnt, held, {**about, "asked": hash_of([prompts, asdict(asking)])}, until)

    def _train(self, learnt: Any, held: Any, about: dict[str, Any], until: int | None) -> bool:
        from minicpm4.train.draft_head import DraftHead, first_values
        from minicpm4.train.draft_run import HeadRun, write_head

        wanted = self.wanted
        layout = self._layout(learnt)
        source = self.found.source
        values = dict(first_values(layout, source, wanted.seed))
        head = DraftHead(layout, source, values, wanted.turns, wanted.spec())
        with Progress(wanted.steps) as progress:
            run = HeadRun(
                self._settings(),
                wanted.output / RUN,
                head,
                learnt,
                held,
                about={**about, "tokens": hash_of(layout.tokens.tolist())},
                report=lambda line: progress(_told(line)),
            )
            progress.start(run.step)
            done = run.run(until)
        tell(f"{run.step:,} of {wanted.steps:,} steps done; {wanted.output / RUN} has pictures and figures")
        if not done:
            tell("the same command goes on from there")
            if run.stopped_by:
                raise typer.Exit(128 + run.stopped_by)
            return False
        write_head(wanted.output, head, wanted.dtype)
        tell(f"the head is in {wanted.output}: minicpm4 chat -m {wanted.model} --draft eagle:{wanted.output}")
        return True

    def _settings(self) -> Any:
        from minicpm4.train.draft_run import HeadSettings
        from minicpm4.train.settings import Decay

        wanted, steps = self.wanted, self.wanted.steps
        warmup = min(20, steps // 10)
        return HeadSettings(
            form=wanted.form,
            steps=steps,
            batch=wanted.batch,
            rate=wanted.rate,
            warmup=warmup,
            decay=Decay(kind="linear", steps=steps - warmup),
            turns=wanted.turns,
            seed=wanted.seed,
            validate=wanted.validate,
            every=wanted.every,
            rounding=wanted.rounding,
        )

    def _layout(self, learnt: Any) -> Any:
        """The layout, with the tokens that are the most frequent ones in the answers where no file says."""
        import numpy as np

        from minicpm4.model.head_layout import HeadLayout

        count, vocab = len(self.layout.tokens), self.found.config.vocab_size
        if count == vocab:
            return self.layout
        tokens = self.ranked
        if tokens is None:
            counts = np.zeros(vocab, np.int64)
            for one in learnt:
                counts += np.bincount(one.ids[one.start :], minlength=vocab)
            counts[self._ends] = counts.max() + 1
            tokens = np.sort(np.argsort(-counts, kind="stable")[:count]).astype(np.int32)
        return HeadLayout(form=self.wanted.form, model=self.found.config, tokens=tokens)


def _told(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the run as the bar shows it."""
    parts = []
    if "loss" in line:
        parts.append(f"loss {line['loss']:.3f}, {line['tokens_per_s']:,.0f} tokens/s")
    if "accept_length" in line:
        parts.append(f"held out: {line['accept_length']:.2f} tokens a pass, loss {line['validation']:.3f}")
    return {**line, "text": "; ".join(parts), "marked": "accept_length" in line}


def _bytes_in(folder: Path) -> int:
    """Of the files of a run so far."""
    return sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())


def _split(pairs: list[Any], held: int) -> tuple[list[Any], list[Any]]:
    return pairs[:held], pairs[held:]


def _range(count: int) -> Any:
    import numpy as np

    return np.arange(count, dtype=np.int32)
