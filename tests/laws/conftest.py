"""Many pipelines are held to the law here: in brief, unless PENSTOCK_SAME_ROWS=full is said."""

from __future__ import annotations

import os

os.environ.setdefault("PENSTOCK_SAME_ROWS", "brief")
