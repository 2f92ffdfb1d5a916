"""Options that several commands share, each group one frozen dataclass.

``expand`` puts the fields of such groups into a command's signature, where Typer finds them. A field
left at None is not passed on: defaults live in the engine's own settings, and nowhere else.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

from typer import BadParameter, Context, Option

from minicpm4.cli.terminal import progress_bar
from minicpm4.config import SparseConfig
from minicpm4.config.choices import KV_FORMATS, WEIGHT_CHOICES
from minicpm4.config.sparse import AUTO
from minicpm4.config.strict import require, suggest
from minicpm4.errors import ConfigError
from minicpm4.files import check_writing, finite, json_text, read_text, write_json
from minicpm4.text.bounds import MAX_TEXT_BYTES

if TYPE_CHECKING:
    from minicpm4 import LLM
    from minicpm4.engine.load import Inspection

DEFAULT_MODEL = "smollm2-135m-instruct"
MAX_NUMBERS = 64  # in one option
N = TypeVar("N", int, float)
ModelOption = Annotated[
    str, Option("--model", "-m", help="Model: a known name, a folder, a .gguf file, or a hub repository.")
]

IgnoreOption = Annotated[
    list[str] | None,
    Option(
        "--ignore-field",
        metavar="NAME",
        help="Field of config.json, or key of GGUF metadata, to be read as null; may be given several times.",
    ),
]


def weight_words(auto: str) -> str:
    """What weights may be held in, for help: ``auto`` says what "auto" means."""
    first, *others = WEIGHT_CHOICES
    return f"{first} ({auto}), {words(others)}"


def bytes_of(option: str, gigabytes: float) -> int:
    """Bytes, of an option in GB. Raises ConfigError."""
    require(0 < gigabytes < 1e6, f"{option} {gigabytes:g} is not a number of GB", "give one, such as 8")
    return max(1, int(gigabytes * 1e9))


def gigabytes(text: str) -> float:
    """A number of GB, as ``bytes_of`` takes it. Raises BadParameter."""
    try:
        return float(text)
    except ValueError:
        raise BadParameter(
            f"{text!r:.40} is not a number of GB: write it without a unit, as 3 or 0.5"
        ) from None


def words(choices: Sequence[str]) -> str:
    """``"bf16, int8 or float32"``."""
    *others, last = choices
    return f"{', '.join(others)} or {last}"


def expand(function: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter whose type is a dataclass by that dataclass's fields."""
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name in groups:
            types = get_type_hints(groups[name], include_extras=True)
            members = [(f.name, types[f.name], f.default) for f in fields(groups[name])]
        else:
            members = [(name, hints[name], parameter.default)]
        parameters += [
            inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, annotation=t, default=d)
            for n, t, d in members
        ]

    @functools.wraps(function)
    def wrapper(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{f.name: values.pop(f.name) for f in fields(group)})
        function(**values)

    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    del wrapper.__wrapped__  # inspect would look behind the wrapper
    return wrapper


def given_of(group: object, *without: str) -> dict[str, Any]:
    """The fields of a group of options that were given."""
    values = {f.name: getattr(group, f.name) for f in fields(group)}  # type: ignore[arg-type]
    return {name: value for name, value in values.items() if value is not None and name not in without}


def require_only(line: Context, read: Iterable[str], who: str) -> None:
    """Raise ConfigError for an option on the command line that ``who`` does not read; ``read``: the names of
    those parameters that it does."""
    known = frozenset(read)
    for one in line.command.params:
        name = one.name or ""
        source = line.get_parameter_source(name)
        if name not in known and source is not None and source.name == "COMMANDLINE":
            spelled = "/".join([max(one.opts, key=len), *one.secondary_opts])
            raise ConfigError(f"{spelled} says nothing to {who}", "leave it out")


# Options of EngineFlags that are not named as LLM's arguments are.
_WORDED = ("sparse", "ignore_field", "memory", "frspec_path", "draft_model_path")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineFlags:
    """How a model runs."""

    weights: Annotated[
        str | None,
        Option(help=f"Weights in memory: {weight_words('as stored')}; int4 in groups of 32, int4-g64 of 64."),
    ] = None
    attention: Annotated[
        str | None,
        Option(help="auto (sparse for long inputs where the model or --sparse says so), dense, sparse."),
    ] = None
    sparse: Annotated[
        str | None,
        Option(
            metavar="KEY=VALUE,...",
            help="Settings of sparse attention, as in topk=16,window=1024,dense_len=4096: "
            "fields of sparse_config; lengths in tokens, topk in blocks. Or auto: what was measured for the "
            "model (`minicpm4 eval sparse`).",
        ),
    ] = None
    kv: Annotated[str | None, Option(help=f"Keys and values in memory: {words(KV_FORMATS)}.")] = None
    activations: Annotated[
        str | None, Option(help="auto (at least 16 bits), or int8: faster on long prompts, less exact.")
    ] = None
    backend: Annotated[str | None, Option(help="Kernels: auto, cpu, gpu, or ref (NumPy, slow).")] = None
    context: Annotated[
        int | None,
        Option(
            help="Most tokens of prompt and answer together. Default: the model's, or what fits in memory."
        ),
    ] = None
    threads: Annotated[
        int | None, Option(help="Threads of the CPU kernels. Default: as calibrated, else the cores.")
    ] = None
    draft: Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="What guesses tokens, several of which are then checked in one pass; no answer changes, but "
            "on AMX and GPUs nearly tied tokens may: off, suffix (from the text so far; auto, the default, "
            "is that where it changes no bit), suffix:shared (from earlier requests, too), "
            "model:NAME (a smaller one of the same vocabulary), eagle:PATH (a head), "
            "mtp (that of our own training).",
        ),
    ] = None
    draft_tokens: Annotated[
        int | None,
        Option(
            metavar="N", help="Check so many drafts each time. Default: as many as gain time, maybe none."
        ),
    ] = None
    draft_vocab: Annotated[
        str | None,
        Option(
            metavar="N|25%",
            help="A head or model that drafts guesses among so many tokens (25%), the most frequent ones of "
            "--frspec-path.",
        ),
    ] = None
    frspec_path: Annotated[
        Path | None, Option(metavar="FILE", help="Which tokens are frequent, as `minicpm4 spec rank` counts.")
    ] = None
    draft_model_path: Annotated[
        Path | None, Option(metavar="DIR", help="The folder of an EAGLE head: as --draft eagle:DIR.")
    ] = None
    memory: Annotated[
        float | None,
        Option(
            parser=gigabytes,
            metavar="GB",
            help="What weights, cache and buffers may take together. Default: what is available.",
        ),
    ] = None
    ignore_field: IgnoreOption = None

    def settings(self) -> dict[str, Any]:
        """Keyword arguments of ``LLM`` for what was given. Raises ConfigError."""
        settings: dict[str, Any] = {"max_batch": 1, **given_of(self, *_WORDED)}
        if self.frspec_path is not None:
            settings["draft_ranks"] = self.frspec_path
        if self.draft_model_path is not None:
            require(self.draft is None, "--draft and --draft-model-path are given", "give one of them")
            settings["draft"] = f"eagle:{self.draft_model_path}"
        if self.memory is not None:
            settings["memory"] = bytes_of("--memory", self.memory)
        if self.ignore_field:
            settings["ignore_fields"] = tuple(self.ignore_field)
        if self.sparse is not None:
            settings["sparse"] = sparse_option(self.sparse)
        return settings

    def told(self) -> dict[str, Any]:
        """What was given, by name, for reports: values of JSON."""
        given = given_of(self)
        return {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}

    def inspect(self, model: str, **more: Any) -> Inspection:
        """Open and plan a model; ``more``: options that a command decides. Raises Minicpm4Error."""
        settings = self.settings() | more
        from minicpm4 import zoo

        zoo.resolve(model)  # a name that leads nowhere is told of before all that opens models is imported
        from minicpm4.engine.load import inspect
        from minicpm4.engine.options import EngineOptions

        return inspect(model, EngineOptions(**settings))

    def load(self, model: str | Inspection) -> LLM:
        """Load a model, or one that is open. Raises Minicpm4Error."""
        found = self.inspect(model) if isinstance(model, str) else model
        from minicpm4 import LLM

        with progress_bar("loading", "layers") as progress:
            return LLM.from_inspection(found, progress)


SPARSE_ALIASES = {
    "window": "window_size",
    "block": "block_size",
    "kernel": "kernel_size",
    "stride": "kernel_stride",
    "init": "init_blocks",
    "lse": "lse_approx",
}
_BOOLEANS = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}


def sparse_option(text: str | None) -> dict[str, int | bool] | str | None:
    """What ``--sparse`` says: settings, or "auto". Raises ConfigError."""
    if text is None:
        return None
    return AUTO if text.strip() == AUTO else parse_sparse(text)


def parse_sparse(text: str, option: str = "--sparse") -> dict[str, int | bool]:
    """Read ``topk=16,window=1024``: fields of SparseConfig or their aliases, each at most once.

    Raises ConfigError naming the nearest key.
    """
    types = get_type_hints(SparseConfig)
    known = [f.name for f in fields(SparseConfig)]
    values: dict[str, int | bool] = {}
    for item in text.split(","):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            alone = f", or {AUTO} alone" if option == "--sparse" else ""
            raise ConfigError(
                f"{option} has {item.strip()!r}", f"write key=value, separated by commas{alone}"
            )
        name = SPARSE_ALIASES.get(key, key)
        if name not in known:
            raise ConfigError(f"{option} has an unknown key {key!r}", suggest(key, [*known, *SPARSE_ALIASES]))
        if name in values:
            raise ConfigError(f"{option} gives {name} twice", "give it once")
        values[name] = _scalar(f"{option} {key}", value, types[name])
    return values


def _scalar(what: str, value: str, kind: type) -> int | bool:
    if kind is bool:
        if value.lower() not in _BOOLEANS:
            raise ConfigError(f"{what}={value} is not a switch", "use on or off")
        return _BOOLEANS[value.lower()]
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"{what}={value} is not a whole number") from None


def numbers(option: str, text: str, most: int, least: int = 0) -> list[int]:
    """The distinct numbers of ``0,2048,8192``, in order. Raises ConfigError."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > MAX_NUMBERS:
        raise ConfigError(f"{option} has {len(parts)} values, {MAX_NUMBERS} are allowed")
    for part in parts:
        if not (part.isascii() and part.isdigit()):
            raise ConfigError(
                f"{option} has {part[:50]!r}", "write whole numbers with commas between, as in 0,2048,8192"
            )
    return sorted({number(option, int(part[:20]), most, least) for part in parts})


def number(option: str, value: N, most: int, least: int = 0) -> N:
    """``value`` if it is in range. Raises ConfigError."""
    if not least <= value <= most:
        raise ConfigError(f"{option} {value} is outside {least:,} to {most:,}")
    return value


def check_outputs(
    outputs: Mapping[str, Path | None], inputs: Iterable[str | Path] = (), folders: Iterable[Path] = ()
) -> None:
    """Refuse before the work what could not be written after it, what would stand where something else is
    read (``inputs``) or written, and what lies in ``folders``; ``outputs``: by option. Raises ConfigError."""
    models = [Path(os.path.realpath(one)) for one in folders]
    taken = {os.path.realpath(one) for one in inputs}
    for option, file in outputs.items():
        if file is None:
            continue
        if option == "--plot" and file.suffix.lower() != ".svg":
            raise ConfigError(
                f"--plot {file} does not end in .svg", "plots are SVG, which any browser shows: name it so"
            )
        place = os.path.realpath(file)
        if place in taken:
            raise ConfigError(f"{option} {file} is named twice in this command", "give it a name of its own")
        above = {*Path(place).parents, *Path(os.path.realpath(file.parent), file.name).parents}
        inside = next((one for one in models if one in above), None)
        if inside is not None:
            raise ConfigError(
                f"{option} {file} lies in {inside}, which is read or written here", "name a file elsewhere"
            )
        try:
            check_writing(file)
        except OSError as error:
            raise ConfigError(f"cannot write {option} {file}: {error.strerror}") from error
        taken.add(place)


def texts_or_manual(files: Sequence[Path]) -> str:
    """What stands in ``files``, one after another; without any, Python's manual. Raises ConfigError,
    TextError."""
    if not files:
        from minicpm4.text.manual import python_manual

        return python_manual()
    return "\n\n".join(read_text(file, MAX_TEXT_BYTES, ConfigError, "give a file of text") for file in files)


def then_written(*files: tuple[Path | None, Callable[[Path], None]]) -> ExitStack:
    """To show within what took long: afterwards each file that was asked for is written, by its function.
    So figures are written if they cannot be shown (a closed standard output), were shown if one cannot be
    written, and one that cannot be does not keep the others back. Raises OSError."""
    stack = ExitStack()
    for file, write in reversed(files):
        if file is not None:
            stack.callback(write, file)
    return stack


def write_figures(file: Path, figures: Any) -> None:
    """Write as JSON what took long; where the file is refused, print it. Raises OSError."""
    try:
        write_json(file, finite(figures))
    except OSError:
        print(json_text(finite(figures)))
        raise
