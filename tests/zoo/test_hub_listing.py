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
from tests.zoo.hub_server import REPO, Hub, serve

FILES = {"config.json": b"{}", "model.safetensors": b"weights"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("MINICPM4_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serve(dict(FILES)) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
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
