"""How small a model gets by each road, beside what no code of single symbols can be smaller than."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.packing.packed import pack, parts_of
from deploy.record import Record

_FREQUENT, _SEVERAL = 64, 8
"""An element is frequent if it is more than one in so many, and there are more than so many of it."""


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
    """See ``bound_bytes``."""


def packed_sizes(path: Path) -> dict[str, int]:
    """Return what a report says of a model file: how small it packs, and how small it could."""
    model = path.read_bytes()
    return {"packed_bytes": len(pack(model)), "entropy_bound_bytes": bound_bytes(model)}


def bound_bytes(model: bytes) -> int:
    """Return the order-0 entropy of a model's weights, and its text as it is packed, in bytes."""
    text, tensors = parts_of(model)
    return round(len(text) + entropy_bits(tensors) / 8)


def sizes_of(model: bytes) -> Sizes:
    """Return how small a model gets by each road."""
    return Sizes(
        raw_bytes=len(model),
        gzip_bytes=len(gzip.compress(model, 9, mtime=0)),
        zstd_bytes=_zstd_bytes(model),
        xz_bytes=len(lzma.compress(model, preset=9)),
        packed_bytes=len(pack(model)),
        bound_bytes=bound_bytes(model),
    )


def entropy_bits(tensors: Sequence[npt.NDArray[Any]]) -> float:
    """Return the order-0 entropy of tensors: what the best code of symbols by themselves needs.

    The symbols of a tensor are its elements, with each distinct one written out once if it has more
    than a byte; or its zeros with what else is frequent (written out once too, as the −0 of pruned
    weights), and the bytes of each place of the others, the sign before the exponent or behind the
    mantissa. The least counts.

    >>> entropy_bits([np.array([0, 0, 7, 7], np.uint8)])
    4.0
    """
    return sum(min(_of_elements(values), *_of_bytes(values)) for values in tensors)


def _of_elements(values: npt.NDArray[Any]) -> float:
    found, counts = np.unique(values, return_counts=True)
    return _bits(counts) + (8.0 * found.nbytes if values.itemsize > 1 else 0.0)


def _of_bytes(values: npt.NDArray[Any]) -> Iterator[float]:
    found, counts = np.unique(values, return_counts=True)
    frequent = (counts * _FREQUENT > len(values)) & (counts > _SEVERAL) | (found == 0)
    others = values[~np.isin(values, found[frequent])]
    split = (
        _bits(np.append(counts[frequent], len(others)))
        + 8.0 * found[frequent & (found != 0)].nbytes
    )
    for order in (others, others << 1 | others >> 8 * values.itemsize - 1):
        places = order.view(np.uint8).reshape(-1, values.itemsize)
        yield split + sum(_bits(np.bincount(column)) for column in places.T)


def _bits(counts: npt.NDArray[np.int64]) -> float:
    counts = counts[counts > 0]
    return float((counts * np.log2(counts.sum() / counts)).sum()) if len(counts) else 0.0


def _zstd_bytes(model: bytes) -> int | None:
    try:
        import zstandard
    except ModuleNotFoundError:
        return None
    return len(zstandard.ZstdCompressor(level=19).compress(model))
