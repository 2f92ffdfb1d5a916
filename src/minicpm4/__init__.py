"""MiniCPM4 on end devices: block-sparse attention, squeezed weights, one readable engine."""

__version__ = "0.1.0"
