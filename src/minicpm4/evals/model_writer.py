"""A converted model written in its layout, read again, and given its name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minicpm4.config import ModelConfig
from minicpm4.errors import CheckpointError
from minicpm4.files import writing_folder, writing_path
from minicpm4.formats.gguf import GgufCheckpoint
from minicpm4.formats.hf_write import hf_config
from minicpm4.formats.names import expected_tensors
from minicpm4.formats.quant import QuantSpec
from minicpm4.formats.quantised_config import refusals
from minicpm4.kernels.registry import exact_table
from minicpm4.model.source import open_model, read_config
from minicpm4.model.stored_prefix import StoredPrefix
from minicpm4.progress import Bar
from minicpm4.quantize.ends import Fitting
from minicpm4.quantize.export import KEEP_PREFIX, Written, check_again, check_layout, formats, write_model
from minicpm4.quantize.gguf_export import (
    AsTyped,
    GgufTypes,
    InType,
    check_gguf,
    check_gguf_plan,
    plan_gguf,
    write_gguf_model,
)
from minicpm4.quantize.options import QuantizeOptions
from minicpm4.quantize.parts import Folded, Parts, Stored, WithConfig, folded_config, plain_rope
from minicpm4.quantize.proof import check_tokens, prove
from minicpm4.quantize.rounded import LayerReport
from minicpm4.quantize.work import kept_in
from minicpm4.text.model_text import ModelText

__all__ = ["Conversion", "ModelWriter"]

_NO_PREFIX = (
    "the stored prefix of {} tokens is left out: {} has no place for it, and rounded weights are worse by it"
)


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What ``convert`` did: ``written`` (see there); ``apart``: see ``prove``; a report of each matrix that
    was rounded, how many texts of how many tokens were looked at, the texts to test with; of a GGUF file the
    type of every matrix; ``notes``: what it cannot say, and where it grew; ``source_nbytes``: of the source's
    tensors; ``options``: as they were given, with the formats that a budget of bits has chosen; ``formats``:
    of every matrix, None: as it was."""

    written: Written
    apart: float = 0.0
    source_nbytes: int = 0
    rows: list[LayerReport] = field(default_factory=list)
    texts: int = 0
    tokens: int = 0
    tests: list[list[int]] = field(default_factory=list)
    types: list[InType] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    options: QuantizeOptions | None = None
    formats: Mapping[str, QuantSpec | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelWriter:
    """Writes a model in one of LAYOUTS, reads it again, and gives it the name ``target``, which has no links
    in it: one that is put there later is not followed. ``part``: its work folder."""

    target: Path
    part: Path
    layout: str
    text: ModelText | None
    types: GgufTypes
    sampling: Mapping[str, Any]
    without_scaling: bool
    bar: Bar

    def check(self, config: ModelConfig, specs: Mapping[str, QuantSpec | None]) -> None:
        """Raise ConfigError, TextError where the layout has no place for that: before any work."""
        config = plain_rope(config)[0] if self.without_scaling else config
        if self.layout == "gguf":
            check_gguf_plan(config, specs, self.types, self.text)
            return
        check_layout(self.layout, specs, expected_tensors(config))
        hf_config(folded_config(config) if self.layout == "llama" else config)

    def write(self, fitting: Fitting, stored: StoredPrefix | None) -> Conversion:
        """``stored``: of the same weights. Raises CheckpointError, ConfigError, TextError."""
        made: Parts = fitting
        notes: list[str] = []
        if stored is not None and (self.layout not in KEEP_PREFIX or self.without_scaling):
            why = "--plain-rope" if self.without_scaling else self.layout
            notes.append(_NO_PREFIX.format(len(stored.ids), why))
            stored = None
        if isinstance(fitting.made, Stored) and self.layout != "gguf":  # it plans its types itself
            self.check(made.config, formats(made))
        if self.without_scaling:
            config, told = plain_rope(made.config)
            made, notes = WithConfig(made, config), [*notes, told]
        try:
            done = self._gguf(made) if self.layout == "gguf" else self._folder(made, stored)
            return replace(done, notes=[*notes, *done.notes])
        except FileExistsError as error:
            raise CheckpointError(
                f"{error.filename} was not there when this began, and is now: it is left as it is",
                "move it away, then do the same again" + kept_in(self.part),
            ) from error
        except OSError as error:
            raise CheckpointError(
                f"cannot write {self.target}: {error.strerror or error}",
                "check the place and its free space, then do the same again",
            ) from error

    def _folder(self, made: Parts, stored: StoredPrefix | None) -> Conversion:
        as_written = Folded(made) if self.layout == "llama" else made
        with writing_folder(self.target, durable=True, fresh=True) as new:
            written = write_model(as_written, new, self.layout, self.text, stored)
            with self.bar("checking", "layers") as progress:
                check_again(as_written, new, progress)
            with self.bar("computing with it", "layers") as progress:
                again = open_model(new)
                if stored is not None and not stored.same(again.stored):
                    raise CheckpointError(f"the stored prefix as written to {new} is not what was stored")
                apart = prove(made, Stored(again.checkpoint, again.config), exact_table(), progress, stored)
            if self.text is not None:
                check_tokens(self.text, again.text())
        specs = {name: info.spec for name, info in again.checkpoint.tensors.items()}
        return Conversion(written=written, apart=apart, notes=refusals(self.layout, specs))

    def _gguf(self, made: Parts) -> Conversion:
        name = os.fsencode(self.target.stem).decode(errors="replace")  # metadata are UTF-8, names may be none
        general = {"general.name": name, **self.sampling}
        plan = plan_gguf(made, self.text, self.types, general)
        with writing_path(self.target, durable=True, fresh=True) as new:
            sizes = write_gguf_model(plan, new)
            with self.bar("checking", "layers") as progress:
                types = check_gguf(plan, new, self.text, progress)
            with self.bar("computing with it", "layers") as progress:
                again = GgufCheckpoint(new)
                apart = prove(AsTyped(plan), Stored(again, read_config(again)), exact_table(), progress)
        nbytes, weights, matrix_nbytes = sizes
        written = Written(nbytes=nbytes, weights=weights, matrix_nbytes=matrix_nbytes)
        return Conversion(written=written, apart=apart, types=types, notes=plan.notes)
