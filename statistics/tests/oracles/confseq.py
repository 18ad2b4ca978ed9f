"""Prints confseq.json: the logarithm of the one-sided normal mixture of Howard et al. (arXiv 1810.08240) by its authors' package.

Run once, when the evidence changes, in an environment with `confseq`: python confseq.py > confseq.json
"""

import json
from importlib.metadata import version
from math import log, sqrt

from confseq.boundaries import normal_log_mixture

# The package tunes its mixture by a variance: this one gives `rho` = 1 (Howard et al., equation 3.7, at alpha 0.05).
LEVEL = 0.05
TUNED = 2 * log(1 / (2 * LEVEL)) + log(1 + 2 * log(1 / (2 * LEVEL)))


def row(z, ratio):
    """`z` standard errors at a variance of `ratio` times `rho`."""
    return {"z": z, "ratio": ratio, "logEvidence": float(normal_log_mixture(z * sqrt(ratio), ratio, TUNED, LEVEL, True))}


rows = [row(z, ratio) for z in [-6.0, -2.0, -0.5, 0.0, 1.0, 2.5, 4.0, 6.0] for ratio in [0.01, 0.5, 1.0, 13.0, 400.0]]
lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
print(f'{{\n "confseq": "{version("confseq")}",\n "rows": [\n{lines}\n ]\n}}')
