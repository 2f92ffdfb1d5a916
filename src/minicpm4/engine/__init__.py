"""From requests to tokens: integers are scheduled, arrays are run, nothing handles both."""

from minicpm4.engine.metrics import Metrics
from minicpm4.engine.outputs import Piece, RequestOutput, SampleOutput, TokenLogprobs
from minicpm4.engine.params import SamplingParams

__all__ = ["Metrics", "Piece", "RequestOutput", "SampleOutput", "SamplingParams", "TokenLogprobs"]
