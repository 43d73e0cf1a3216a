"""How often each symbol of a run comes, in the few bytes that a decoder needs to know it.

All arithmetic is that of whole numbers: a table is the same on every machine.
"""

from __future__ import annotations

from functools import cache, cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

PRECISION = 14
"""Frequencies of a table sum to 2 to this power."""
MOST_SYMBOLS = 1 << 12
_TOTAL = 1 << PRECISION
_POWERS = (
    65536, 62757, 60097, 57549, 55109, 52773, 50535, 48393,
    46341, 44376, 42495, 40693, 38968, 37316, 35734, 34219,
)  # fmt: skip
"""2¹⁶ · 2^(−k/16), rounded."""
_SLOTS = np.arange(_TOTAL)


class Table:
    """Frequencies of the symbols 0, 1, 2 …, which sum to 2¹⁴."""

    def __init__(self, frequencies: npt.NDArray[np.int64]) -> None:
        self.frequencies = frequencies

    @cached_property
    def firsts(self) -> npt.NDArray[np.int64]:
        """The first of the slots that belong to each symbol."""
        return self.ends - self.frequencies

    @cached_property
    def ends(self) -> npt.NDArray[np.int64]:
        """The slot behind the last one of each symbol."""
        return np.cumsum(self.frequencies)

    @cached_property
    def by_slot(self) -> tuple[npt.NDArray[np.uint16], npt.NDArray[Any], npt.NDArray[Any]]:
        """Return, for each of 2¹⁴ slots, its symbol, the symbol's frequency, its place therein."""
        found = self.frequencies
        symbol = np.repeat(np.arange(len(found), dtype=np.uint16), found)
        return symbol, np.repeat(found, found), _SLOTS - np.repeat(self.firsts, found)

    @cached_property
    def by_symbol(self) -> tuple[list[int], list[int]]:
        """Return, for each symbol, the slot behind its last, and its frequency: for a few of them."""
        return self.ends.tolist(), self.frequencies.tolist()

    def bits(self, counts: npt.NDArray[Any]) -> float:
        """Return what symbols that come so often cost."""
        seen = counts > 0
        shares = self.frequencies[: len(counts)][seen] / _TOTAL
        return float(-(counts[seen] * np.log2(shares)).sum()) if seen.any() else 0.0


def from_weights(weights: npt.ArrayLike) -> Table:
    """Return the table of whole numbers that say how likely each symbol is; 0 for never.

    Args:
        weights: below 2⁴¹ each and in their sum.

    Raises:
        ValueError: if nothing is likely, or there are more symbols than a table takes.
    """
    given = np.asarray(weights, np.int64)
    seen = given > 0
    total, likely = int(given.sum()), int(seen.sum())
    if not total or likely > MOST_SYMBOLS:
        raise ValueError(f"a table of {likely:,} symbols")
    room = _TOTAL - likely  # one slot for each, the rest by weight
    found = seen + given * room // total
    found[int(np.argmax(found))] += _TOTAL - int(found.sum())
    return Table(found)


@lru_cache(maxsize=64)
def uniform(symbols: int) -> Table:
    """Return the table of symbols that are all as likely."""
    return from_weights(np.ones(symbols, np.int64))


@lru_cache(maxsize=32)
def geometric(step: int, symbols: int) -> Table:
    """Return the table of how many failures come before a success, the last for that many or more.

    Args:
        step: a success has the probability 2^(−(step + 1) / 16).
        symbols: how many there are, the last included.
    """
    return from_weights(_geometric_weights(step, symbols))


@lru_cache(maxsize=512)  # as many as packing tries again and again; they are small, unlike tables
def _geometric_weights(step: int, symbols: int) -> npt.NDArray[np.int64]:
    success = _POWERS[(step + 1) % 16] >> ((step + 1) // 16) or 1
    weights, left = [], 1 << 40
    for _ in range(symbols - 1):
        weights.append((left * success >> 16) + 1)  # each can come, however unlikely
        left -= left * success >> 16
    return np.array([*weights, left + 1], np.int64)


def weight_of(level: int, fineness: int) -> int:
    """Return the weight that a level stands for: 2^fineness levels double it; level 0 is never.

    >>> [weight_of(level, 1) for level in range(8)]
    [0, 2, 3, 4, 6, 8, 12, 16]
    """
    if level == 0:
        return 0
    octave, part = divmod(level - 1, 1 << fineness)
    return ((1 << fineness) + part) << octave


@cache
def weights_of_levels(fineness: int) -> npt.NDArray[np.int64]:
    """Return what each level stands for, level 0 first."""
    return np.array([weight_of(level, fineness) for level in range(most_levels(fineness))])


def levels_of(counts: npt.NDArray[np.int64], fineness: int) -> npt.NDArray[np.int64]:
    """Return the level whose weight is nearest to each count, on a scale of ratios."""
    weights = weights_of_levels(fineness)[1:]
    middles = np.sqrt(np.multiply(weights[:-1], weights[1:], dtype=np.float64))
    # The most frequent symbol gets the top of the scale, so that rare ones keep their ratio to it.
    scaled = counts * (weights[-1] / max(1, int(counts.max())))
    found = 1 + np.searchsorted(middles, scaled)
    return np.where(counts > 0, found, 0)


def most_levels(fineness: int) -> int:
    """Return how many levels there are, level 0 included."""
    return (PRECISION << fineness) + 1
