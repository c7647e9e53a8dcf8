"""Compiled kernels and what stands on them; each has a plain reference beside it."""
