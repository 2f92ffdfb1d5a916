"""GGUF files of ours in llama.cpp: whether it loads them, splits text as we do and computes the same logits.

    .venv/bin/python benchmarks/gguf_files.py --llama-python build/llama/bin/python [--qwen FILE.gguf]

Every case is a model that `minicpm4 convert --to gguf` writes. llama.cpp goes on with 20 prompts, to 256
tokens each, as the first file of a vocabulary would have it; both engines then read that, and at every
position their logits are compared: the divergence of their probabilities must be small, with float32
weights very much so; quantised ones meet activations that llama.cpp rounds to 8 bits, bf16 ones such in bf16,
which ours does not here. To tell that from wrong weights, blocks of every type that is written are unpacked
by ggml, too, and must be equal to the bit, and quantised models are also written with the same values in F32.
llama.cpp runs in an environment of its own, with llama-cpp-python 0.3.36 (README.md says how it is made).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minicpm4 import LLM
from minicpm4.config import ModelConfig, RopeScaling
from minicpm4.evals.fidelity import kullback_leibler, log_probabilities
from minicpm4.evals.random_model import SHAPES, RandomCheckpoint
from minicpm4.files import finite, write_json
from minicpm4.formats.ggml_fit import rounded_to
from minicpm4.formats.ggml_types import GGML_TYPES, encoded
from minicpm4.formats.hf_write import write_folder
from minicpm4.formats.kinds import KINDS
from minicpm4.formats.names import EMBED, HEAD, expected_tensors
from minicpm4.formats.packing import pack_from_float, unpack
from minicpm4.formats.quant import QuantSpec
from minicpm4.formats.tensor_source import TensorSource, as_kind, checkpoint_source
from minicpm4.kernels.registry import exact_isa
from minicpm4.machine import total_cores
from minicpm4.model.source import open_model

CHILD = Path(__file__).parent / "peers" / "llama_cpp_reads.py"
FLOAT32, BF16, QUANTISED = 1e-8, 2e-3, 3e-2  # nats: as far as llama.cpp rounds activations
SMOL = "smollm2-135m-instruct"
LENGTH = 256  # tokens of a prompt with what llama.cpp says behind it
PROMPTS = (
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "Water boils at 100 degrees Celsius at sea level, which is 212 degrees Fahrenheit.",
    "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n",
    "Once upon a time there was a small village at the foot of a high mountain.",
    "1 + 1 = 2, 2 + 2 = 4, 4 + 4 = 8, 8 + 8 = 16, 16 + 16 = 32",
    "Dear Sir or Madam, I am writing to complain about the service that I received yesterday.",
    "for i in range(10):\n    if i % 2 == 0:\n        print(i, 'is even')\n",
    "To be, or not to be, that is the question: Whether 'tis nobler in the mind to suffer",
    "SELECT name, age FROM people WHERE age > 30 ORDER BY name LIMIT 5;",
    "The quick brown fox jumps over the lazy dog. The dog does not mind.",
    "Die Katze sitzt auf dem Tisch, und der Hund liegt darunter.",
    "今天天气很好，我们去公园散步吧。明天可能会下雨。",
    "Les enfants jouent dans le jardin pendant que leur mère prépare le dîner.",
    "In 1969, Neil Armstrong became the first person to walk on the Moon.",
    '{"name": "Ada", "born": 1815, "fields": ["mathematics", "computing"]}',
    "A triangle has three sides; a square has four; a pentagon has five; a hexagon has six.",
    "She opened the door, looked outside, and saw that it had been snowing all night.",
    '#include <stdio.h>\nint main(void) {\n    printf("hello\\n");\n    return 0;\n}\n',
    "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday. January, February, March,",
    "Ingredients: 200 g of flour, 2 eggs, 300 ml of milk, a pinch of salt. Mix, wait, and fry.",
)
TEXTS = (
    *PROMPTS,
    "Hello, world! It's they'll; don't  stop.\n\n\tif (x == 10) { return y[3]; }  \r\n",
    "naïve café Ünïcödé, CamelCase HTTPServer ½ ² ١٢٣ 3.14159 1,000,000",
    "日本語と한국어 — русский текст, ελληνικά; हिन्दी 😀👩‍👩‍👧‍👦 🇫🇷!",
    " leading, a   b    c \u3000wide, trailing   ",
)

Said = dict[tuple[tuple[int, ...], ...], list[list[int]]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A source, options of ``convert``, and the Kullback-Leibler divergence that stays below the bound."""

    name: str
    source: str
    options: tuple[str, ...] = ()
    bound: float


def main() -> None:
    from commits import heading

    args = parse()
    # Levels whose products are of float32: others round activations, too.
    exact = exact_isa()
    if exact is not None:
        os.environ["MINICPM4_ISA"] = exact
    with tempfile.TemporaryDirectory(dir=args.dir) as made:
        folder = Path(made)
        version, types = blocks(args.llama_python, folder)
        said: Said = {}
        rows = [compare(case, args.llama_python, folder, said) for case in cases(folder, args.qwen)]
    report = {
        **heading(),
        "cpus": total_cores(),
        "kernels": exact,
        "llama-cpp-python": version,
        "types that ggml unpacks to the same bits": types,
        "cases": rows,
    }
    if args.json is not None:
        write_json(args.json, finite(report))
    failed = [row["case"] for row in rows if row["failed"]] + [
        name for name, same in types.items() if not same
    ]
    print("failed: " + ", ".join(failed) if failed else "all as they should be")
    sys.exit(bool(failed))


def cases(folder: Path, qwen: Path | None) -> Iterator[Case]:
    rounding = ("--method", "rtn", "--weights")
    yield Case(name="llama, as stored (Q4_1, Q8_0)", source=SMOL, bound=QUANTISED)
    yield Case(name="llama, F32", source=SMOL, options=("--gguf-type", "f32"), bound=FLOAT32)
    yield Case(name="llama, BF16", source=SMOL, options=("--gguf-type", "bf16"), bound=BF16)
    yield Case(name="llama, INT4", source=SMOL, options=(*rounding, "int4"), bound=QUANTISED)
    mup = str(minicpm(folder / "minicpm", None))
    yield Case(name="minicpm, BF16", source=mup, bound=BF16)
    yield Case(name="minicpm, F32", source=mup, options=("--gguf-type", "f32"), bound=FLOAT32)
    factors = [tuple(1 + i / step for i in range(32)) for step in (32, 16)]
    for original, which in ((1024, "short"), (128, "long")):  # the context is between them
        scaling = RopeScaling(
            rope_type="longrope",
            short_factor=factors[0],
            long_factor=factors[1],
            original_max_position_embeddings=original,
        )
        scaled = str(minicpm(folder / which, scaling))
        name = f"minicpm with longrope, its {which} factors, F32"
        yield Case(name=name, source=scaled, options=("--gguf-type", "f32"), bound=FLOAT32)
    small = str(small_model(folder / "sentencepiece"))
    yield Case(name="minicpm with a SentencePiece vocabulary, F32", source=small, bound=FLOAT32)
    for name in ("f16", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k"):
        options = ("--gguf-type", name)
        yield Case(name=f"small minicpm, {name.upper()}", source=small, options=options, bound=QUANTISED)
    ternary = (*rounding, "ternary", "--group", "256")
    for name in ("tq1_0", "tq2_0"):
        options = (*ternary, "--gguf-type", name)
        yield Case(name=f"small minicpm, {name.upper()}", source=small, options=options, bound=QUANTISED)
    plain = {"scale_emb": 1.0, "scale_depth": 0.0, "dim_model_base": 0.0}
    qwen3 = str(small_model(folder / "qwen3", model_type="qwen3", qk_norm=True, **plain))
    yield Case(name="small qwen3, F32", source=qwen3, bound=FLOAT32)
    # Rounded to ternary without training, SmolLM2 knows little: its near-even answers turn on less.
    for kind, group, bound in (("int4", "32", QUANTISED), ("int8", "32", QUANTISED), ("ternary", "64", 0.1)):
        whole = folder / kind
        convert([mup, str(whole), "--to", "hf", *rounding, kind, "--group", group])
        yield Case(name=f"minicpm, {kind} that was trained so", source=str(whole), bound=bound)
        again = ("--gguf-type", "f32")
        yield Case(name=f"minicpm, {kind} in F32", source=str(whole), options=again, bound=FLOAT32)
    if qwen is not None:
        yield Case(name="qwen2, as stored (K types)", source=str(qwen), bound=QUANTISED)
        yield Case(name="qwen2, BF16", source=str(qwen), options=("--gguf-type", "bf16"), bound=BF16)


def small_model(folder: Path, **changes: Any) -> Path:
    """A small MiniCPM with random weights, and a SentencePiece vocabulary of these texts. float32. Its rows
    fill blocks of 256. ``changes``: of its configuration."""
    import sentencepiece

    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in TEXTS for line in text.splitlines() if line.strip()] * 5),
        model_writer=content,
        model_type="bpe",
        vocab_size=1200,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.99,
        num_threads=1,
        minloglevel=2,
    )
    end = "<|im_end|>"
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "eos_token": end,
        "added_tokens_decoder": {"1200": {"content": end, "special": True}},
    }
    small: dict[str, Any] = {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "vocab_size": 1216,
    }
    small |= {"num_attention_heads": 4, "sparse_config": None, "dim_model_base": 256.0}
    config = replace(SHAPES["random-minicpm4-0.5b"], **(small | changes))
    made = RandomCheckpoint(config, lambda name, shape: QuantSpec(kind="f32"))
    sources = {name: checkpoint_source(made, name) for name in expected_tensors(config)}
    beside = {"tokenizer.model": content.getvalue(), "tokenizer_config.json": json.dumps(settings).encode()}
    write_folder(folder, config, sources, beside=beside)
    return folder


def minicpm(folder: Path, scaling: RopeScaling | None) -> Path:
    """SmolLM2 as a MiniCPM: what ``fold_scales`` folds in, taken out again. bf16."""
    found = open_model(SMOL)
    layers = found.config.num_hidden_layers
    config: ModelConfig = replace(
        found.config,
        model_type="minicpm",
        scale_emb=12.0,
        scale_depth=1.4,
        dim_model_base=256.0,
        tie_word_embeddings=False,
        rms_norm_eps=found.config.rms_norm_eps * 1.4**2 / layers,
        rope_scaling=scaling,
    )
    sources = {name: checkpoint_source(found.checkpoint, name) for name in expected_tensors(found.config)}
    embed = sources[EMBED]
    sources[HEAD] = times(embed, 1 / config.logit_scale)
    sources[EMBED] = times(embed, config.residual_scale / 12.0)
    written = {
        name: as_kind(one, KINDS["bf16"]) if len(one.shape) == 2 else one for name, one in sources.items()
    }
    write_folder(folder, config, written, dtype="bfloat16", beside=found.text().files())
    return folder


def times(source: TensorSource, factor: float) -> TensorSource:
    return replace(source, make=lambda: source.read() * np.float32(factor))


def convert(arguments: list[str]) -> None:
    subprocess.run(
        [sys.executable, "-m", "minicpm4", "convert", *arguments], check=True, stdout=subprocess.DEVNULL
    )


def compare(case: Case, python: Path, folder: Path, said: Said) -> dict[str, Any]:
    """Convert, read with both, compare. ``said``: what llama.cpp made of the prompts, by their tokens; filled
    in where it has not been asked."""
    file = folder / "case.gguf"
    file.unlink(missing_ok=True)
    convert([case.source, str(file), "--to", "gguf", *case.options])
    with LLM(str(file), context=LENGTH, kv="float32") as llm:
        texts = [llm.tokenizer.encode(text) for text in TEXTS]
        prompts = tuple(tuple(llm.tokenizer.encode(text)) for text in PROMPTS)
        if prompts not in said:
            _, found = ask(python, folder, {"gguf": str(file), "texts": [], "ids": prompts, "length": LENGTH})
            said[prompts] = [found[f"ids{i}"].tolist() for i in range(len(prompts))]
        ids = said[prompts]
        _, theirs = ask(python, folder, {"gguf": str(file), "texts": TEXTS, "ids": ids})
        split = [TEXTS[i] for i, own in enumerate(texts) if theirs[f"text{i}"].tolist() != own]
        pairs = ((llm.logits(one), theirs[f"logits{i}"]) for i, one in enumerate(ids))
        row = {"case": case.name, "texts split otherwise": split, **differences(pairs)}
    row["failed"] = bool(split) or is_apart(row, case.bound)
    print(json.dumps(row, indent=1, ensure_ascii=False), flush=True)
    return row


def is_apart(row: dict[str, Any], bound: float) -> bool:
    """Whether ``differences`` are too large; logits that are no numbers are."""
    return not row["KL divergence"] <= bound


def differences(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """How far the logits of two engines are apart, of each prompt (positions, vocabulary)."""
    flips, positions, first = 0, 0, None
    divergence, squares, apart, spread, margins = [], 0.0, [], [], [0.0]
    for prompt, (a, b) in enumerate(pairs):
        apart.append(float(np.abs(a - b).max()))
        spread.append(float(a.std()))
        top = np.sort(np.partition(a, -2, axis=1)[:, -2:], axis=1)
        margin = top[:, 1] - top[:, 0]
        other = a.argmax(axis=1) != b.argmax(axis=1)
        positions += len(a)
        flips += int(other.sum())
        margins += margin[other].tolist()
        divergence.append(kullback_leibler(log_probabilities(a), log_probabilities(b)))
        squares += float(np.square(a - b, dtype=np.float64).mean(axis=1).sum())
        if first is None and other.any():
            at = int(other.argmax())
            first = {"prompt": prompt, "position": at, "margin": round(float(margin[at]), 4)}
    return {
        "positions": positions,
        "largest difference": round(float(np.max(apart)), 5),
        "root of mean squares": float(f"{np.sqrt(squares / positions):.3g}"),
        "spread of logits": round(float(np.mean(spread)), 2),
        "KL divergence": float(f"{np.concatenate(divergence).mean():.3g}"),
        "best token another": flips,
        "largest margin of these": round(max(margins), 4),
        "first divergence": first,
    }


def blocks(python: Path, folder: Path) -> tuple[str, dict[str, bool]]:
    """Random weights in every quantised type that is written: whether ggml unpacks what we do."""
    values = np.random.default_rng(0).standard_normal((16, 1024)).astype(np.float32) * np.float32(0.05)
    tensor = pack_from_float(values, QuantSpec(kind="f32"))
    expected, files = {}, {}
    for kind in GGML_TYPES.values():
        if kind.decode is not None and kind.writable:
            fitted = rounded_to(tensor, kind)
            file = folder / f"{kind.name}.bin"
            file.write_bytes(encoded(fitted, kind).tobytes())
            files[kind.name] = (str(file), values.size)
            expected[kind.name] = unpack(fitted).reshape(-1)
    version, found = ask(python, folder, {"blocks": files})
    return version, {name: bool(np.array_equal(found[name], own)) for name, own in expected.items()}


def ask(python: Path, folder: Path, request: dict[str, Any]) -> tuple[str, dict[str, np.ndarray]]:
    """The version of llama.cpp's package, and what it answers, which is read from disk when it is used."""
    said, out = folder / "request.json", folder / "answer"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    said.write_text(json.dumps(request | {"out": str(out)}))
    ran = subprocess.run([python, CHILD, said], check=True, stdout=subprocess.PIPE, text=True, env=os.environ)
    return ran.stdout.split()[-1], {file.stem: np.load(file, mmap_mode="r") for file in out.iterdir()}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-python", type=Path, required=True, help="a Python with llama-cpp-python")
    parser.add_argument("--qwen", type=Path, metavar="FILE", help="a .gguf file of a qwen2 model")
    parser.add_argument("--dir", type=Path, help="where models are written meanwhile (some GB)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
