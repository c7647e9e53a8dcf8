"""The ledger job, configured by its environment; scripts/chaos and tests/crash run it.

LEDGER_OUT, LEDGER_SPLITS, LEDGER_ROWS (per split), LEDGER_RATE (rows a second and split).
"""

import os

from penstock.testing.ledger import ledger

pipeline = ledger(
    os.environ.get("LEDGER_OUT", "ledger-output"),
    int(os.environ.get("LEDGER_SPLITS", "4")),
    int(os.environ.get("LEDGER_ROWS", "100000")),
    float(os.environ["LEDGER_RATE"]) if "LEDGER_RATE" in os.environ else None,
)
