"""From requests to tokens: integers are scheduled, arrays are run, nothing handles both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minicpm4.lazy import at_first_use

if TYPE_CHECKING:
    from minicpm4.engine.metrics import Metrics
    from minicpm4.engine.outputs import Piece, RequestOutput, SampleOutput, TokenLogprobs
    from minicpm4.engine.params import SamplingParams

__all__ = ["Metrics", "Piece", "RequestOutput", "SampleOutput", "SamplingParams", "TokenLogprobs"]

__getattr__ = at_first_use(
    __name__,
    {
        "Metrics": "minicpm4.engine.metrics",
        "Piece": "minicpm4.engine.outputs",
        "RequestOutput": "minicpm4.engine.outputs",
        "SampleOutput": "minicpm4.engine.outputs",
        "TokenLogprobs": "minicpm4.engine.outputs",
        "SamplingParams": "minicpm4.engine.params",
    },
)
