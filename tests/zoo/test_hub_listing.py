"""What a hub lists: bounded, and of the shape that a list has; and downloads that it brings no further."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from minicpm4 import zoo
from minicpm4.errors import ModelNotFoundError
from minicpm4.zoo import hub as hub_module
from tests.zoo.hub_server import OLD, REPO, Hub, asked, kept, serve

NAME = "minicpm4-0.5b"
FILES = {"config.json": b"{}", "model.safetensors": b"weights"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with asked(FILES, tmp_path / "home", monkeypatch) as running:
        yield running


@pytest.mark.parametrize(
    "extra",
    [[{"rfilename": "x" * 40_000}], [{"rfilename": f"{i}.bin", "size": 1} for i in range(2000)]],
    ids=["a long name", "many files"],
)
def test_a_list_that_is_too_long_is_refused(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, extra: list[dict[str, Any]]
) -> None:
    monkeypatch.setattr(hub_module, "MAX_LISTING", 30_000)
    hub.extra = extra
    with pytest.raises(
        ModelNotFoundError, match=f"the list of files of {REPO} from .* has over 30,000 bytes"
    ):
        zoo.pull(REPO)
    monkeypatch.setattr(hub_module, "MAX_LISTING", 1 << 24)
    assert (zoo.pull(REPO) / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("extra", [None, 1, "x", [], {}, {"rfilename": "a.json", "size": 1, "lfs": [1]}])
def test_entries_that_are_none_are_left_out(hub: Hub, extra: Any) -> None:
    hub.extra = [extra]
    assert (zoo.pull(REPO) / "model.safetensors").read_bytes() == b"weights"


def test_offline_nothing_is_asked(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelNotFoundError, match=r"cannot fetch .*: HF_HUB_OFFLINE is set\. unset it.* by hand"
    ):
        zoo.pull(REPO)
    assert not hub.requests


def test_a_hub_that_begins_anew_and_goes_on_by_turns_is_given_up(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "WAIT", 0.0)
    hub.files["model.safetensors"], hub.cut_after, append = b"weights" * 20, 10, hub_module._append
    asked = 0

    def turned(*given: Any) -> Any:
        nonlocal asked
        asked, hub.ranges = asked + 1, not hub.ranges
        assert asked < 50, "it has no end"
        return append(*given)

    monkeypatch.setattr(hub_module, "_append", turned)
    with pytest.raises(ModelNotFoundError, match=r"cannot fetch .* cut after"):
        zoo.pull(REPO)


ODD = [None, [], {}, 5, -1, True, 1.5, "5", "x" * 300 + ".json", "a\n.json", "\ud800.json", 1 << 70]


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("name", ["rfilename", "size", "blobId", "lfs"])
def test_a_file_that_is_listed_oddly_is_left_out(hub: Hub, name: str, value: Any) -> None:
    entry: dict[str, Any] = {"rfilename": "odd.json", "size": 1, "blobId": "a" * 40}
    entry["lfs"] = {"sha256": value, "size": value, "pointerSize": 1} if name == "lfs" else None
    hub.extra = [entry if name == "lfs" else {**entry, name: value}]
    if (name, value) == ("size", 5):
        with pytest.raises(ModelNotFoundError):
            zoo.pull(NAME)  # it is not there
    else:
        assert kept(zoo.pull(NAME)) == set(FILES)


@pytest.mark.parametrize("commit", [None, "", 5, [1], "main", "../" * 10, "\ud800", "x" * 5000])
def test_a_commit_that_is_none_is_refused(hub: Hub, commit: Any) -> None:
    hub.commit = commit
    with pytest.raises(ModelNotFoundError, match="at commit") as caught:
        zoo.pull(NAME)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "the hub answers HTTP 404 for|does not exist"),
        (401, "the hub refuses"),
        (403, "set HF_TOKEN"),
        (503, "HTTP 503"),
    ],
)
def test_refusals_of_the_listing(hub: Hub, status: int, message: str) -> None:
    hub.status = status
    with pytest.raises(ModelNotFoundError, match=message):
        zoo.pull(NAME)


def test_an_absent_repository(hub: Hub) -> None:
    with pytest.raises(
        ModelNotFoundError, match=r"the hub answers HTTP 404 for openbmb/MiniCPM4-0.5. check the name"
    ):
        zoo.pull("openbmb/MiniCPM4-0.5")


def test_the_token_goes_to_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    zoo.pull(NAME)
    assert set(hub.tokens) == {"Bearer hf_secret"}


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_renamed_repository_hears_the_token_at_the_same_hub_alone(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serve(dict(FILES)) as other:
        hub.renamed = other.address if elsewhere else hub.address
        assert kept(zoo.pull(OLD)) == set(FILES)
        assert set(hub.tokens) == {"Bearer hf_secret"}
        assert set(other.tokens) == ({None} if elsewhere else set())
