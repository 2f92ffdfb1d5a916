"""What holds for every test: the environment, which the hub client reads once, when it is imported."""

import os

from hypothesis import settings

# The tests' stand-in hub is on loopback; a user's wish to stay offline would hide it.
os.environ.pop("HF_HUB_OFFLINE", None)
# What was measured on this machine must not decide what tests see.
os.environ["MINICPM4_CALIBRATION"] = "off"
os.environ["MINICPM4_SPARSE"] = "off"
os.environ["MINICPM4_CHAT"] = "off"  # what tests say is no conversation to go on with
# Nor what earlier runs have converted.
os.environ["MINICPM4_KEPT_WEIGHTS"] = "off"

# How long an example takes says more of the machine's other work than of what is tested.
settings.register_profile("minicpm4", deadline=None)
settings.load_profile("minicpm4")
