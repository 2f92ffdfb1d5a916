"""Download the files of a hub repository: resumable, checked, and never half there.

huggingface_hub supplies the access token. The list of files (sizes, checksums, commit) is fetched here, of
which no more is read than a model's may have, and so are the bytes, into ``NAME.<checksum>.part`` beside the
target, which is renamed once its checksum is right. A manifest, written last, marks the folder as complete.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import quote

from minicpm4.config.strict import shown
from minicpm4.errors import ModelNotFoundError
from minicpm4.files import growing, parse_json, publish, read_json, write_json
from minicpm4.files.gguf_parts import models_of, parts_of
from minicpm4.zoo.asking import hub_request, opened
from minicpm4.zoo.sources import BY_HAND, HubSource
from minicpm4.zoo.waiting import within

__all__ = ["CHUNK", "FileProgress", "is_complete", "pull_repo"]

FileProgress = Callable[[str, int, int], None]  # file, bytes done, bytes in all

CHUNK = 1 << 20
TRIES = 5  # in a row that bring no byte
WAIT = 0.5  # seconds before the second try; doubles
TIMEOUT = 20.0  # seconds without an answer
LEAST, PATIENCE = 1024, 60.0  # bytes a second that a hub must send, over as many seconds
LISTING = 120.0  # seconds for the list of files, however it trickles
MAX_LISTING = 1 << 24  # its bytes; of 50,000 files it has about 15 MB
MANIFEST = ".minicpm4.json"
MAX_MANIFEST = 1 << 22  # bytes
STARTED = ".minicpm4.started"
OFFLINE = "HF_HUB_OFFLINE is set"
_TEMPLATES = "additional_chat_templates/"
_SUFFIXES = (".safetensors", ".json", ".model", ".jinja", ".txt", ".gguf", ".kv")
_MAX_FILES = 2000
_MAX_NAME = 200  # bytes: with what a part of it is called, file systems take 255
_MAX_SIZE = 1 << 62
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """One file as the hub lists it. ``digest``: sha256 of a large file, git's blob sha1 of a small one."""

    name: str
    size: int
    digest: str

    def matches(self, path: Path) -> bool:
        """Whether the content of ``path`` is this file."""
        return path.stat().st_size == self.size and self._digest(path) == self.digest

    def _digest(self, path: Path) -> str:
        if len(self.digest) == 64:
            total = hashlib.sha256()
        else:
            total = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                total.update(chunk)
        return total.hexdigest()


@dataclass(slots=True)
class _Meter:
    """Bytes of the whole download, for the progress callback."""

    report: FileProgress | None
    total: int
    before: int = 0  # of the files that are done

    def show(self, file: str, done: int) -> None:
        if self.report is not None:
            self.report(file, self.before + done, self.total)


class _Pace:
    """Refuses a hub that keeps a download alive without bringing it on."""

    def __init__(self, name: str) -> None:
        self._name, self._since, self._bytes = name, time.monotonic(), 0

    def add(self, size: int) -> None:
        """Raises ModelNotFoundError where fewer than LEAST bytes a second came over PATIENCE seconds."""
        self._bytes += size
        took = time.monotonic() - self._since
        if took < PATIENCE:
            return
        if self._bytes < LEAST * took:
            raise ModelNotFoundError(
                f"{self._name} comes at {self._bytes / took:.0f} bytes a second from {endpoint()}, "
                f"{LEAST:,} are the least",
                "pull it again later: what has arrived is kept",
            )
        self._since, self._bytes = time.monotonic(), 0


def is_complete(folder: Path) -> bool:
    """Whether a download folder holds all its files: by its manifest, or, put there by hand, by its looks."""
    manifest = folder / MANIFEST
    if manifest.is_file():
        try:
            files = read_json(manifest, MAX_MANIFEST, ModelNotFoundError)["files"]
            return all((folder / name).stat().st_size == size for name, size in files.items())
        except (OSError, ModelNotFoundError, KeyError, AttributeError, TypeError, ValueError):
            return False
    if not folder.is_dir() or any(folder.glob("*.part")):
        return False
    # Without a manifest it may be a pull that stopped between two files; that left its own mark.
    weights = any(folder.glob("*.safetensors")) and (folder / "config.json").is_file()
    return (weights or any(folder.glob("*.gguf"))) and not (folder / STARTED).exists()


def pull_repo(source: HubSource, folder: Path, progress: FileProgress | None = None) -> None:
    """Download the model files of ``source`` into ``folder``. Raises ModelNotFoundError."""
    revision, files = _choose(source, *_list_files(source.repo))
    total = sum(file.size for file in files)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        growing(folder / STARTED).close()
        _require_space(folder, files)
        meter = _Meter(progress, total)
        for file in files:
            _fetch(source.repo, revision, file, folder, meter)
            meter.before += file.size
            meter.show(file.name, 0)
        if source.file is None:
            content = {"repo": source.repo, "revision": revision, "files": {f.name: f.size for f in files}}
            write_json(folder / MANIFEST, content, durable=True)
            (folder / STARTED).unlink()
    except OSError as error:
        raise ModelNotFoundError(
            f"cannot write the files of {source.repo} to {folder}: {error}",
            "set MINICPM4_HOME to another folder",
        ) from error


def endpoint() -> str:
    """Address of the hub: $HF_ENDPOINT, else the public one. Raises ModelNotFoundError."""
    address = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if not address.startswith(("https://", "http://")):
        raise ModelNotFoundError(f"HF_ENDPOINT = {address!r} is not an http or https address", "unset it")
    return address


def _list_files(repo: str) -> tuple[str, list[RemoteFile]]:
    """Commit and top-level model files of ``repo``."""
    import urllib.error

    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # it is there

    address = endpoint()
    try:
        validate_repo_id(repo)
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError(OFFLINE)
        content = within(LISTING, lambda: _listing(f"{address}/api/models/{repo}?blobs=True"))
    except HFValidationError as error:
        raise ModelNotFoundError(f"{repo!r} is not a repository name: {error}") from error
    except urllib.error.HTTPError as error:
        error.close()
        raise _refused(repo, error.code) from error
    except Exception as error:  # of addresses and connections
        raise _unreachable(repo, error) from error
    where = f"the list of files of {repo}"
    if len(content) > MAX_LISTING:
        raise ModelNotFoundError(f"{where} from {address} has over {MAX_LISTING:,} bytes", "name another one")
    info = parse_json(content, where, ModelNotFoundError, "try again later")
    commit, entries = (info.get("sha"), info.get("siblings")) if isinstance(info, dict) else (None, None)
    listed = map(_listed, entries if isinstance(entries, list) else ())
    files = [file for file in listed if file is not None]
    if not _is_digest(commit) or len(files) > _MAX_FILES:
        raise ModelNotFoundError(f"{address} lists {len(files)} files of {repo} at commit {shown(commit)}")
    return str(commit), files


def _listing(url: str) -> bytes:
    """What is there, as it is and uncompressed; of what is too long, a byte more than is taken."""
    with opened(hub_request(url), TIMEOUT) as answer:
        return bytes(answer.read(MAX_LISTING + 1))


def _listed(entry: Any) -> RemoteFile | None:
    """A file of a list, of which nothing was checked; None: it is none of a model's."""
    if not isinstance(entry, dict):
        return None
    lfs, whole, size = entry.get("lfs"), entry.get("rfilename"), entry.get("size")
    digest = lfs.get("sha256") if isinstance(lfs, dict) and lfs else entry.get("blobId")
    if not (isinstance(whole, str) and type(size) is int and 0 <= size < _MAX_SIZE and _is_digest(digest)):
        return None
    # Only plain names, and chat templates in their folder: no name may lead elsewhere.
    name = whole.removeprefix(_TEMPLATES)
    plain = name.isprintable() and not set(name) & set("/\\:") and not name.startswith(".")
    plain = plain and len(name.encode()) <= _MAX_NAME and (name == whole or name.endswith(".jinja"))
    return RemoteFile(name=whole, size=size, digest=digest) if plain and whole.endswith(_SUFFIXES) else None


def _is_digest(text: Any) -> TypeGuard[str]:
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def _choose(source: HubSource, revision: str, files: list[RemoteFile]) -> tuple[str, list[RemoteFile]]:
    """Which files to fetch: one model in .gguf files if named or alone, else safetensors with what belongs to
    them. Of a split model all parts are fetched, whichever is named."""
    tensors = [f for f in files if f.name.endswith(".safetensors")]
    ggufs = [f for f in files if f.name.endswith(".gguf")]
    if source.file is not None:
        wanted = parts_of(source.file)
        chosen = [f for f in ggufs if f.name in wanted]
        missing = sorted(set(wanted) - {f.name for f in chosen})
        if missing:
            raise ModelNotFoundError(
                f"{source.repo} has no file {missing[0]}", _gguf_hint(source.repo, ggufs)
            )
        if source.sha256 is not None and chosen[0].digest != source.sha256:
            raise ModelNotFoundError(
                f"the hub lists {source.file} of {source.repo} with sha256 {chosen[0].digest}, "
                f"expected {source.sha256}",
                "the repository has changed since this version was tested",
            )
        return revision, chosen
    if tensors:
        return revision, [f for f in files if f not in ggufs]
    models = models_of(f.name for f in ggufs)
    if len(models) == 1:
        absent = sorted(set(parts_of(models[0])) - {f.name for f in ggufs})
        if absent:
            raise ModelNotFoundError(
                f"{source.repo} lacks {absent[0]}, a part of its model",
                "name another repository that has the model whole",
            )
        return revision, files
    if ggufs:
        raise ModelNotFoundError(
            f"{source.repo} has {len(models)} models in .gguf files: one must be chosen",
            _gguf_hint(source.repo, ggufs),
        )
    raise ModelNotFoundError(
        f"{source.repo} has neither .safetensors nor .gguf files", "pickled weights (.bin) are never loaded"
    )


def _gguf_hint(repo: str, ggufs: list[RemoteFile]) -> str:
    names = ", ".join(models_of(f.name for f in ggufs)[:20])
    return f"run: minicpm4 pull {repo}/FILE, FILE being one of {names}" if ggufs else "it has no .gguf file"


def _require_space(folder: Path, files: list[RemoteFile]) -> None:
    have = sum(p.stat().st_size for p in folder.iterdir() if p.is_file())
    needed, free = sum(f.size for f in files) - have, shutil.disk_usage(folder).free
    if needed > free:
        raise ModelNotFoundError(
            f"the download needs {needed / 1e9:.1f} GB more, {folder} has {free / 1e9:.1f} GB free",
            "set MINICPM4_HOME to a folder with more space",
        )


def _fetch(repo: str, revision: str, file: RemoteFile, folder: Path, meter: _Meter) -> None:
    target = folder / file.name
    if target.is_file() and file.matches(target):
        return
    part = folder / f"{file.name}.{file.digest[:12]}.part"
    part.parent.mkdir(exist_ok=True)
    for path in (part, *([part.parent] if part.parent != folder else [])):
        if path.is_symlink():
            raise ModelNotFoundError(f"{path} is a link, which a download does not follow", "remove it")
    url = f"{endpoint()}/{repo}/resolve/{revision}/{quote(file.name)}"
    failures, wait, pace = 0, WAIT, _Pace(file.name)
    most = part.stat().st_size if part.is_file() else 0
    while not part.is_file() or part.stat().st_size < file.size:
        problem = _append(url, repo, part, file, meter, pace)
        if problem is None:
            continue
        size = part.stat().st_size if part.is_file() else 0
        # Further than ever: one that begins anew and goes on by turns would come no further for ever.
        failures, most = (0, size) if size > most else (failures + 1, most)
        if failures >= TRIES:
            raise _unreachable(repo, problem)
        time.sleep(wait if failures else 0)
        wait = wait * 2 if failures else WAIT
    if not file.matches(part):
        part.unlink()
        raise ModelNotFoundError(
            f"{file.name} of {repo} arrived with another checksum than the hub lists", "pull it again"
        )
    publish(part, target, durable=True)


def _append(
    url: str, repo: str, part: Path, file: RemoteFile, meter: _Meter, pace: _Pace
) -> Exception | None:
    """Ask for the missing bytes and append them; return what cut the connection, if anything did."""
    import http.client  # these take as long to import as all of zoo: only a download waits for them
    import urllib.error

    done = part.stat().st_size if part.is_file() else 0
    request = hub_request(url)
    if done:
        request.add_header("Range", f"bytes={done}-")
    try:
        with opened(request, TIMEOUT) as answer:
            resumed = done and answer.headers.get("Content-Range", "").startswith(f"bytes {done}-")
            with growing(part, anew=not resumed) as out:
                done = _copy(answer, out, done if resumed else 0, file, meter, pace)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            part.unlink(missing_ok=True)
        elif error.code != 429 and error.code < 500:
            raise _refused(f"{repo}/{file.name}", error.code) from error
        return error
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        return error
    except ValueError as error:  # an address that it redirects to is none
        return error
    return None if done == file.size else ConnectionError(f"cut after {done} of {file.size} bytes")


def _copy(answer: Any, out: Any, done: int, file: RemoteFile, meter: _Meter, pace: _Pace) -> int:
    # What is there, not a whole chunk: that may never come.
    while done < file.size and (chunk := answer.read1(CHUNK)):
        done += len(chunk)
        if done > file.size:
            raise ModelNotFoundError(f"{file.name} is longer than the {file.size} bytes the hub lists")
        out.write(chunk)
        pace.add(len(chunk))
        meter.show(file.name, done)
    return done


def _refused(what: str, status: int) -> ModelNotFoundError:
    if status in (401, 403):
        return ModelNotFoundError(
            f"the hub refuses {what} (HTTP {status}): it does not exist, is private or gated",
            "check the name; for a gated model accept its licence on the hub, then set HF_TOKEN",
        )
    remedy = "check the name" if status == 404 else "try again later"
    return ModelNotFoundError(f"the hub answers HTTP {status} for {what}", remedy)


def _unreachable(repo: str, error: Exception) -> ModelNotFoundError:
    reason = str(error).split("\n")[0][:200] or type(error).__name__
    reason = re.sub(r"^<urlopen error (?:\[Errno -?\d+\] )?(.+)>$", r"\1", reason)
    if reason == OFFLINE:
        return ModelNotFoundError(f"cannot fetch {repo}: {reason}", f"unset it to download; {BY_HAND}")
    return ModelNotFoundError(
        f"cannot fetch {repo} from {endpoint()}: {reason}",
        "check the network and run it again, what has arrived is kept (HF_ENDPOINT names another hub); "
        + BY_HAND,
    )
