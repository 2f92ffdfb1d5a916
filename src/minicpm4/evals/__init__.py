"""Measurements of models: how fast they run. Imported by commands and benchmarks, never by the engine."""
