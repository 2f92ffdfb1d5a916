"""A model's weights in memory, which those of another checkpoint of the same model can be put in place of.

For training that generates with what it trains: no second copy of the model, and what kernels hold of the
arrays (a GPU's copies, captured graphs) stays where it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from minicpm4.config import ModelConfig
from minicpm4.errors import CheckpointError
from minicpm4.formats import Checkpoint, check_tensors
from minicpm4.formats.packing import exact_spec, packed_if_exact, repack, widened
from minicpm4.formats.quant import PackedTensor
from minicpm4.kernels.contract import OpTable
from minicpm4.kernels.layer_weights import AttentionWeights, FeedForwardWeights, Linear
from minicpm4.model.arena import Arena
from minicpm4.model.stored_prefix import refuse_stored
from minicpm4.model.weight_plan import MatrixPlan, WeightPlan, plan_weights
from minicpm4.model.weights import ModelWeights
from minicpm4.progress import Progress

__all__ = ["WeightSet", "convert"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WeightSet:
    """Weights as they were loaded for the table ``ops`` (None: for any), as ``plan`` has them; ``notes`` say
    what was converted, one line."""

    config: ModelConfig
    weights: ModelWeights
    plan: WeightPlan
    notes: str
    ops: OpTable | None = None
    arena: Arena = field(default_factory=Arena, repr=False)

    @property
    def version(self) -> int:
        """See ``ModelWeights.version``."""
        return self.weights.version

    def refill(
        self, checkpoint: Checkpoint, config: ModelConfig | None = None, progress: Progress | None = None
    ) -> None:
        """Put the weights of ``checkpoint`` in the place of these: afterwards they are those that a fresh
        load would give, bit for bit. Nothing may be computed with them meanwhile.

        ``config``: the checkpoint's, where it has one; ``progress`` is called with (matrices done, matrices).
        Arrays stay where they are, but for views into a file, which the first time become arrays of their
        own. At most a matrix is held twice.

        Raises CheckpointError, before anything is changed, where the checkpoint is another model or would be
        held in other formats. What goes wrong later leaves weights that refuse to be used (``version``) until
        they are replaced whole.
        """
        rows = list(self._fitting(checkpoint, config))
        state, held = self.weights.state, dict(self.weights.named_matrices())
        state.whole = False
        for done, row in enumerate(rows, 1):
            try:
                held[row.name].refill(convert(checkpoint, row, self.ops), self.arena.place)
            except CheckpointError as error:
                raise CheckpointError(f"{row.name}: {error.condition}", error.remedy) from error
            checkpoint.release(row.name)
            if progress is not None:
                progress(done, len(rows))
        for name, vector in self.weights.named_vectors():
            vector[...] = checkpoint.load_vector(name)
        for part in self._parts():
            (self.ops or OpTable).refresh(part)
        state.version, state.whole = state.version + 1, True

    def _fitting(self, checkpoint: Checkpoint, config: ModelConfig | None) -> Iterator[MatrixPlan]:
        """What each matrix of ``checkpoint`` becomes. Raises CheckpointError unless it is what is held."""
        refuse_stored(self.weights.stored, "the model in memory", "weights that take the place of others")
        for one in fields(config) if config is not None else ():
            new, old = getattr(config, one.name), getattr(self.config, one.name)
            if new != old:
                raise CheckpointError(
                    f"{checkpoint.path} is another model than that in memory: its {one.name} is {new!r:.80}, "
                    f"not {old!r:.80}",
                    "load it anew",
                )
        if check_tensors(checkpoint, self.config) != self.config:
            raise CheckpointError(
                f"{checkpoint.path} has a head of its own, that in memory is tied to the embeddings",
                "load it anew",
            )
        held = dict(self.weights.named_matrices())
        for row in plan_weights(checkpoint, self.config, self.plan.weights).on(self.ops):
            becomes = (row.packs and exact_spec(checkpoint.load(row.name))) or row.target
            if becomes != held[row.name].spec:
                raise CheckpointError(
                    f"{row.name} of {checkpoint.path} would be held as {becomes}, it is held as "
                    f"{held[row.name].spec}",
                    "load the model anew",
                )
            yield row

    def _parts(self) -> Iterator[Linear | AttentionWeights | FeedForwardWeights]:
        """All that tables hang something on."""
        for layer in self.weights.layers:
            yield from layer.linears()
            yield layer.attention
            yield layer.feed_forward
        yield Linear(weight=self.weights.embed)
        yield Linear(weight=self.weights.head)


def convert(checkpoint: Checkpoint, row: MatrixPlan, ops: OpTable | None = None) -> PackedTensor:
    """A matrix as ``row`` has it, in the layout that ``ops`` likes: read-only views into the file, where they
    serve as they are, or new arrays. Raises CheckpointError."""
    tensor = checkpoint.load(row.name)
    result = widened(tensor) if row.widens else repack(tensor, row.target)
    result = packed_if_exact(result) if row.packs else result
    result = result if ops is None else ops.prepare(result)
    if result is not tensor or row.read.row.group:
        checkpoint.release(row.name)
    return result
