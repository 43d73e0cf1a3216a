"""Real samples with the scores that the host saw: what a device has to answer too."""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.bundle.container import from_zip, to_zip
from deploy.errors import BundleError

Array = npt.NDArray[Any]

SAMPLES = 12
_LIMITS = {"scores.npy": 1 << 24, "x.npy": 1 << 26}
_FLOAT_TOLERANCE = 1e-4
_QUANTIZED_TOLERANCE = 5e-2
_FIRST_OF_A_CLASS = 50
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00[\s\S]{2}"
    rb"\{'descr': '(\|[biu]1|<[iuf][248])', 'fortran_order': False, "
    rb"'shape': \(((?:\d{1,12},)(?: \d{1,12},){0,7}|\d{1,12}(?:, \d{1,12}){1,7})\), \} *\n"
)


@dataclass(frozen=True, slots=True)
class Golden:
    """Raw samples ``x`` ``(n, ...)`` and the outputs ``(n, ...)`` expected for them, called ``scores``."""

    x: Array
    scores: Array


def tolerance(scores: Array, *, quantized: bool) -> float:
    """Return by how much a score may differ between machines: a share of the largest score.

    Float kernels add in other orders: a ten-thousandth. Where a model rounds to 8 bits while it
    runs, such a difference may tip a value to the next of 256 steps, and the next layer again:
    five hundredths.

    >>> tolerance(np.array([[0.1, 0.9]]), quantized=False)
    0.0001
    """
    share = _QUANTIZED_TOLERANCE if quantized else _FLOAT_TOLERANCE
    return share * max(1.0, float(np.abs(scores).max()))


def at_even_steps(samples: int, count: int = SAMPLES) -> npt.NDArray[np.int64]:
    """Return the indices of a few of so many samples, from the first to the last.

    >>> at_even_steps(9, 3).tolist()
    [0, 4, 8]
    """
    return np.linspace(0, samples - 1, min(samples, count)).astype(np.int64)


def candidates(y: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the indices of the samples to choose from: the first of every class, in order."""
    return np.sort(
        np.concatenate([np.flatnonzero(y == label)[:_FIRST_OF_A_CLASS] for label in np.unique(y)])
    )


def choose(
    y: npt.NDArray[np.int64], scores: Array, *, allowed: float, count: int = SAMPLES
) -> npt.NDArray[np.int64]:
    """Choose samples for a self-test: one of each class in turn until there are enough.

    Within a class, those come first whose two best scores lie more than twice ``allowed`` apart, so
    that no rounding can swap them; then the order is that of the data. With more classes than
    ``count``, classes are taken at even steps.

    Args:
        y: the class of each sample, ``(n,)``.
        scores: what the model says of each, ``(n, classes)``.
        allowed: by how much a score may differ between machines.
        count: how many to choose at most.

    >>> s = np.array([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8], [0.1, 0.9]])
    >>> choose(np.array([0, 0, 1, 1]), s, allowed=0.01, count=3).tolist()
    [1, 2, 0]
    """
    top = np.sort(scores, axis=1)[:, -2:]
    unsure = top[:, 1] - top[:, 0] <= 2 * allowed
    classes = np.unique(y)
    if len(classes) > count:
        classes = classes[np.linspace(0, len(classes) - 1, count).astype(int)]
    rows = [np.flatnonzero(y == label) for label in classes]
    queues = [row[np.argsort(unsure[row], kind="stable")] for row in rows]
    chosen = [
        int(queue[turn])
        for turn in range(max(map(len, queues)))
        for queue in queues
        if turn < len(queue)
    ]
    return np.array(chosen[:count], np.int64)


def encode(golden: Golden) -> bytes:
    """Return ``golden.npz``, the same bytes for the same arrays."""
    return to_zip(
        {"scores.npy": _npy(golden.scores), "x.npy": _npy(golden.x)},
        compress=False,
    )


def decode(data: bytes, where: str) -> Golden:
    """Read a ``golden.npz`` that ``encode`` wrote.

    Raises:
        BundleError: if it is none.
    """
    where = f"{where}: golden.npz"
    files = from_zip(data, _LIMITS, where)
    return Golden(x=_array(files["x.npy"], where), scores=_array(files["scores.npy"], where))


def _npy(array: Array) -> bytes:
    out = io.BytesIO()
    # Little-endian on every machine, rows first.
    plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    np.lib.format.write_array(out, plain, version=(1, 0), allow_pickle=False)
    return out.getvalue()


def _array(data: bytes, where: str) -> Array:
    """Read an array as ``_npy`` wrote it.

    numpy's own reader is not asked: it evaluates the header as Python, and believes the shape.
    """
    header = _HEADER.match(data)
    if header is None:
        raise BundleError(f"{where}: holds something other than arrays of numbers, rows first")
    dtype = np.dtype(header[1].decode())
    shape = tuple(int(size) for size in header[2].replace(b" ", b"").split(b",") if size)
    body = data[header.end() :]
    if math.prod(shape) * dtype.itemsize != len(body):
        raise BundleError(f"{where}: holds an array of {shape} in {len(body):,} bytes")
    return np.frombuffer(body, dtype).reshape(shape)
