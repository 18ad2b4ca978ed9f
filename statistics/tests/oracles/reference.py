"""Prints reference.json: figures of scipy, Evidently, river and scikit-learn on data that tests/oracles.rs makes anew.

Run once, when a recipe changes, in an environment with the packages of `versions` below:
python reference.py > reference.json
"""

import json
from importlib.metadata import version

import numpy as np
import pandas as pd
from evidently.legacy.core import ColumnType
from evidently.legacy.calculations.stattests import jensenshannon_stat_test, psi_stat_test, wasserstein_stat_test
from river import drift
from scipy import stats
from scipy.spatial import distance
from sklearn import metrics

MASK = (1 << 64) - 1


def uniforms(seed, number):
    """SplitMix64 as numbers in [0, 1), the same as in tests/oracles.rs."""
    state, values = seed, []
    for _ in range(number):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK
        values.append(((mixed ^ (mixed >> 31)) >> 11) / (1 << 53))
    return np.array(values)


def evidently(test, reference, window, kind):
    return float(test.func(pd.Series(reference), pd.Series(window), kind, 0.1)[0])


def numbers(shift):
    reference = 1.0 - np.log(1.0 - uniforms(1, 3000))
    window = shift * (1.0 - np.log(1.0 - uniforms(2, 2000)))
    ks = stats.ks_2samp(reference, window, method="asymp")
    return {
        "shift": shift,
        "psi": evidently(psi_stat_test, reference, window, ColumnType.Numerical),
        "jensenShannon": evidently(jensenshannon_stat_test, reference, window, ColumnType.Numerical),
        "wasserstein": evidently(wasserstein_stat_test, reference, window, ColumnType.Numerical),
        "kolmogorovSmirnov": [float(ks.statistic), float(ks.pvalue)],
    }


def categories(reference, window):
    as_rows = lambda counts: [str(place) for place, count in enumerate(counts) for _ in range(count)]
    left, right = as_rows(reference), as_rows(window)
    total = sum(window)
    expected = [count / sum(reference) * total for count in reference]
    known = all(count > 0 for count in reference)
    chi = stats.chisquare(window, expected) if known else None
    return {
        "reference": reference,
        "window": window,
        "psi": evidently(psi_stat_test, left, right, ColumnType.Categorical),
        "jensenShannon": evidently(jensenshannon_stat_test, left, right, ColumnType.Categorical),
        "jensenShannonScipy": float(distance.jensenshannon(reference, window)),
        "chiSquared": [float(chi.statistic), float(chi.pvalue)] if chi else None,
    }


def adwin(seed, shift):
    detector, detected = drift.ADWIN(), []
    for index, value in enumerate(uniforms(seed, 4000)):
        detector.update(float(value) + (shift if index >= 2000 else 0.0))
        if detector.drift_detected:
            detected.append(index)
    return {"seed": seed, "shift": shift, "detected": detected, "width": int(detector.width), "mean": float(detector.estimation)}


def ddm(seed, before, after):
    detector, warned, detected = drift.binary.DDM(), [], []
    for index, value in enumerate(uniforms(seed, 4000)):
        detector.update(bool(value < (before if index < 2000 else after)))
        if detector.warning_detected:
            warned.append(index)
        if detector.drift_detected:
            detected.append(index)
    return {"seed": seed, "before": before, "after": after, "warned": warned, "detected": detected}


def fisher(n0, k0, n1, k1):
    """Exact one-sided probability, that evidence may not be far ahead of."""
    return float(stats.fisher_exact([[k1, n1 - k1], [k0, n0 - k0]], alternative="greater").pvalue)


def classes(seed, number, shares):
    """Predictions among classes: right where a second draw is below 0.7, else by a third."""
    rows = uniforms(seed, 3 * number).reshape(number, 3)
    edges = np.cumsum(shares)
    pick = lambda draws: np.minimum(np.searchsorted(edges, draws, side="right"), len(shares) - 1)
    labelled = pick(rows[:, 0])
    predicted = np.where(rows[:, 1] < 0.7, labelled, pick(rows[:, 2]))
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(labelled, predicted, average="macro", zero_division=0)
    positive = {"pos_label": 1, "average": "binary"} if len(shares) == 2 else {"labels": [1], "average": "macro"}
    return {
        "seed": seed,
        "number": number,
        "shares": shares,
        "accuracy": float(metrics.accuracy_score(labelled, predicted)),
        "macro": [float(precision), float(recall), float(f1)],
        "ofClass1": [
            float(figure(labelled, predicted, zero_division=0, **positive))
            for figure in [metrics.precision_score, metrics.recall_score, metrics.f1_score]
        ],
    }


def calibration(seed, number, power):
    """Probabilities whose outcomes come with probability ** power."""
    rows = uniforms(seed, 2 * number).reshape(number, 2)
    probabilities, right = rows[:, 0], rows[:, 1] < rows[:, 0] ** power
    # Ten equal bins, open below and closed above (Guo et al. 2017), which scikit-learn has no score for.
    bins = np.digitize(probabilities, np.linspace(0, 1, 11), right=True)
    gaps = [abs(right[bins == place].sum() - probabilities[bins == place].sum()) for place in range(1, 11)]
    return {
        "seed": seed,
        "number": number,
        "power": power,
        "brier": float(metrics.brier_score_loss(right, probabilities)),
        "expectedError": float(sum(gaps) / number),
    }


def errors(seed, number, scale):
    rows = uniforms(seed, 2 * number).reshape(number, 2)
    labelled, predicted = 10 * rows[:, 0], 10 * rows[:, 0] + scale * (rows[:, 1] - 0.4)
    return {
        "seed": seed,
        "number": number,
        "scale": scale,
        "mean": float(np.mean(predicted - labelled)),
        "meanAbsolute": float(metrics.mean_absolute_error(labelled, predicted)),
        "rootMeanSquare": float(metrics.root_mean_squared_error(labelled, predicted)),
    }


def agreement():
    """Figures of scikit-learn."""
    return {
        "classes": [classes(11, 500, [0.8, 0.2]), classes(12, 700, [0.5, 0.3, 0.15, 0.05]), classes(13, 3, [0.5, 0.5])],
        "calibration": [calibration(14, 800, 1.0), calibration(15, 800, 3.0)],
        "errors": [errors(16, 400, 1.0), errors(17, 400, 100.0)],
    }


print(
    json.dumps(
        {
            "versions": {name: version(name) for name in ["scipy", "numpy", "evidently", "river", "scikit-learn"]},
            "numbers": [numbers(shift) for shift in [1.0, 1.05, 1.3, 2.0]],
            "categories": [
                categories([500, 300, 150, 50], [250, 160, 60, 30]),
                categories([500, 300, 150, 50], [400, 0, 60, 30]),
                categories([500, 300, 0, 50], [400, 10, 60, 30]),
                categories([20000, 1, 300], [15000, 0, 400]),
            ],
            "adwin": [adwin(3, 0.0), adwin(4, 0.2), adwin(5, 0.5), adwin(6, -0.05)],
            "ddm": [ddm(7, 0.2, 0.2), ddm(8, 0.2, 0.4), ddm(9, 0.05, 0.5), ddm(10, 0.5, 0.7)],
            "fisher": [
                {"counts": counts, "probability": fisher(*counts)}
                for counts in [(1000, 5, 1000, 20), (1000, 5, 100, 9), (500, 50, 500, 110), (9000, 20, 1000, 12)]
            ],
            **agreement(),
        },
        indent=1,
    )
)
