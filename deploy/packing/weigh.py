"""How small a model gets by each road, beside what no code of single symbols can be smaller than."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.packing.packed import pack, parts_of
from deploy.record import Record


class Sizes(Record, frozen=True):
    """The bytes of one model, road by road."""

    raw_bytes: int
    gzip_bytes: int
    """``gzip -9``, without name and time."""
    zstd_bytes: int | None
    """``zstd -19``; None where the package ``zstandard`` is not installed."""
    xz_bytes: int
    """``xz -9``."""
    packed_bytes: int
    bound_bytes: int
    """Order-0 entropy of the weights, and the text as it is compressed in the packed file."""


def sizes_of(model: bytes) -> Sizes:
    """Return how small a model gets by each road."""
    packed = pack(model)
    text, tensors = parts_of(model)
    return Sizes(
        raw_bytes=len(model),
        gzip_bytes=len(gzip.compress(model, 9, mtime=0)),
        zstd_bytes=_zstd_bytes(model),
        xz_bytes=len(lzma.compress(model, preset=9)),
        packed_bytes=len(packed),
        bound_bytes=round(len(text) + entropy_bits(tensors) / 8),
    )


def entropy_bits(tensors: Sequence[npt.NDArray[Any]]) -> float:
    """Return the order-0 entropy of tensors: what the best code of symbols by themselves needs.

    The symbols of a tensor are its elements, with each distinct one written out once if it has more
    than a byte; or its zeros and ones and the bytes of each place of the others. The less counts.

    >>> entropy_bits([np.array([0, 0, 7, 7], np.uint8)])
    4.0
    """
    return sum(min(_of_elements(values), _of_bytes(values)) for values in tensors)


def _of_elements(values: npt.NDArray[Any]) -> float:
    found, counts = np.unique(values, return_counts=True)
    return _bits(counts) + (8.0 * found.nbytes if values.itemsize > 1 else 0.0)


def _of_bytes(values: npt.NDArray[Any]) -> float:
    others = values[values != 0]
    places = others.view(np.uint8).reshape(-1, values.itemsize)
    split = _bits(np.array([len(others), len(values) - len(others)]))
    return split + sum(_bits(np.bincount(places[:, place])) for place in range(values.itemsize))


def _bits(counts: npt.NDArray[np.int64]) -> float:
    counts = counts[counts > 0]
    return float((counts * np.log2(counts.sum() / counts)).sum()) if len(counts) else 0.0


def _zstd_bytes(model: bytes) -> int | None:
    try:
        import zstandard
    except ModuleNotFoundError:
        return None
    return len(zstandard.ZstdCompressor(level=19).compress(model))
