"""What holds for every test: the environment, which the hub client reads once, when it is imported."""

import os

# The tests' stand-in hub is on loopback; a user's wish to stay offline would hide it.
os.environ.pop("HF_HUB_OFFLINE", None)
# What was measured on this machine must not decide what tests see.
os.environ["MINICPM4_CALIBRATION"] = "off"
# Nor what earlier runs have converted.
os.environ["MINICPM4_KEPT_WEIGHTS"] = "off"
