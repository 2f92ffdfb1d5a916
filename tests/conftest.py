"""What holds for every test: the hub client reads its environment once, when it is imported."""

import os

# The tests' stand-in hub is on loopback; a user's wish to stay offline would hide it.
os.environ.pop("HF_HUB_OFFLINE", None)
