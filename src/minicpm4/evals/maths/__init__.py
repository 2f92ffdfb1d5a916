"""Problems of mathematics: a model's last answer is compared with the right one (math-verify)."""

from minicpm4.evals.maths.judge import Judge, Verdict
from minicpm4.evals.maths.problems import Problem, make_problems, read_problems
from minicpm4.evals.maths.running import STYLES, Answer, ask, check, hashes

__all__ = [
    "STYLES",
    "Answer",
    "Judge",
    "Problem",
    "Verdict",
    "ask",
    "check",
    "hashes",
    "make_problems",
    "read_problems",
]
