"""SmolLM2's real vocabulary, for the tests of data."""

from __future__ import annotations

from tests.text.conftest import smollm, smollm_metadata, sp_pair

__all__ = ["smollm", "smollm_metadata", "sp_pair"]
