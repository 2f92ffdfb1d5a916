"""``minicpm4 info``: what a model is, and what it will take. Its weights are not loaded."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import defaultdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minicpm4.cli.options import EngineFlags, expand
from minicpm4.cli.terminal import print_facts, show, table
from minicpm4.config import ModelConfig, SparseConfig
from minicpm4.config.choices import MAX_CONTEXT
from minicpm4.config.strict import counted
from minicpm4.errors import TextError
from minicpm4.machine import human

if TYPE_CHECKING:
    from minicpm4.engine.load import Inspection
    from minicpm4.engine.plan import MemoryPlan
    from minicpm4.formats import Checkpoint
    from minicpm4.model.weight_plan import MatrixPlan
    from minicpm4.text.model_text import ModelText

SHAPE = (
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "rope_theta",
    "tie_word_embeddings",
)
MUP = ("scale_emb", "scale_depth", "dim_model_base")


@expand
def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Name, folder, .gguf file or hub repository.")
    ],
    *,
    engine: EngineFlags,
) -> None:
    """Show a model's shape, weight formats, tokenizer and sparse settings, and plan its memory.

    The options are those of generate, and so the plan is for them.
    """
    found = engine.inspect(model)
    print_facts("model", [("files", str(found.source.path)), *shape(found.config, found.checkpoint)])
    print_formats(found)
    print_facts("kept on disk", kept_facts(found))
    print_facts("text", [*text_facts(found.text), *stored_facts(found)])
    print_facts("sparse attention", sparse_facts(found))
    print_facts(f"memory for a context of {found.plan.context:,} tokens", _sizes(found.plan))


def shape(config: ModelConfig, checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """The sizes of the decoder, and its number of parameters."""
    count = sum(math.prod(info.shape) for info in checkpoint.tensors.values())
    facts = [("parameters", f"{count:,}")]
    facts += [(name, _plain(getattr(config, name))) for name in SHAPE]
    if config.rope_scaling is not None:
        facts.append(("rope_scaling", config.rope_scaling.rope_type))
    if config.windows:
        layers = sum(map(bool, config.windows))
        facts.append(("sliding window", f"{max(config.windows):,} tokens, in {layers} layers"))
    if config.model_type == "minicpm":
        facts += [(name, _plain(getattr(config, name))) for name in MUP]
    return facts


def print_formats(found: Inspection) -> None:
    """Print which formats the weights are stored in, and what they become as they are loaded."""
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    targets = {matrix.name: _held(found.checkpoint, matrix) for matrix in found.weights}
    for name, info in found.checkpoint.tensors.items():
        held = targets.get(name, "f32" if len(info.shape) == 1 else "left in the file")
        row = counts[info.dtype, held]
        row[0], row[1], row[2] = row[0] + 1, row[1] + math.prod(info.shape), row[2] + info.nbytes
    total = sum(parameters for _, parameters, _ in counts.values())
    shown = table("stored as", "held as", "tensors", "parameters", "size", left=2)
    for (dtype, spec), (tensors, parameters, size) in sorted(counts.items(), key=lambda item: -item[1][1]):
        shown.add_row(dtype, spec, f"{tensors:,}", f"{parameters / total:.1%}", human(size))
    print("weights")
    show(shown)
    print()


def _held(checkpoint: Checkpoint, matrix: MatrixPlan) -> str:
    """What a matrix is held as; of one that may prove to lie on the grid of fewer bits, which loading finds
    out, by some of its rows."""
    if not matrix.packs:
        return str(matrix.target)
    from minicpm4.formats.packing import exact_spec, some_rows

    found = exact_spec(some_rows(checkpoint.load(matrix.name)))
    checkpoint.release(matrix.name)
    return str(matrix.target) if found is None else f"{found}, on whose grid its values lie"


def kept_facts(found: Inspection) -> list[tuple[str, str]]:
    """What earlier starts have converted, for the weights and kernels of these options."""
    from minicpm4.model.packed_cache import VARIABLE, weight_cache

    cache = weight_cache(found.checkpoint, found.options.weights, found.ops.layout)
    if cache is None:
        return [("converted weights", f"none are kept; see {VARIABLE}")]
    size = cache.kept_nbytes()
    if size is None:
        return [("converted weights", "none; they are kept where converting takes long")]
    return [("converted weights", human(size)), ("in", str(cache.file))]


def text_facts(text: ModelText) -> list[tuple[str, str]]:
    """The tokenizer and the chat template."""
    try:
        tokenizer = text.tokenizer
    except TextError as error:
        return [("tokenizer", f"none: {error}")]
    before, ends = (
        [tokenizer.id_to_token(i) or "?" for i in ids] for ids in (tokenizer.prefix_ids, text.end_ids)
    )
    return [
        ("tokenizer", f"{tokenizer.vocab_size:,} tokens"),
        ("put before a text", " ".join(before) or "nothing"),
        ("end tokens", " ".join(ends) or "none"),
        ("chat template", "yes" if text.has_chat_template else "no"),
    ]


def stored_facts(found: Inspection) -> list[tuple[str, str]]:
    """The tokens whose keys and values are stored."""
    if found.source.stored is None:
        return []
    ids = found.source.stored.ids
    try:
        said = json.dumps(found.text.tokenizer.decode(ids, skip_special_tokens=False), ensure_ascii=False)
    except TextError:
        said = ", ".join(map(str, ids))
    return [("stored prefix", f"{counted(len(ids), 'token')}: {said}")]


def sparse_facts(found: Inspection) -> list[tuple[str, str]]:
    """The checkpoint's settings, and those that the options lead to."""
    config, sparse = found.config, found.sparse
    facts = [("in the checkpoint", _settings(config.sparse_config) if config.sparse_config else "none")]
    if sparse is None:
        return [*facts, ("with these options", "not used: " + _why_dense(found))]
    reach = f"; a token reads at most {sparse.budget} blocks of {sparse.block_size} tokens"
    return [*facts, ("with these options", _settings(sparse) + reach)]


def _why_dense(found: Inspection) -> str:
    from minicpm4.engine.options import resolve_sparse

    options = found.options
    if options.attention == "dense":
        return "--attention dense was given"
    if found.config.sparse_config is None and not options.sparse:
        return "the checkpoint asks for none; --attention sparse or --sparse turns it on"
    wanted = resolve_sparse(dataclasses.replace(options, context=MAX_CONTEXT), found.config)
    since = f" = {wanted.dense_below:,}" if wanted else ""
    return f"the context is shorter than dense_len{since}; --attention sparse turns it on"


def _sizes(plan: MemoryPlan) -> list[tuple[str, str]]:
    return [(name, f"{human(size):>9}") for name, size in plan.rows()]


def _settings(sparse: SparseConfig) -> str:
    pairs = dataclasses.asdict(sparse) | {"dense_len": sparse.dense_below}
    return ", ".join(f"{name} {_plain(value)}" for name, value in pairs.items())


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
    )
