"""The command `train`: wrong recipes are refused in one line; a small one runs, goes on and exports."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from minicpm4.cli import run

RECIPE = """
name = "t"
output = "OUT"
[model.shape]
hidden_size = 64
intermediate_size = 64
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
max_position_embeddings = 64
rms_norm_eps = 1e-5
scale_emb = 12.0
scale_depth = 1.4
dim_model_base = 64.0
[tokenizer]
vocab_size = 320
corpora = ["text"]
[corpora.text]
paths = ["TEXT"]
[[stages]]
name = "stable"
steps = 4
batch_tokens = 64
context = 32
rate = 0.01
data = { text = 1.0 }
"""

# Trains, and waits in the middle of it until it may go on.
SLOW = """
import sys, time
from pathlib import Path
from minicpm4.cli import run
from minicpm4.train import checkpoint
recipe, begun, go_on = sys.argv[1:]
save = checkpoint.save
def slow(*given):
    Path(begun).touch()
    while not Path(go_on).exists():
        time.sleep(0.05)
    return save(*given)
checkpoint.save = slow
sys.exit(run(["train", recipe]))
"""


def write(folder: Path, old: str = "", new: str = "") -> Path:
    (folder / "text.txt").write_text("Alpha beta gamma. " * 50, encoding="utf-8")
    text = RECIPE.replace(old, new) if old else RECIPE
    text = text.replace("OUT", str(folder / "run")).replace("TEXT", str(folder / "text.txt"))
    (folder / "r.toml").write_text(text, encoding="utf-8")
    return folder / "r.toml"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rate =", "rtae =", "stages[0] has an unknown key 'rtae'. did you mean 'rate'?"),
        ("steps = 4", 'steps = "4"', "stages[0].steps = '4' is not a valid int"),
        ("steps = 4", "steps = 0", "stage 'stable': steps = 0 is out of range"),
        ("{ text = 1.0 }", "{ txet = 1.0 }", "names the corpus 'txet', which is not defined"),
        ("context = 32", "context = 128", "context = 128 exceeds the model's 64 positions"),
        ("TEXT", "/nowhere", "/nowhere is neither a file nor a folder"),
        ("[tokenizer]", "[tokenizer", "is not TOML"),
        (
            "scale_emb =",
            "scale_embd =",
            "[model.shape] has an unknown key 'scale_embd'. did you mean 'scale_emb'?",
        ),
        ("vocab_size = 320", 'vocab_size = 320\npath = "x"', "[tokenizer] has both path and vocab_size"),
        ('[tokenizer]\nvocab_size = 320\ncorpora = ["text"]\n', "", "[tokenizer] needs exactly one of path"),
        ("vocab_size = 320", 'path = "x"', "tokenizer.corpora is given, but no vocab_size"),
        ('vocab_size = 320\ncorpora = ["text"]', 'path = "smollm2"', "'smollm2' leads nowhere"),
        ("rate = 0.01", 'rate = 0.01\nattention = "sparse"', "the model has no sparse_config"),
        ("rate = 0.01", 'rate = 0.01\nrounding = { "mlp.*" = "int3" }', "weight format 'int3' is not known"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, said: str
) -> None:
    pytest.importorskip("torch")
    assert run(["train", str(write(tmp_path, old, new))]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and said in last


def test_a_run_stops_goes_on_and_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    recipe = str(write(tmp_path))
    assert run(["train", recipe, "--until", "4", "--dry-run"]) == 0
    assert "stable" in capsys.readouterr().out
    assert run(["train", recipe, "--until", "2"]) == 0
    assert "2 of 4 steps done" in capsys.readouterr().err
    assert [folder.name for folder in (tmp_path / "run").glob("step-*")] == ["step-000000002"]
    assert run(["train", recipe, "--export", str(tmp_path / "model")]) == 0
    assert "4 of 4 steps done" in capsys.readouterr().err
    generate = ["generate", "-m", str(tmp_path / "model"), "--raw", "--prompt", "Alpha", "--max-tokens", "3"]
    assert run(generate) == 0
    # Weights elsewhere stay; the run's own model is written anew.
    assert run(["train", recipe, "--export", str(tmp_path / "model")]) == 2
    assert "holds weights already" in capsys.readouterr().err
    for _ in range(2):
        assert run(["train", recipe]) == 0
        own = capsys.readouterr().err.splitlines()[-1].rpartition(" ")[2]
        assert sorted(file.name for file in Path(own).parent.glob("model*")) == ["model"]
        assert (Path(own) / "config.json").is_file()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_ended_early_does_not_count_as_done(
    tmp_path: Path,
    number: signal.Signals,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`train r.toml && chat --model …` went on after the first Ctrl-C."""
    loop = pytest.importorskip("minicpm4.train.loop")
    recipe, one = write(tmp_path), loop.TrainingRun._one

    def told(self: Any, stage: Any, within: int) -> Any:
        if self.step == 1:
            signal.raise_signal(number)
        return one(self, stage, within)

    with monkeypatch.context() as patched:
        patched.setattr(loop.TrainingRun, "_one", told)
        assert run(["train", str(recipe)]) == code
    assert "the same command goes on from there" in capsys.readouterr().err
    assert (tmp_path / "run/step-000000002").is_dir() and not (tmp_path / "run/model").exists()
    assert run(["train", str(recipe)]) == 0
    assert (tmp_path / "run/model/config.json").is_file()


def test_a_run_that_has_ended_exports_the_model_that_it_had(tmp_path: Path) -> None:
    """The same command again takes no step: what was rounded stays rounded."""
    pytest.importorskip("torch")
    rounded = 'rate = 0.01\nrounding = { "mlp.*" = "ternary-g64" }'
    recipe, own = str(write(tmp_path, "rate = 0.01", rounded)), tmp_path / "run" / "model"
    assert run(["train", recipe]) == 0
    first = (own / "model.safetensors").read_bytes()
    assert b'"F16"' in first  # how ternary values are written
    assert run(["train", recipe]) == 0
    assert run(["train", recipe, "--export", str(tmp_path / "model")]) == 0
    for folder in (own, tmp_path / "model"):
        assert (folder / "model.safetensors").read_bytes() == first


def test_an_export_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from minicpm4.formats import hf_write

    def stop(*given: object) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "new" / "model"
    command = ["train", str(write(tmp_path)), "--export", str(folder)]
    with monkeypatch.context() as context:
        context.setattr(hf_write, "end_folder", stop)  # the weights are written
        assert run(command) == 130
    assert list(folder.parent.iterdir()) == []
    folder.mkdir()  # an empty one is as good as none
    assert run(command) == 0
    assert (folder / "config.json").is_file()


def test_an_export_takes_the_place_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    command = ["train", str(write(tmp_path))]
    assert run(command) == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    places = {
        tmp_path / "mine": "mine is not empty: notes.txt is in it",
        tmp_path / "run": "run holds the run",
        tmp_path: "holds the run",
    }
    for place, said in places.items():
        capsys.readouterr()
        assert run([*command, "--export", str(place)]) == 2
        assert said in capsys.readouterr().err
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def write_tuning(folder: Path) -> str:
    """A recipe that tunes the embedded model on eight chats, to folder / "run"."""
    chat = {"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "Two."}]}
    (folder / "chats.jsonl").write_text((json.dumps(chat) + "\n") * 8, encoding="utf-8")
    (folder / "r.toml").write_text(
        f"""
name = "tuned"
output = "{folder / "run"}"
model = {{ start = "smollm2-135m-instruct" }}
[corpora.chats]
kind = "chat"
paths = ["{folder / "chats.jsonl"}"]
[[stages]]
name = "sft"
steps = 2
batch_tokens = 128
context = 64
rate = 1e-3
lora = {{ rank = 2, targets = ["q_proj"] }}
data = {{ chats = 1.0 }}
""",
        encoding="utf-8",
    )
    return str(folder / "r.toml")


@pytest.mark.slow
def test_the_embedded_model_is_tuned_with_its_own_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    recipe = write_tuning(tmp_path)
    assert run(["train", recipe, "--dry-run"]) == 0
    assert "tokenizer smollm2-135m-instruct: found" in capsys.readouterr().out
    assert run(["train", recipe]) == 0
    answers = []
    for model in (str(tmp_path / "run" / "model"), "smollm2-135m-instruct"):
        capsys.readouterr()
        asked = ["generate", "-m", model, "--prompt", "Say hello.", "--max-tokens", "8", "--json"]
        assert run([*asked, "--temperature", "0"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0]["metrics"]["prompt_tokens"] == answers[1]["metrics"]["prompt_tokens"]


def test_a_missing_recipe_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", str(tmp_path / "none.toml"), "--dry-run"]) == 2
    assert "cannot read " in capsys.readouterr().err


def test_the_recipes_that_come_with_the_package_are_right() -> None:
    from minicpm4.train.recipe import read_recipe

    for file in (Path(__file__).parents[2] / "recipes").glob("*.toml"):
        assert read_recipe(file).steps > 0


RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize(
    ("recipe", "gpus", "said"),
    [
        (
            "8b",
            8,
            ["parameters: 8,185,253,888", "6,999,999,774,720", "FSDP2 moves 5.37 TB"],
        ),
        ("8b", 64, ["corpus web: MISSING", "tokenizer data/minicpm4/tokenizer: MISSING"]),
        ("8b", 1, ["warning: stage stable does not fit: smaller micro_tokens, or more GPUs"]),
        ("0.5b", 64, ["parameters: 450,917,376", "extra layer 17,043,456", "FP8, MTP 0.3"]),
    ],
)
def test_the_real_recipes_are_explained_without_their_data(
    capsys: pytest.CaptureFixture[str], recipe: str, gpus: int, said: list[str]
) -> None:
    file = str(RECIPES / f"minicpm4-{recipe}.toml")
    assert run(["train", file, "--dry-run", "--gpus", str(gpus)]) == 0
    out = capsys.readouterr().out
    assert [text for text in said if text not in out] == []


def test_gpus_that_a_recipe_s_batches_do_not_divide_by_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["train", str(RECIPES / "minicpm4-8b.toml"), "--dry-run", "--gpus", "128"]) == 2
    said = "error: stage 'sft': batch_tokens = 2097152 is not a multiple of 32768 tokens on 128 processes"
    assert said in capsys.readouterr().err


def test_a_dry_run_is_about_this_machine_unless_told(capsys: pytest.CaptureFixture[str]) -> None:
    """One process, the memory that is free here, the peak as torch reaches it; GPUs only when told of."""
    pytest.importorskip("torch")
    command = ["train", str(RECIPES / "minicpm4-8b.toml"), "--dry-run"]
    assert run(command) == 0
    here = capsys.readouterr().out
    assert "memory of this machine in stage" in here and "this machine, peak of a process" in here
    assert "product of 1024 x 1024 matrices in bf16" in here or "cuda" in here
    assert "assumed: 40% of it are reached" in here and " of 80" not in here and "GB a GPU" not in here
    for told in (["--gpus", "8"], ["--gpu-memory", "80"], ["--peak-tflops", "989"]):
        assert run([*command, *told]) == 0
        out = capsys.readouterr().out
        assert "assumed, not measured: 8 GPUs of 80" in out and "989 TFLOP/s, of which 40%" in out


def test_a_dry_run_needs_neither_torch_nor_a_vocabulary(tmp_path: Path) -> None:
    recipe = write(tmp_path, 'vocab_size = 320\ncorpora = ["text"]', 'path = "nowhere"')
    script = (
        "import sys; sys.modules['torch'] = None; from minicpm4.cli import run; sys.exit(run(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "train", str(recipe), "--dry-run"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert "the vocabulary is not here" in ended.stdout and "tokenizer nowhere: MISSING" in ended.stdout
    whole = [sys.executable, "-c", script, "train", str(RECIPES / "tiny.toml"), "--dry-run"]
    ended = subprocess.run(whole, capture_output=True, text=True, timeout=60)
    assert "memory of this machine in stage" in ended.stdout, ended.stderr
    assert "how fast this machine computes is not known: training needs torch" in ended.stdout


@pytest.mark.parametrize("option", [["--gpus", "0"], ["--mfu", "1.5"], ["--peak-tflops", "-1"]])
def test_an_odd_machine_is_refused(capsys: pytest.CaptureFixture[str], option: list[str]) -> None:
    assert run(["train", str(RECIPES / "tiny.toml"), "--dry-run", *option]) == 2
    assert option[0] in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("option", ["--gpus", "--gpu-memory", "--peak-tflops", "--mfu"])
def test_options_of_a_dry_run_are_refused_without_one(
    capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert run(["train", str(RECIPES / "tiny.toml"), option, "1"]) == 2
    assert f"{option} is about a dry run" in capsys.readouterr().err


def test_a_second_training_in_one_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    recipe, begun, go_on = str(write(tmp_path)), tmp_path / "begun", tmp_path / "go on"
    command = [sys.executable, "-c", SLOW, recipe, str(begun), str(go_on)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as first:
        while not begun.exists():
            assert first.poll() is None
            time.sleep(0.05)
        refused = run(["train", recipe])
        go_on.touch()
        assert refused == 2 and first.wait() == 0
    assert f"another training is writing to {tmp_path / 'run'}" in capsys.readouterr().err
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    assert run(["train", recipe]) == 0


def test_a_folder_that_cannot_be_made_is_an_error_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    recipe = str(write(tmp_path))
    (tmp_path / "run").write_text("a file")
    assert run(["train", recipe]) == 2
    assert f"cannot write to {tmp_path / 'run'}: File exists" in capsys.readouterr().err


def test_another_tokenizer_before_the_first_checkpoint_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    from minicpm4.train.prepare import prepare
    from minicpm4.train.recipe import read_recipe

    prepare(read_recipe(write(tmp_path)), tmp_path / "run")
    assert run(["train", str(write(tmp_path, "vocab_size = 320", "vocab_size = 300"))]) == 2
    said = capsys.readouterr().err
    assert "tokenizer was made for another recipe (tokenizer.vocab_size: 320 -> 300)" in said
    assert run(["train", str(write(tmp_path))]) == 0
