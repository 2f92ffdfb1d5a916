"""Experiments of training."""

import minicpm4.train  # noqa: F401  (says how long waiting threads spin, before torch is loaded)
