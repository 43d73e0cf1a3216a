"""Proof that a lossless step lost nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.errors import ParityError

Array = npt.NDArray[Any]
Predictor = Callable[[Array], Any]


def require_parity(
    reference: Predictor, candidate: Predictor, x: Array, *, tolerance: float
) -> float:
    """Return the largest absolute difference between two models' outputs on ``x``.

    Args:
        reference: gives the outputs that are right, ``(n, ...)``.
        candidate: gives the outputs to check, of the same shape.
        x: model inputs ``(n, ...)``, at least one sample.
        tolerance: largest difference that rounding explains, where outputs are at most 1; above
            that ``tolerance × max(1, largest |output|)``, because rounding grows with the numbers.

    Raises:
        ParityError: if the difference is above what ``tolerance`` allows or is no number, if the shapes differ
            or if there is no sample to compare.

    >>> require_parity(np.sin, lambda x: np.sin(x) + 0.5, np.zeros((1, 2)), tolerance=1.0)
    0.5
    """
    if len(x) == 0:
        raise ParityError("no samples to compare on")
    expected, got = np.asarray(reference(x)), np.asarray(candidate(x))
    if expected.shape != got.shape:
        raise ParityError(f"outputs differ in shape: {expected.shape} and {got.shape}")
    difference = np.abs(expected.astype(np.float64) - got.astype(np.float64))
    worst = float(difference.max())  # NaN where any difference is NaN
    allowed = tolerance * max(1.0, float(np.abs(expected.astype(np.float64)).max()))
    if not (np.isfinite(worst) and worst <= allowed):
        sample = int(np.unravel_index(int(np.argmax(difference)), difference.shape)[0])
        raise ParityError(
            f"outputs differ by {worst:.3g} on sample {sample} of {len(x)}, "
            f"more than the {allowed:.3g} that the tolerance {tolerance:.3g} allows"
        )
    return worst
