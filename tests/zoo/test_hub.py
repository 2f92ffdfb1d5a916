"""Pulling from a hub: resume, checksums, refusals. The hub is a server on loopback."""

from __future__ import annotations

import http.client
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minicpm4 import zoo
from minicpm4.errors import ModelNotFoundError
from minicpm4.places import models_home
from minicpm4.zoo import hub as hub_module
from tests.zoo.hub_server import COMMIT, REPO, Hub, asked, kept

NAME = "minicpm4-0.5b"
WEIGHTS = bytes(range(256)) * 4000
FILES = {
    "config.json": b'{"model_type": "minicpm"}',
    "model.safetensors": WEIGHTS,
    "tokenizer.model": b"pieces",
    "modeling_minicpm.py": b"raise SystemExit",
    "pytorch_model.bin": b"\x80\x04",
    "onnx/model.safetensors": b"elsewhere",
    ".gitattributes": b"",
}
WANTED = {"config.json", "model.safetensors", "tokenizer.model"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with asked(FILES, tmp_path / "home", monkeypatch) as running:
        yield running


def downloads(hub: Hub, file: str) -> list[str | None]:
    return [asked for path, asked in hub.requests if path.endswith(f"/resolve/{COMMIT}/{file}")]


def test_pull_fetches_the_model_files_only(hub: Hub, tmp_path: Path) -> None:
    folder = zoo.pull(NAME)
    assert folder == tmp_path / "home" / "models" / "openbmb--MiniCPM4-0.5B"
    assert kept(folder) == WANTED
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert zoo.resolve(NAME) == zoo.resolve(REPO) == folder
    manifest = json.loads((folder / ".minicpm4.json").read_text())
    assert manifest["repo"] == REPO and manifest["revision"] == COMMIT and set(manifest["files"]) == WANTED
    entry = next(e for e in zoo.list_models() if e.name == NAME)
    assert entry.present and entry.path == folder and entry.size is not None and entry.size >= len(WEIGHTS)


def test_a_second_pull_asks_nothing(hub: Hub) -> None:
    zoo.pull(NAME)
    hub.requests.clear()
    zoo.pull(NAME)
    assert hub.requests == []


def test_a_second_pull_waits_for_the_first(hub: Hub) -> None:
    inside, go_on, found = threading.Event(), threading.Event(), []

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            go_on.set()

    def slow(file: str, done: int, total: int) -> None:
        if file == "model.safetensors" and 0 < done < len(WEIGHTS):
            inside.set()
            assert go_on.wait(60)

    hub.cut_after = 400_000
    first = threading.Thread(target=lambda: found.append(zoo.pull(NAME, slow)))
    first.start()
    assert inside.wait(60)
    told = Told()
    logging.getLogger("minicpm4").addHandler(told)
    second = zoo.pull(NAME)
    go_on.set()
    logging.getLogger("minicpm4").removeHandler(told)
    first.join()
    assert found == [second] and (second / "model.safetensors").read_bytes() == WEIGHTS
    assert downloads(hub, "model.safetensors") == [None, "bytes=400000-", "bytes=800000-"]


def test_progress_counts_the_whole_download(hub: Hub) -> None:
    seen: list[tuple[str, int, int]] = []
    zoo.pull(NAME, lambda *step: seen.append(step))
    total = sum(len(FILES[name]) for name in WANTED)
    assert {step[2] for step in seen} == {total} and seen[-1][1] == total
    assert [step[1] for step in seen] == sorted(step[1] for step in seen)


def test_a_cut_connection_is_resumed_where_it_stopped(hub: Hub) -> None:
    hub.cut_after = 400_000
    folder = zoo.pull(NAME)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert downloads(hub, "model.safetensors") == [None, "bytes=400000-", "bytes=800000-"]


def test_a_stopped_pull_goes_on_later(hub: Hub) -> None:
    hub.cut_after = 300_000
    hub.cuts_left = 1

    def stop(file: str, done: int, total: int) -> None:
        if done >= 300_000 and file == "model.safetensors":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        zoo.pull(NAME, stop)
    with pytest.raises(
        ModelNotFoundError, match=r"is not on this machine completely\. run: minicpm4 pull minicpm4-0.5b"
    ):
        zoo.resolve(NAME)
    hub.requests.clear()
    zoo.pull(NAME)
    assert downloads(hub, "model.safetensors") == ["bytes=300000-"]
    assert kept(zoo.resolve(NAME)) == WANTED


def test_a_server_without_ranges_starts_over(hub: Hub) -> None:
    hub.cut_after, hub.cuts_left, hub.ranges = 300_000, 2, False
    assert (zoo.pull(NAME) / "model.safetensors").read_bytes() == WEIGHTS


def test_a_connection_that_never_gets_further_gives_up(hub: Hub) -> None:
    hub.cut_after, hub.ranges = 300_000, False
    with pytest.raises(
        ModelNotFoundError, match=r"cannot fetch openbmb/MiniCPM4-0.5B from http.*cut after 300000 of"
    ):
        zoo.pull(NAME)
    assert len(downloads(hub, "model.safetensors")) == hub_module.TRIES + 1


def test_a_hub_that_sends_a_few_bytes_for_ever_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "PATIENCE", 0.5)
    hub.drips = f"/resolve/{COMMIT}/model.safetensors"
    with pytest.raises(
        ModelNotFoundError, match=r"model\.safetensors comes at \d+ bytes a second.* 1,024 are"
    ):
        zoo.pull(NAME)
    (part,) = (models_home() / "openbmb--MiniCPM4-0.5B").glob("model.safetensors.*.part")
    assert WEIGHTS.startswith(part.read_bytes()) and part.stat().st_size > 0
    hub.drips = ""
    assert (zoo.pull(NAME) / "model.safetensors").read_bytes() == WEIGHTS


def test_a_listing_that_trickles_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "LISTING", 0.5)
    hub.drips = "/api/models/"
    with pytest.raises(ModelNotFoundError, match=r"cannot fetch openbmb/.*no whole answer in 0\.5 s"):
        zoo.pull(NAME)


def test_a_planted_link_is_not_followed(hub: Hub, tmp_path: Path) -> None:
    """Neither that of a part, nor that of the mark of a download that has begun."""
    digest = next(e["lfs"]["sha256"] for e in hub.listing()["siblings"] if "lfs" in e)
    folder = models_home() / "openbmb--MiniCPM4-0.5B"
    folder.mkdir(parents=True)
    mine = tmp_path / "mine"
    mine.write_bytes(b"mine")
    part = folder / f"model.safetensors.{digest[:12]}.part"
    part.symlink_to(mine)
    with pytest.raises(ModelNotFoundError, match=r"\.part is a link.*remove it"):
        zoo.pull(NAME)
    part.unlink()
    part.hardlink_to(mine)
    with pytest.raises(ModelNotFoundError, match="has another name"):
        zoo.pull(NAME)
    part.unlink()
    (folder / hub_module.STARTED).unlink()
    (folder / hub_module.STARTED).symlink_to(tmp_path / "made")
    with pytest.raises(ModelNotFoundError, match="cannot write the files"):
        zoo.pull(NAME)
    assert mine.read_bytes() == b"mine" and not (tmp_path / "made").exists()


@pytest.mark.parametrize(("file", "digest"), [("model.safetensors", "0" * 64), ("config.json", "0" * 40)])
def test_a_wrong_checksum_is_refused_and_the_bytes_dropped(hub: Hub, file: str, digest: str) -> None:
    hub.lies = {file: digest}
    with pytest.raises(ModelNotFoundError, match=rf"{file} of {REPO} arrived with another checksum"):
        zoo.pull(NAME)
    folder = models_home() / "openbmb--MiniCPM4-0.5B"
    assert file not in kept(folder) and not list(folder.glob("*.part"))
    with pytest.raises(ModelNotFoundError, match="minicpm4 pull"):
        zoo.resolve(NAME)
    hub.lies = {}
    assert kept(zoo.pull(NAME)) == WANTED


def test_named_templates_are_fetched(hub: Hub) -> None:
    hub.files["additional_chat_templates/tool_use.jinja"] = b"{{ tools }}"
    folder = zoo.pull(NAME)
    assert (folder / "additional_chat_templates" / "tool_use.jinja").read_bytes() == b"{{ tools }}"
    assert zoo.pull(NAME) == folder


def test_names_that_lead_elsewhere_are_not_fetched(hub: Hub, tmp_path: Path) -> None:
    names = ["../evil.json", "/evil.json", "a\\evil.json", ".evil.json", "C:evil.json"]
    names += [f"additional_chat_templates/{name}" for name in ("../evil.jinja", "evil.json", ".evil.jinja")]
    hub.extra = [{"rfilename": name, "size": 1, "blobId": "a" * 40} for name in names]
    hub.extra.append({"rfilename": "odd.json", "size": 1, "blobId": "../../evil"})
    assert kept(zoo.pull(NAME)) == WANTED
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # urllib leaves its answer open
@pytest.mark.parametrize("place", ["http://[", "http://[::1", "x:y", "file:///etc/passwd", "http://é/", "//"])
def test_a_redirection_that_leads_nowhere(hub: Hub, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sockets, connect = [], http.client.HTTPConnection.connect

    def connected(connection: http.client.HTTPConnection) -> None:
        connect(connection)
        sockets.append(connection.sock)

    monkeypatch.setattr(http.client.HTTPConnection, "connect", connected)
    hub.redirect = place
    with pytest.raises(ModelNotFoundError):
        zoo.pull(NAME)
    assert sockets and all(one.fileno() == -1 for one in sockets)  # none is left to the collector


@pytest.mark.parametrize("name", ["\0", "\ud800", "x" * 5000])
def test_a_manifest_with_an_odd_name_is_of_no_whole_download(hub: Hub, name: str) -> None:
    folder = zoo.pull(NAME)
    manifest = json.loads((folder / ".minicpm4.json").read_text())
    manifest["files"][name] = 1
    (folder / ".minicpm4.json").write_text(json.dumps(manifest))
    assert not next(one for one in zoo.list_models() if one.name == NAME).present


def test_a_failing_server_is_tried_again(hub: Hub) -> None:
    hub.status = 500
    with pytest.raises(ModelNotFoundError, match=r"cannot fetch .* 500"):
        zoo.pull(NAME)
    assert len(downloads(hub, "config.json")) == hub_module.TRIES


def test_repositories_of_gguf_files(hub: Hub) -> None:
    hub.files = {"README.md": b"", "a-q4.gguf": b"GGUF a", "b-q8.gguf": b"GGUF b"}
    with pytest.raises(
        ModelNotFoundError, match=r"has 2 models in .gguf files: one must be.*FILE being one of a-q4.gguf, b"
    ):
        zoo.pull(REPO)
    with pytest.raises(ModelNotFoundError, match=rf"{REPO} has no file c.gguf.*one of a-q4.gguf"):
        zoo.pull(f"{REPO}/c.gguf")
    path = zoo.pull(f"{REPO}/b-q8.gguf")
    assert path.read_bytes() == b"GGUF b" and zoo.resolve(f"{REPO}/b-q8.gguf") == path
    assert not zoo.hub.is_complete(path.parent)
    hub.files.pop("b-q8.gguf")
    assert zoo.pull(REPO) == path.parent


def test_a_model_that_is_split_comes_whole(hub: Hub) -> None:
    parts = {f"m-q4-0000{i}-of-00002.gguf": b"GGUF %d" % i for i in (1, 2)}
    hub.files = {**parts, "b-q8.gguf": b"GGUF b", "lone-00001-of-00002.gguf": b"GGUF"}
    with pytest.raises(ModelNotFoundError, match=r"has 3 models.*FILE being one of b-q8.gguf, lone-00001-of"):
        zoo.pull(REPO)
    with pytest.raises(ModelNotFoundError, match=r"has no file lone-00002-of-00002.gguf"):
        zoo.pull(f"{REPO}/lone-00001-of-00002.gguf")
    name = f"{REPO}/m-q4-00002-of-00002.gguf"
    path = zoo.pull(name)
    assert kept(path.parent) == set(parts) and path.name == "m-q4-00002-of-00002.gguf"
    (path.parent / "m-q4-00001-of-00002.gguf").unlink()
    with pytest.raises(ModelNotFoundError, match="is not on this machine completely"):
        zoo.resolve(name)
    assert zoo.pull(name) == path and kept(path.parent) == set(parts)


def test_a_repository_of_one_split_model(hub: Hub) -> None:
    hub.files = {"config.json": b"{}", "m-00001-of-00002.gguf": b"GGUF", "m-00002-of-00002.gguf": b"GGUF"}
    assert kept(zoo.pull(REPO)) == set(hub.files)
    hub.files.pop("m-00002-of-00002.gguf")
    with pytest.raises(ModelNotFoundError, match=r"lacks m-00002-of-00002.gguf.*name another repository"):
        zoo.hub.pull_repo(zoo.HubSource(repo=REPO), zoo.pull(REPO).parent / "other")


def test_a_repository_of_pickles(hub: Hub) -> None:
    hub.files = {"config.json": b"{}", "pytorch_model.bin": b"\x80"}
    with pytest.raises(ModelNotFoundError, match=r"has neither .safetensors nor .gguf files.*pickled"):
        zoo.pull(NAME)


def test_a_download_that_does_not_fit_the_disk(hub: Hub) -> None:
    hub.extra = [{"rfilename": "more.safetensors", "size": 10**18, "blobId": "a" * 40}]
    with pytest.raises(
        ModelNotFoundError, match=r"the download needs 1000000000.0 GB more, .* set MINICPM4_HOME"
    ):
        zoo.pull(NAME)
    assert downloads(hub, "config.json") == []


def test_a_folder_that_cannot_be_written(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINICPM4_HOME", str(tmp_path / "file"))
    with pytest.raises(
        ModelNotFoundError,
        match=r"cannot write to .*models: Not a directory. set MINICPM4_HOME to",
    ):
        zoo.pull(NAME)


def test_a_changed_size_makes_a_download_incomplete(hub: Hub) -> None:
    folder = zoo.pull(NAME)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelNotFoundError, match="not on this machine completely"):
        zoo.resolve(NAME)
    (folder / ".minicpm4.json").write_text("[]")
    assert not hub_module.is_complete(folder)
    zoo.pull(NAME)
    assert (folder / "config.json").read_bytes() == FILES["config.json"]


def test_offline_is_told_without_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINICPM4_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    pauses: list[float] = []
    others = set(threading.enumerate()) - {threading.current_thread()}  # servers of other tests

    def sleep(seconds: float, really: Callable[[float], None] = time.sleep) -> None:
        really(seconds) if threading.current_thread() in others else pauses.append(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(
        ModelNotFoundError,
        match=r"cannot fetch openbmb/.* from http://127.0.0.1:9: [^<>[]+\. check the network.* by hand",
    ):
        zoo.pull(NAME)
    assert pauses == []


def test_an_endpoint_that_is_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINICPM4_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc")
    with pytest.raises(
        ModelNotFoundError, match="HF_ENDPOINT = 'file:///etc' is not an http or https address"
    ):
        zoo.pull(NAME)
