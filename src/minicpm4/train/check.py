"""All that can be known of a run before its first step, looked at in one place, by a run and by
``--dry-run`` alike: they refuse the same things in the same words. No torch.

What a recipe's parts mean stands where they are read (``stages.py``, ``sources.py``, ``going_on.py``); here
every stage is asked, with all that is known, and everything that is wrong is told at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from minicpm4.config import ModelConfig
from minicpm4.config.strict import require
from minicpm4.data.chat import ChatEncoder
from minicpm4.data.corpora import WHOLE
from minicpm4.data.mixture import Stream, exact_shares, require_room
from minicpm4.data.packer import require_sides, require_template
from minicpm4.data.packing import ENDLESS
from minicpm4.data.shards import ShardSet
from minicpm4.errors import CheckpointError, ConfigError, Minicpm4Error, ModelNotFoundError
from minicpm4.formats.hf_write import hf_config
from minicpm4.formats.names import expected_tensors
from minicpm4.formats.target import obstacle, require_free, require_new
from minicpm4.model.source import open_model, open_text
from minicpm4.text.model_text import ModelText
from minicpm4.train.going_on import TOKENIZER, going_on, way_of
from minicpm4.train.prepare import DATA
from minicpm4.train.recipe import Corpus, Recipe, Stage, model_config
from minicpm4.train.saved import LOCK, LOG, PEAK, PICTURE
from minicpm4.train.sources import held_out_stream, training_stream
from minicpm4.train.stages import check_rounding, pair_shapes, passes, sparse_of, stage_config

__all__ = ["Given", "Start", "check", "start_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """What a run begins with, as far as it is here. ``config``: of its model, ``text``: its tokenizer (None:
    not here, or not made yet), of so many ``tokens`` (0: not known); ``missing``: why the model's sizes are
    not known, None where they are."""

    config: ModelConfig | None
    text: ModelText | None = None
    tokens: int = 0
    missing: ModelNotFoundError | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """What is known of a run beside its recipe. ``run``: its folder; ``processes``: how many take its steps;
    ``export``: where its model goes at the end (None: nowhere); ``data``: those packed sets that are here, by
    corpus."""

    start: Start
    run: Path
    processes: int = 1
    export: Path | None = None
    data: Mapping[str, ShardSet] = field(default_factory=dict)

    @property
    def anew(self) -> bool:
        """Whether the model goes to the run's own folder for it, where it takes the place of an older one."""
        return self.export is not None and self.export.absolute() == (self.run / "model").absolute()

    def check_export(self) -> None:
        """Raise CheckpointError where the model cannot go to ``export``, whose place it takes whole."""
        if self.export is None or self.anew:
            return
        require_free(self.export)
        real = self.export.resolve()
        if real in (self.run.resolve(), *self.run.resolve().parents):
            raise CheckpointError(f"{self.export} holds the run", "name a folder beside it")
        require_new(self.export)
        found = obstacle(real.parent)
        if found:
            raise CheckpointError(f"cannot write to {real.parent}: {found}", "name another folder")


def start_of(recipe: Recipe) -> Start:
    """Look at the model and the tokenizer that ``recipe`` begins with. What is not on this machine is no
    error; raises CheckpointError, ConfigError, TextError for what is, and is wrong."""
    text, tokens, missing = None, recipe.tokenizer.vocab_size, None
    if recipe.tokenizer.path:
        try:
            text = open_text(recipe.tokenizer.source())
        except ModelNotFoundError as error:
            missing = error
        else:
            text.files()  # refuses what no run could take along
            tokens = text.tokenizer.vocab_size
    if recipe.model.start:
        try:
            found = open_model(recipe.model.start, recipe.model.ignore_fields)
            found.refuse_stored("a training run")
            return Start(config=found.config, text=text, tokens=tokens)
        except ModelNotFoundError as error:
            return Start(config=None, text=text, tokens=tokens, missing=error)
    config = model_config(recipe, tokens or 1, {})
    known = "vocab_size" in recipe.model.shape
    return Start(config=config, text=text, tokens=tokens, missing=None if known else missing)


def check(recipe: Recipe, given: Given) -> list[str]:
    """Raise ConfigError, or CheckpointError, for all that would keep ``recipe`` from running to its end.
    Returns what is worth knowing of a run that can: sentences on stages and their data."""
    wrong: list[Minicpm4Error] = []
    notes: list[str] = []
    with _noting(wrong):
        notes += _check_run(recipe, given)
    with _noting(wrong):
        _check_vocabulary(recipe, given.start)
    usable = set()
    for name, corpus in recipe.corpora.items():
        with _noting(wrong):
            notes += _check_corpus(name, corpus, given)
        if name in given.data:
            with _noting(wrong):
                require_sides(name, given.data[name], corpus.holdout)
                usable.add(name)
    if recipe.validate and not any(corpus.holdout for corpus in recipe.corpora.values()):
        notes.append(f"validate = {recipe.validate}, yet no corpus holds anything out: nothing is looked at")
    config = given.start.config
    for stage in recipe.stages:
        if config is not None:
            config = _check_stage(config, stage, wrong)
        with _noting(wrong, stage):
            rows = passes(stage, given.processes).tokens
            _check_shares(recipe, stage, rows)
            if rows < stage.context:
                cut = f"a forward pass of {rows:,} tokens cuts documents of {stage.context:,}"
                notes.append(f"stage {stage.name}: {cut}")
            if stage.data.keys() <= usable:
                notes += _check_data(recipe, stage, given, wrong)
    with _noting(wrong):
        given.check_export()
    _raise(wrong)
    return notes


def _check_run(recipe: Recipe, given: Given) -> list[str]:
    """Raise ConfigError where the run's folder cannot be written to, or another run is in it; return what is
    worth knowing of how the run in it goes on."""
    found = obstacle(given.run)
    if found:
        raise ConfigError(f"cannot write to {given.run}: {found}", "give another --output")
    remedy = "remove it, or give another --output"
    for name in (LOG, PICTURE, PEAK, LOCK):
        place = given.run / name
        require(not place.is_dir(), f"{place} is a folder, where a run writes a file", remedy)
    for name in (DATA, TOKENIZER):
        place = given.run / name
        require(place.is_dir() or not place.exists(), f"{place} is no folder, where a run makes one", remedy)
    whole = given.data.keys() >= recipe.corpora.keys()
    going_on(recipe, given.run, {name: one.hash for name, one in given.data.items()} if whole else None)
    way = way_of(recipe, given.run)
    return [way.note] if way is not None and way.note else []


def _check_corpus(name: str, corpus: Corpus, given: Given) -> list[str]:
    """Raise ConfigError for chats that the tokenizer has no template for, and for a packed set of another
    tokenizer. Sets of the run's own it packs itself. Return what is worth knowing of the corpus."""
    text = given.start.text
    if text is None:
        return []
    require_template(corpus, text)
    if corpus.kind == "shards" and name in given.data:
        given.data[name].check_tokenizer(text.fingerprint)
    rendered = corpus.kind in WHOLE and corpus.made is None
    endless = rendered and not ChatEncoder(text.tokenizer, text.template).teaches_ends()
    return [f"corpus {name}: {ENDLESS}"] if endless else []


def _check_vocabulary(recipe: Recipe, start: Start) -> None:
    """Raise ConfigError where the tokenizer has tokens that the model has no place for. One that comes with
    the model may have some that are never used."""
    if start.config is None or not start.tokens or start.missing:
        return
    own = recipe.model.start and recipe.tokenizer.path == recipe.model.start
    require(
        bool(own) or start.tokens <= start.config.vocab_size,
        f"the tokenizer has {start.tokens:,} tokens, the model a vocabulary of {start.config.vocab_size:,}",
        "leave model.shape.vocab_size out, or take the tokenizer of the model to start from",
    )


def _check_stage(config: ModelConfig, stage: Stage, wrong: list[Minicpm4Error]) -> ModelConfig:
    """Look at what ``stage`` makes of the model, ``config`` before it; return its configuration then."""
    with _noting(wrong, stage):
        config = stage_config(config, stage)
    with _noting(wrong, stage):
        hf_config(config)  # what its checkpoints are written as
    with _noting(wrong, stage):
        sparse_of(config, stage)
    shapes = expected_tensors(config)
    with _noting(wrong, stage):
        check_rounding(shapes, stage.specs)
    if stage.lora is not None:
        with _noting(wrong, stage):
            pair_shapes(shapes, stage.lora)
    return config


def _check_shares(recipe: Recipe, stage: Stage, rows: int) -> None:
    """Raise ConfigError where the shares of ``stage`` make no batch of ``rows`` tokens, or its needles, whose
    lengths are known before they are made, do not fit."""
    exact_shares(list(stage.data.items()), rows)
    for name in stage.data:
        corpus = recipe.corpora[name]
        if corpus.made is None or corpus.kind != "needles":
            continue
        lengths = [length for length in corpus.made.lengths if length <= stage.context]
        require(
            bool(lengths),
            f"no document of {name} fits a context of {stage.context} tokens",
            f"the shortest of made.lengths is {min(corpus.made.lengths)}: raise the context",
        )
        require_room(max(lengths), rows)


def _check_data(recipe: Recipe, stage: Stage, given: Given, wrong: list[Minicpm4Error]) -> list[str]:
    """Look at the batches that packed sets give; return what is worth knowing of them."""
    notes: list[str] = []
    with _noting(wrong, stage):
        found = training_stream(recipe, given.data, stage, processes=given.processes)
        notes += [f"stage {stage.name}: {text}" for text in _told(stage, found, given.processes)]
    with _noting(wrong, stage):
        held_out_stream(recipe, given.data, stage, processes=given.processes)
    return notes


def _told(stage: Stage, found: Stream, processes: int) -> Iterator[str]:
    for name, count in found.left_out.items():
        if count:
            yield f"{count:,} documents of {name} are longer than its context of {stage.context:,}: left out"
    for name, times in found.epochs(passes(stage, processes).count).items():
        if times > 1:
            yield f"a step of {stage.batch_tokens:,} tokens reads all of {name} {times:.3g} times"


@contextmanager
def _noting(wrong: list[Minicpm4Error], stage: Stage | None = None) -> Iterator[None]:
    """Add what is raised to ``wrong``, with the stage that it is about."""
    try:
        yield
    except (ConfigError, CheckpointError) as error:
        where = "" if stage is None else f"stage {stage.name!r}: "
        if not error.condition.startswith(where):
            error = type(error)(where + error.condition, error.remedy)
        wrong.append(error)


def _raise(wrong: list[Minicpm4Error]) -> None:
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        every = "; ".join(f"({number}) {error}" for number, error in enumerate(wrong, 1))
        raise ConfigError(f"{len(wrong)} things keep this recipe from running: {every}")
