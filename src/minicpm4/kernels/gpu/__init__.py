"""Kernels in Triton for any GPU that it supports: one file an op or a few small ones."""
