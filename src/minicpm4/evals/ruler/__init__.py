"""RULER's thirteen kinds of long-context questions (arXiv 2404.06654), generated here: any length, tokenizer
and text; scored by RULER's rules."""

from minicpm4.evals.ruler.fitting import Maker, Sample
from minicpm4.evals.ruler.kinds import KINDS, Kind
from minicpm4.evals.ruler.running import Answer, Score, ask, effective_length, score_of, scores, svg

__all__ = [
    "KINDS",
    "Answer",
    "Kind",
    "Maker",
    "Sample",
    "Score",
    "ask",
    "effective_length",
    "score_of",
    "scores",
    "svg",
]
