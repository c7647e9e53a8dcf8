"""Channels between nodes: one authenticated TCP connection per pair, slab channels at both ends.

A subtask sees a slab channel and nothing else. On the sending node its reader is the net process,
on the receiving node its writer is.
"""
