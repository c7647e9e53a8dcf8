"""`python -m penstock.operators.kernels`: compile all kernels into the cache, for images."""

from __future__ import annotations

import sys

from .compile import build

if __name__ == "__main__":
    sys.stdout.write(f"{build()}\n")
