"""Whether a bundle is whole, and this machine answers as the one that measured it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from deploy.bundle.opened import Bundle, open_bundle
from deploy.errors import BundleError, UserError
from deploy.memory import is_short_of_memory
from deploy.record import BundleId, Record


class Selftest(Record, frozen=True):
    """What a self-test found."""

    passed: bool
    sentence: str
    """All of it, for a person."""
    bundle: BundleId | None
    """None if the bundle could not be opened: nothing that it says can be believed then."""
    samples: int
    same_class: int
    """Of the samples, how many got the class that they have to get."""
    largest_difference: float | None
    """Between a score and the expected one; None if nothing was run or a score was NaN."""
    tolerance: float | None
    onnxruntime: str


def selftest(path: Path, *, threads: int | None = None) -> Selftest:
    """Check every digest of a bundle, then its answers to the golden samples.

    It passes if every sample gets its class, and every score is within the bundle's tolerance.

    Raises:
        UserError: if nothing is there to test, this ONNX Runtime is too old to test it, or memory
            is too short to open it, which says nothing of the bundle.
    """
    try:
        bundle = open_bundle(path)
    except BundleError as error:
        return _failed(str(error), None)
    try:
        scores = bundle.session(threads).scores(bundle.golden.x)
    except BundleError as error:
        if is_short_of_memory(error):
            raise
        return _failed(str(error), bundle)
    # ONNX Runtime's exceptions share no base class below Exception.
    except Exception as error:
        if isinstance(error, UserError | MemoryError):
            raise
        return _failed(f"{path}: did not run: {' '.join(str(error).split())[:200]}", bundle)
    return _compared(bundle, scores)


def _compared(bundle: Bundle, scores: npt.NDArray[Any]) -> Selftest:
    expected, allowed = bundle.golden.scores, bundle.manifest.golden.tolerance
    name = f"{bundle.manifest.name} {bundle.manifest.version}"
    if scores.shape != expected.shape:
        return _failed(f"{name} fails: it answers {scores.shape}, not {expected.shape}", bundle)
    same = int((scores.argmax(axis=1) == expected.argmax(axis=1)).sum())
    furthest = float(np.abs(scores.astype(np.float64) - expected.astype(np.float64)).max())
    passed = same == len(expected) and furthest <= allowed  # NaN is not within anything
    sentence = (
        f"{name} {'passes' if passed else 'fails'}: all digests are right, {same} of "
        f"{len(expected)} golden samples get the expected class, scores differ by {furthest:.2g} "
        f"at most (allowed: {allowed:.2g}), ONNX Runtime {ort.__version__}."
    )
    return Selftest(
        passed=passed,
        sentence=sentence,
        bundle=bundle.id,
        samples=len(expected),
        same_class=same,
        largest_difference=furthest if np.isfinite(furthest) else None,
        tolerance=allowed,
        onnxruntime=ort.__version__,
    )


def _failed(reason: str, bundle: Bundle | None) -> Selftest:
    return Selftest(
        passed=False,
        sentence=" ".join(reason.split()),
        bundle=bundle.id if bundle else None,
        samples=bundle.manifest.golden.samples if bundle else 0,
        same_class=0,
        largest_difference=None,
        tolerance=bundle.manifest.golden.tolerance if bundle else None,
        onnxruntime=ort.__version__,
    )
