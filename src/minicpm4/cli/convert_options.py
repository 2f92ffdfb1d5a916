"""Options of ``minicpm4 convert`` read and checked: what they come to, and those that nothing would read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from minicpm4.cli.options import check_outputs, number, words
from minicpm4.config.choices import WEIGHT_CHOICES
from minicpm4.config.strict import check_choice, require

if TYPE_CHECKING:
    from minicpm4.evals.conversion import Calibration
    from minicpm4.quantize.gguf_export import GgufTypes
    from minicpm4.quantize.options import QuantizeOptions

MAX_SAMPLES = 4096
MAX_LENGTH = 1 << 16
_STORED = "weights stay as they are stored, {} is for those that are rounded"


def layout_of(to: str | None, target: Path, weights: str | None) -> str:
    """The layout to write: as it is said, else what target and weights mean. Raises ConfigError, for
    ``weights`` that are no choice too."""
    from minicpm4.formats.kinds import float_kinds
    from minicpm4.quantize.export import LAYOUTS

    one_file = target.suffix.lower() == ".gguf"
    if to is None:
        to = "gguf" if one_file else "hf" if weights in float_kinds() else "compressed-tensors"
    check_choice("--to", to, list(LAYOUTS))
    require(
        to == "gguf" or not one_file,
        f"{target} is the name of a GGUF file, --to {to} writes a folder",
        "name a folder, or use --to gguf",
    )
    require(
        weights is None or weights in WEIGHT_CHOICES,
        f"--weights {weights!r:.40} is not a choice",
        f"choose {words(WEIGHT_CHOICES)}" + (" and say --group" if "-g" in (weights or "") else ""),
    )
    return to


def calibration_of(files: Sequence[Path], samples: int | None, length: int | None) -> Calibration:
    """Texts of these files, as many and as long as is said. Raises ConfigError."""
    from minicpm4.evals.conversion import Calibration

    texts = Calibration(files=tuple(files))
    if samples is not None:
        texts = replace(texts, samples=number("--samples", samples, MAX_SAMPLES, least=1))
    if length is not None:
        texts = replace(texts, length=number("--length", length, MAX_LENGTH, least=64))
    return texts


def check_files(
    source: str, target: Path, json_file: Path | None, calibration: Sequence[Path], test: Path | None
) -> None:
    """Raise ConfigError where a file would be written over one that is read, or in the place of the model,
    and where a text is not there, given twice, or tests what was fitted to it."""
    from minicpm4 import zoo
    from minicpm4.evals.calibration_texts import check_texts
    from minicpm4.files.gguf_parts import parts_of
    from minicpm4.quantize.work import part_of

    texts_read = (*calibration, *((test,) if test else ()))
    model, part = zoo.resolve(source), part_of(target)
    read = [model.parent / name for name in parts_of(model.name)] if model.name else [model]
    check_outputs({"--json": json_file}, (*read, target, part, *texts_read), (*read, target, part))
    check_texts(calibration, test)


def gguf_types(to: str, given: Sequence[str], bits: float | None) -> GgufTypes:
    """What --gguf-type says. Raises ConfigError."""
    from minicpm4.quantize.gguf_export import GgufTypes

    require(to == "gguf" or not given, f"--to {to} has no types of GGUF", "leave --gguf-type out")
    types = GgufTypes.parse(given)
    require(
        bits is None or not given,
        "--bits chooses what matrices become, --gguf-type would round them once more",
        "leave --gguf-type out: --override PATTERN=FORMAT says the format of some",
    )
    return types


def overrides_of(given: Sequence[str]) -> dict[str, str]:
    """Formats by pattern; of one that is given twice the last, in its place. Raises ConfigError."""
    found: dict[str, str] = {}
    for text in given:
        pattern, equals, kind = text.rpartition("=")
        require(
            bool(equals and pattern),
            f"--override {text!r} is not PATTERN=FORMAT",
            "such as 'down_proj=int8-g64'",
        )
        found.pop(pattern, None)
        found[pattern] = kind
    return found


def refuse(given: Mapping[str, object], why: str, remedy: str) -> None:
    """Raise ConfigError for the first of these options that was given: nothing reads it. ``why`` has a place
    for its name."""
    for name, value in given.items():
        require(value is None or value == [], why.format(name), remedy)


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """How weights are to be rounded, as the options say it; None: not said. ``calibrated_on``: whether a text
    was given."""

    method: str | None
    group: int | None
    bits: float | None
    head: str | None
    rotate: bool
    act_order: bool
    skip_first: int | None
    seed: int | None
    calibrated_on: bool

    def options(self, to: str, weights: str, overrides: Mapping[str, str]) -> QuantizeOptions | None:
        """The settings of a conversion; None: weights stay as they are stored. Raises ConfigError."""
        if weights == "auto":
            self._refuse_all()
            return None
        return self._options(to, weights, overrides)

    def _refuse_all(self) -> None:
        """Raise ConfigError where anything is said of weights that are not rounded."""
        refuse(
            {
                "--method": self.method,
                "--group": self.group,
                "--bits": self.bits,
                "--rotate": self.rotate or None,
                "--act-order": self.act_order or None,
                "--skip-first": self.skip_first,
                "--calibration": self.calibrated_on or None,
            },
            _STORED,
            "say what they become: --weights",
        )
        refuse(
            {"--head": None if self.head == "float" else self.head},
            _STORED,
            f"--override lm_head={self.head} rounds it alone (embed_tokens={self.head}: one that is tied)",
        )

    def _options(self, to: str, weights: str, overrides: Mapping[str, str]) -> QuantizeOptions:
        from minicpm4.formats.kinds import float_kinds, rounded_kinds
        from minicpm4.quantize.options import (
            LEAST_BITS,
            MAX_SEED,
            MAX_SKIP,
            METHODS,
            MOST_BITS,
            SKIP_FIRST,
            QuantizeOptions,
        )

        # Said in the command line's words; QuantizeOptions says it in Python's.
        if self.method is not None:
            check_choice("--method", self.method, list(METHODS))
        method = self.method or ("s-gptq" if weights in rounded_kinds() else "rtn")
        if self.bits is not None:
            number("--bits", self.bits, MOST_BITS, LEAST_BITS)
            require(
                weights == "int4" and method != "rtn",
                f"--bits chooses between int4 and int8 by what text shows, here with --weights {weights} "
                f"and --method {method}",
                "use --weights int4 and a method that is calibrated, or leave --bits out",
            )
        if self.skip_first is not None:
            number("--skip-first", self.skip_first, MAX_SKIP)
        if self.seed is not None:
            number("--seed", self.seed, MAX_SEED)
        require(
            weights not in float_kinds() or self.group is None,
            f"--weights {weights} has no groups",
            "leave --group out",
        )
        require(
            method.endswith("gptq") or not self.act_order,
            f"--act-order is GPTQ's, not --method {method}'s",
            "leave it out",
        )
        options = QuantizeOptions(
            weights=weights,
            method=method,
            group=_usual_group(to, weights, self.bits) if self.group is None else self.group,
            head=self.head,
            overrides=overrides,
            rotate=self.rotate,
            act_order=self.act_order,
            bits=self.bits,
            seed=0 if self.seed is None else self.seed,
            skip_first=SKIP_FIRST if self.skip_first is None else self.skip_first,
        )
        require(
            options.calibrated or not self.calibrated_on,
            "--method rtn looks at no text",
            "leave --calibration out",
        )
        require(
            self.skip_first is None or "p-" in method,
            f"--method {method} leaves no tokens out",
            "leave --skip-first out, or use p-gptq",
        )
        return options


def _usual_group(to: str, weights: str, bits: float | None) -> int:
    """Weights that share a scale where nothing is said: what the layout has at all, else what lost least for
    its size (docs/quantisation.md). MLX has an offset beside each scale, so smaller groups cost it twice as
    much; a budget begins at larger ones, and comes to smaller ones by itself."""
    if to == "marlin":
        return 128
    large = weights == "ternary" or to == "mlx" or (bits is not None and to != "gguf")
    return 64 if large else 32
