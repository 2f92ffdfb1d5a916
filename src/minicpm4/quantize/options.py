"""What a conversion to few bits is to do, checked before it begins."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from minicpm4.config import ModelConfig
from minicpm4.config.strict import check_choice, check_integer, check_pattern, require
from minicpm4.errors import ConfigError
from minicpm4.formats.kinds import KINDS, rounded_kinds
from minicpm4.formats.names import EMBED, HEAD, expected_tensors, layer_tensors, no_matrix, pattern_of
from minicpm4.formats.quant import QuantSpec, group_sizes
from minicpm4.model.stored_prefix import MOST
from minicpm4.model.weight_plan import float_choices, parse_spec
from minicpm4.quantize.gptq import DAMPING
from minicpm4.quantize.grid import can_round

__all__ = [
    "LEAST_BITS",
    "MAX_SEED",
    "MAX_SKIP",
    "METHODS",
    "MOST_BITS",
    "SKIP_FIRST",
    "QuantizeOptions",
    "formats_by_pattern",
    "parse_format",
]

METHODS = {
    "rtn": "round to nearest; needs no calibration text",
    "awq": "smoothing by activations, then rounding with columns weighted by them",
    "gptq": "column by column, what follows makes up for the error",
    "p-gptq": "GPTQ whose statistics leave out the first positions of every text (MiniCPM4)",
    "s-gptq": "smoothing where GPTQ's error on texts held out is smaller with it, then GPTQ",
    "s-p-gptq": "the same with P-GPTQ",
}
MAX_SKIP = 64
SKIP_FIRST = 4  # MiniCPM4's
MAX_SEED = (1 << 32) - 1
FLOATS = "float"
LEAST_BITS, MOST_BITS = 4, 16  # that can be asked for, on average over all matrices


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """Settings of a conversion. Raises ConfigError.

    ``weights``: the kind that the layers' matrices become, in groups of ``group``, or a kind of floats, which
    embeddings and head become, too, and which knows no method but rtn; ``method``: one of
    METHODS; ``skip_first``: positions of each text that P-GPTQ leaves out; ``embed`` and ``head``: a format
    of their own ("int8-g32"), or "float": as they are; None: as they are, where layers become floats as
    these; ``overrides``: formats by a regular expression that
    is searched for in a matrix's name, the last that fits counts; ``rotate``: fold a rotation in first;
    ``act_order``, ``damping``: see ``gptq``; ``bits``: let the matrices that no override names become int4,
    int5 (where the layout has it) or int8 as rounding costs least, at so many bits a weight at most
    (``quantize/budget.py``); ``stored_prefix``: the tokens with which calibration texts begin, whose keys and
    values are stored (``quantize/stored.py``); ``seed``: of the rotation."""

    weights: str = "int4"
    method: str = "s-gptq"
    group: int = 64
    embed: str | None = None
    head: str | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    rotate: bool = False
    skip_first: int = SKIP_FIRST
    act_order: bool = False
    damping: float = DAMPING
    bits: float | None = None
    stored_prefix: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("weights", self.weights, [*rounded_kinds(), *float_choices()])
        check_choice("method", self.method, list(METHODS))
        parse_format(self._usual)
        require(
            self.grouped or self.method == "rtn",
            f"method {self.method} chooses codes, {self.weights} has none",
            "use rtn, which is what it does unless said",
        )
        for name in (self.embed, self.head):
            if name is not None:
                parse_format(name)
        _check_overrides(self.overrides)
        check_integer("skip_first", self.skip_first, 0, MAX_SKIP)
        check_integer("seed", self.seed, 0, MAX_SEED)
        require(
            len(self.stored_prefix) <= MOST,
            f"a stored prefix of {len(self.stored_prefix)} tokens is too long",
            f"use up to {MOST}",
        )
        require(self.gptq or not self.act_order, f"act_order is GPTQ's, not {self.method}'s", "leave it out")
        require(0 < self.damping < 1, f"damping = {self.damping!r} is not between 0 and 1")
        if self.bits is not None:
            require(
                isinstance(self.bits, int | float) and LEAST_BITS <= self.bits <= MOST_BITS,
                f"bits = {self.bits!r} is not a number from {LEAST_BITS} to {MOST_BITS}",
                "it counts bits a weight, scales included: 5.5",
            )
            require(
                self.weights == "int4" and self.calibrated,
                f"a budget of bits chooses between int4 and int8 by what text shows, weights are "
                f"{self.weights}, method {self.method}",
                "use --weights int4 and a method that is calibrated, or leave --bits out",
            )

    @property
    def grouped(self) -> bool:
        """Whether layers become codes with scales."""
        return self.weights in rounded_kinds()

    @property
    def _usual(self) -> str:
        """The format of matrices of which nothing else is said."""
        return f"{self.weights}-g{self.group}" if self.grouped else self.weights

    @property
    def calibrated(self) -> bool:
        """Whether activations are looked at."""
        return self.method != "rtn"

    @property
    def smoothed(self) -> bool:
        return self.method in ("awq", "s-gptq", "s-p-gptq")

    @property
    def gptq(self) -> bool:
        return self.method.endswith("gptq")

    @property
    def skip(self) -> int:
        """Positions that statistics leave out."""
        return max(self.skip_first if "p-" in self.method else 0, len(self.stored_prefix))

    def chosen(self, formats: Mapping[str, QuantSpec]) -> QuantizeOptions:
        """The same with the formats that a budget of bits has given to matrices."""
        own = {f"^{re.escape(name)}$": str(spec) for name, spec in formats.items()}
        return replace(self, overrides={**own, **self.overrides})

    def specs(self, config: ModelConfig) -> dict[str, QuantSpec | None]:
        """The format of every matrix of the model, None where its floats stay. Raises ConfigError where one
        does not fit, or a pattern fits nothing."""
        columns = {EMBED: config.hidden_size}
        if self.rotate or not config.tie_word_embeddings:
            columns[HEAD] = config.hidden_size
        else:
            require(
                self.head in (None, FLOATS), "the head is tied: it is the embeddings", "leave its format out"
            )
        for index in range(config.num_hidden_layers):
            for name, shape in layer_tensors(config).items():
                if len(shape) == 2:
                    columns[f"model.layers.{index}.{name}"] = shape[1]
        said = {}
        for name in columns:
            ends = FLOATS if self.grouped else self._usual
            said[name] = {EMBED: self.embed or ends, HEAD: self.head or ends}.get(name, self._usual)
        return _specs(columns, said, self.overrides)


def formats_by_pattern(config: ModelConfig, overrides: Mapping[str, str]) -> dict[str, QuantSpec]:
    """The formats that ``overrides`` (see QuantizeOptions) give to matrices of a model whose others stay as
    they are. Raises ConfigError."""
    _check_overrides(overrides)
    columns = {name: shape[1] for name, shape in expected_tensors(config).items() if len(shape) == 2}
    found = _specs(columns, dict.fromkeys(columns, FLOATS), overrides)
    return {name: spec for name, spec in found.items() if spec is not None}


def _check_overrides(overrides: Mapping[str, str]) -> None:
    for pattern, name in overrides.items():
        parse_format(name)
        check_pattern(pattern)


def _specs(
    columns: Mapping[str, int], said: Mapping[str, str], overrides: Mapping[str, str]
) -> dict[str, QuantSpec | None]:
    """The formats of matrices with so many ``columns``: as ``said``, or as the last pattern that fits."""
    texts, found, used = {}, {}, set()
    for name in columns:
        own = said[name]
        for pattern, one in overrides.items():
            if re.search(pattern, name):
                own = one
                used.add(pattern)
        texts[name] = own
    for name, own in texts.items():
        spec = parse_format(own)
        if spec is not None and not spec.fits(columns[name]):
            alike = {one: columns[one] for one, text in texts.items() if text == own}
            raise ConfigError(
                f"{name} has rows of {columns[name]} weights, which do not fit {spec}", _fitting(spec, alike)
            )
        found[name] = spec
    unused = sorted(set(overrides) - used)
    if unused:
        raise no_matrix(unused[0], columns)
    return found


def parse_format(text: str) -> QuantSpec | None:
    """ "int4-g64" and the like, or "bf16"; "float", as it is: None. Raises ConfigError."""
    return None if text == FLOATS else parse_spec(text, [name for name in KINDS if can_round(name)])


def _fitting(spec: QuantSpec, columns: Mapping[str, int]) -> str:
    """What fits all of these matrices that are to be ``spec``, or each whose rows do not fit it."""
    sizes = group_sizes(spec.kind, columns.values())
    if sizes:
        return f"choose a group of {' or '.join(map(str, sizes))}"
    other: dict[str, list[str]] = {}
    for name, width in columns.items():
        if not spec.fits(width):
            own = [f"{spec.kind}-g{size}" for size in group_sizes(spec.kind, {width})] or [FLOATS]
            other.setdefault(own[-1], []).append(name)
    given = " ".join(f"--override '{pattern_of(names)}={own}'" for own, names in other.items())
    return f"give other formats: {given}"
