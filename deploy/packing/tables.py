"""How often each symbol of a run comes, in the few bytes that a decoder needs to know it.

All arithmetic is that of whole numbers: a table is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
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


class Table:
    """Frequencies of the symbols 0, 1, 2 …, which sum to 2¹⁴."""

    def __init__(self, frequencies: npt.NDArray[np.int64]) -> None:
        self.frequencies = frequencies

    @cached_property
    def firsts(self) -> npt.NDArray[np.int64]:
        """The first of the slots that belong to each symbol."""
        return np.cumsum(self.frequencies) - self.frequencies

    @cached_property
    def by_slot(self) -> tuple[npt.NDArray[np.uint16], npt.NDArray[Any], npt.NDArray[Any]]:
        """Return, for each of 2¹⁴ slots, its symbol, the symbol's frequency, its place therein."""
        symbol = np.repeat(np.arange(len(self.frequencies), dtype=np.uint16), self.frequencies)
        return symbol, self.frequencies[symbol], np.arange(_TOTAL) - self.firsts[symbol]

    def bits(self, counts: npt.NDArray[Any]) -> float:
        """Return what symbols that come so often cost."""
        seen = counts > 0
        shares = self.frequencies[: len(counts)][seen] / _TOTAL
        return float(-(counts[seen] * np.log2(shares)).sum()) if seen.any() else 0.0


def from_weights(weights: Sequence[int]) -> Table:
    """Return the table of whole numbers that say how likely each symbol is; 0 for never.

    Raises:
        ValueError: if nothing is likely, or there are more symbols than a table takes.
    """
    total, likely = sum(weights), sum(weight > 0 for weight in weights)
    if not total or likely > MOST_SYMBOLS:
        raise ValueError(f"a table of {likely:,} symbols")
    if likely == 1:
        return Table(np.array([_TOTAL if weight else 0 for weight in weights], np.int64))
    room = _TOTAL - likely  # one slot for each, the rest by weight
    found = np.array([1 + weight * room // total if weight else 0 for weight in weights], np.int64)
    found[int(np.argmax(found))] += _TOTAL - int(found.sum())
    return Table(found)


@lru_cache(maxsize=64)
def uniform(symbols: int) -> Table:
    """Return the table of symbols that are all as likely."""
    return from_weights((1,) * symbols)


@lru_cache(maxsize=16)
def geometric(step: int, symbols: int) -> Table:
    """Return the table of how many failures come before a success, the last for that many or more.

    Args:
        step: a success has the probability 2^(−(step + 1) / 16).
        symbols: how many there are, the last included.
    """
    success = _POWERS[(step + 1) % 16] >> ((step + 1) // 16) or 1
    weights, left = [], 1 << 40
    for _ in range(symbols - 1):
        weights.append((left * success >> 16) + 1)  # each can come, however unlikely
        left -= left * success >> 16
    return from_weights((*weights, left + 1))


def weight_of(level: int, fineness: int) -> int:
    """Return the weight that a level stands for: 2^fineness levels double it; level 0 is never.

    >>> [weight_of(level, 1) for level in range(8)]
    [0, 2, 3, 4, 6, 8, 12, 16]
    """
    if level == 0:
        return 0
    octave, part = divmod(level - 1, 1 << fineness)
    return ((1 << fineness) + part) << octave


def levels_of(counts: npt.NDArray[np.int64], fineness: int) -> npt.NDArray[np.int64]:
    """Return the level whose weight is nearest to each count, on a scale of ratios."""
    weights = [weight_of(level, fineness) for level in range(1, most_levels(fineness))]
    middles = np.sqrt(np.multiply(weights[:-1], weights[1:], dtype=np.float64))
    # The most frequent symbol gets the top of the scale, so that rare ones keep their ratio to it.
    scaled = counts * (weights[-1] / max(1, int(counts.max())))
    found = 1 + np.searchsorted(middles, scaled)
    return np.where(counts > 0, found, 0)


def most_levels(fineness: int) -> int:
    """Return how many levels there are, level 0 included."""
    return (PRECISION << fineness) + 1
