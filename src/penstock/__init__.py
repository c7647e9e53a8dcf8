"""Penstock: a distributed, stateful stream processing engine for Python."""

__version__ = "0.1.0"
