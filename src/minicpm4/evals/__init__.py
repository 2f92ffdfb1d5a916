"""Measurements of models: how fast they run, what suits a machine best, which facts are found in long texts.

Imported by commands and benchmarks, never by the engine.
"""
