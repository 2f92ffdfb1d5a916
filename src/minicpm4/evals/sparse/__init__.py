"""What sparse attention costs a model that may not have been trained for it, and the cheapest setting that a
user puts up with."""

from minicpm4.evals.sparse.judging import Cost, cheapest, costs, heat
from minicpm4.evals.sparse.layout import Layout, lay_out
from minicpm4.evals.sparse.measuring import CANDIDATES, Result, measure, name_of, time_settings
from minicpm4.evals.sparse.reading import Reader

__all__ = [
    "CANDIDATES",
    "Cost",
    "Layout",
    "Reader",
    "Result",
    "cheapest",
    "costs",
    "heat",
    "lay_out",
    "measure",
    "name_of",
    "time_settings",
]
