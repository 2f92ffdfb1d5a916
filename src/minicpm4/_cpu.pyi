from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]

def isa_levels() -> list[str]: ...
def emulated_levels() -> list[str]: ...
def cpu_features() -> dict[str, bool]: ...
def weight_kinds() -> list[str]: ...
def all_levels() -> list[str]: ...
def methods() -> list[tuple[str, str, str]]: ...
def ways(level: str) -> list[tuple[list[str], str, int, int | None, bool, str]]: ...
def method(level: str, format: str, layout: str, rows: int, narrow: bool = False) -> str | None: ...

class Weight:
    def __init__(
        self,
        kind: str,
        layout: str,
        rows: int,
        cols: int,
        group: int,
        codes: Array,
        scales: Array | None,
        offsets: Array | None,
        super_scales: Array | None = None,
        super_offsets: Array | None = None,
    ) -> None: ...
    def to_panels(
        self,
        context: Context,
        codes: Array | None,
        scales: Array | None,
        offsets: Array | None,
        super_scales: Array | None = None,
        super_offsets: Array | None = None,
    ) -> None: ...

class QkvWeights:
    def __init__(
        self,
        norm: Array,
        eps: float,
        q: Weight,
        q_bias: Array | None,
        k: Weight,
        k_bias: Array | None,
        v: Weight,
        v_bias: Array | None,
        q_norm: Array | None,
        k_norm: Array | None,
    ) -> None: ...

class GateUpWeights:
    def __init__(
        self,
        norm: Array,
        eps: float,
        gate: Weight,
        gate_bias: Array | None,
        up: Weight,
        up_bias: Array | None,
    ) -> None: ...

class Pages:
    def __init__(
        self,
        keys: Array,
        values: Array,
        key_scales: Array | None,
        value_scales: Array | None,
        compressed: Array | None,
        compressed_scales: Array | None,
        coarse: Array | None,
        coarse_scales: Array | None,
        window: int,
    ) -> None: ...

class Rows:
    def __init__(
        self,
        positions: Array,
        cu_rows: Array,
        page_table: Array,
        cos: Array,
        sin: Array,
        ancestors: Array | None,
        angles: Array | None,
        sparse: bool,
        kernel_size: int,
        kernel_stride: int,
        init_blocks: int,
        local_blocks: int,
        topk: int,
        block_size: int,
        dense_len: int,
        lse_approx: bool,
        use_nope: bool,
    ) -> None: ...

class Context:
    def __init__(self, threads: int, isa: str, narrow: bool = False, measuring: bool = False) -> None: ...
    @property
    def reserved(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def isa(self) -> str: ...
    @property
    def panels(self) -> list[str]: ...
    @property
    def can_narrow(self) -> bool: ...
    def linear(
        self, x: Array, weight: Weight, bias: Array | None, out: Array, scale: float = 1.0, add: bool = False
    ) -> None: ...
    def linears(self, x: Array, products: list[tuple[Weight, Array | None, Array]]) -> None: ...
    def embed(self, ids: Array, weight: Weight, scale: float, out: Array) -> None: ...
    def matmul(self, a: Array, b: Array, out: Array) -> None: ...
    def rms_norm(self, x: Array, weight: Array, eps: float, out: Array) -> None: ...
    def rotary(self, x: Array, positions: Array, cos: Array, sin: Array) -> None: ...
    def silu_mul(self, gate: Array, up: Array, out: Array) -> None: ...
    def add_scaled(self, x: Array, y: Array, scale: float) -> None: ...
    def log_sum_exp(self, logits: Array, out: Array) -> None: ...
    def top_k(self, logits: Array, values: Array, columns: Array) -> None: ...
    def append(self, k: Array, v: Array, pages: Pages, rows: Rows) -> None: ...
    def settle(self, pages: Pages, rows: Rows, sources: Array) -> None: ...
    def select(self, q: Array, pages: Pages, rows: Rows, blocks: Array, counts: Array) -> None: ...
    def attend(
        self, q: Array, pages: Pages, rows: Rows, blocks: Array | None, counts: Array | None, out: Array
    ) -> None: ...
    def qkv(self, x: Array, weights: QkvWeights, pages: Pages, rows: Rows, out: Array) -> None: ...
    def attention(self, q: Array, pages: Pages, rows: Rows, out: Array) -> None: ...
    def gate_up(self, x: Array, weights: GateUpWeights, out: Array) -> None: ...
    def layers(
        self,
        x: Array,
        layers: Sequence[tuple[QkvWeights, Weight, Array | None, GateUpWeights, Weight, Array | None, Pages]],
        rows: Rows,
        scale: float,
        q: Array,
        a: Array,
        h: Array,
    ) -> None: ...
