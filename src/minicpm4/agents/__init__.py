"""Agents on top of the engine: models that act, step by step, with a person who decides what they may do."""
