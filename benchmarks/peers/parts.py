"""The parts of a run: which model, at which points, and who takes part."""

from __future__ import annotations

from dataclasses import dataclass

from .contest import Point

DECODED = 16  # tokens of a decode point
SHORT = 32  # the same at depth 0, where they are quick
ATTENTIONS = ("dense", "sparse")
TOGETHER = (2, 4, 8)  # sequences decoded at a time


@dataclass(frozen=True, kw_only=True)
class Part:
    """``model``: which weights. ``share``: of the time, beside the other parts'. ``peers``: those that
    enter, by their names or the first words of these. ``flavours``: our own columns with other settings,
    as in --ours. ``attentions``: what is shown of ours. ``environment``: variables that ours run with."""

    name: str
    model: str
    share: float
    peers: tuple[str, ...]
    flavours: tuple[str, ...] = ()
    attentions: tuple[str, ...] = ATTENTIONS
    environment: tuple[tuple[str, str], ...] = ()


AVX2 = (("MINICPM4_ISA", "avx2"),)
REAL = {"qwen-0.5b": "Qwen2.5-Coder-0.5B", "qwen-1.5b": "Qwen2.5-Coder-1.5B"}  # Q4_K_M, of make models
ALL = ("llama.cpp", "OpenVINO", "transformers")
SHAPED = "minicpm4-0.5b-shape"
SHAPE = "MiniCPM4-0.5B's shape, random weights, Q4_0"
# Types of one model beside each other: a part's key, the model, and the GGUF type that its layers get.
MADE = {
    f"{key}-{kind}": (model, kind)
    for key, model, kinds in (
        ("shape", SHAPED, ("q4_0", "tq2_0")),
        ("qwen-0.5b", f"{REAL['qwen-0.5b'].lower()}-instruct", ("q4_0", "q5_0", "q8_0")),
        ("qwen-1.5b", f"{REAL['qwen-1.5b'].lower()}-instruct", ("q4_0", "q5_0", "q8_0", "tq2_0")),
    )
    for kind in kinds
}


def _layers(key: str, kind: str) -> str:
    """What the part of such a file is called."""
    name = REAL.get(key.removesuffix(f"-{kind}"), SHAPE.split(",")[0])
    return f"{name}, layers in {kind.upper()}"


# The quick ones first: what they leave of their share of the time goes to the others.
PARTS = {
    "together": Part(
        name=f"{SHAPE}: several sequences, ternary weights",
        model=SHAPED,
        share=1,
        peers=("llama.cpp", "OpenVINO"),
        flavours=("ternary:weights=ternary",),
        attentions=("dense",),
    ),
    "smollm2-135m": Part(name="SmolLM2-135M, Q4_1", model="smollm2-135m", share=3, peers=ALL),
    "avx2": Part(
        name=f"{SHAPE}: AVX2 only",
        model=SHAPED,
        share=3,
        peers=("llama.cpp-avx2",),
        environment=AVX2,
    ),
    **{
        key + tail: Part(
            name=f"{name}, Q4_K_M{', AVX2 only' if tail else ''}",
            model=f"{name.lower()}-instruct",
            share=2,
            peers=("llama.cpp" + tail,),
            environment=AVX2 if tail else (),
        )
        for key, name in REAL.items()
        for tail in ("", "-avx2")
    },
    **{
        key: Part(
            name=_layers(key, kind),
            model=model,
            share=1,
            peers=("llama.cpp",),
            attentions=("dense",),
        )
        for key, (model, kind) in MADE.items()
    },
    SHAPED: Part(name=SHAPE, model=SHAPED, share=12, peers=ALL),
}


def points(part: str, *, smoke: bool = False, deep: bool = False) -> list[Point]:
    """Cheap ones first: what a dear one takes is known before it is begun."""
    if part == "together":
        return [
            Point(kind="decode", depth=0, tokens=4 if smoke else SHORT, batch=batch)
            for batch in (1, *TOGETHER)
        ]
    if part in MADE:
        decode = [Point(kind="decode", depth=depth, tokens=SHORT) for depth in (0, 2048)]
        return [*decode[: 1 if smoke else 2], Point(kind="prefill", depth=0, tokens=512)]
    real = part.removesuffix("-avx2") in REAL
    deepest = 2048 if smoke else 131072 if deep else 32768
    if part != SHAPED:
        deepest = min(deepest, 16384 if real else 8192)
    depths = [depth for depth in (0, 2048, 8192, 16384, 32768, 131072) if depth <= deepest]
    if not real:
        depths = [depth for depth in depths if depth != 16384]
    lengths = [length for length in (512, 2048, 8192, 32768) if length <= deepest]
    if smoke:
        lengths = [512]
    elif part == "avx2" or real:
        lengths = [512, 2048]
    decode = [
        Point(kind="decode", depth=depth, tokens=4 if smoke else DECODED if depth else SHORT)
        for depth in depths
    ]
    chunks = [Point(kind="prefill", depth=depth, tokens=512) for depth in depths if depth]
    whole = [Point(kind="prefill", depth=0, tokens=tokens) for tokens in lengths]
    # A whole prompt of 512 is the chunk at depth 0 from which longer ones are worked out.
    return [*decode, *whole[:1], *([] if part == "avx2" or real else chunks), *whole[1:]]
