"""Interleaved rANS: many coders side by side, so that numpy decodes a row of symbols at a time.

J. Duda, "Asymmetric numeral systems: entropy coding combining speed of Huffman coding with compression
rate of arithmetic coding", arXiv 1311.2540; F. Giesen, "Interleaved entropy coders", arXiv 1402.3392.

Symbol ``i`` of every run belongs to lane ``i mod lanes``. A lane's state lies in [2¹⁶, 2³²); what it
gains beyond goes out as words of 16 bits. What the encoder starts with is what the decoder ends with:
that is where the digest lies, at no cost.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.packing.tables import PRECISION, Table

Symbols = npt.NDArray[np.uint16]
LOWEST = 1 << 16
"""Where a state begins; below it, a lane takes another word."""
_TOTAL = 1 << PRECISION
MOST_ROWS = 1 << 18
"""The most symbols that each lane may hold of runs. They may cost next to no bits, but cost time."""
_SYMBOLS_AT_ONCE = 1 << 18
_FEW = 16
"""Rows of so many symbols, or fewer, are decoded faster one by one."""
_FEW_AT_ONCE = 1 << 12
_WORTH_SLOTS = 1 << 12
"""From so many symbols on, it pays to spread their table over its slots."""
_CUT_OFF = "it is cut off: its code ends before its weights do"


class Encoder:
    """Takes runs of symbols in the order in which they will be decoded."""

    def __init__(self) -> None:
        self._runs: list[tuple[Symbols, Table]] = []

    def put(self, symbols: npt.NDArray[Any], table: Table) -> None:
        """Add a run; each symbol must have a frequency in the table."""
        if len(table.frequencies) > 1:
            self._runs.append((symbols.astype(np.uint16), table))

    @property
    def symbols(self) -> int:
        """How many symbols it has taken."""
        return sum(len(symbols) for symbols, _ in self._runs)

    def finish(self, ends: npt.NDArray[np.uint16], lanes: int) -> bytes:
        """Return the states of all lanes and the words that follow, little-endian.

        Args:
            ends: 16 bits for each of the first lanes, which the decoder finds in the end.
            lanes: how many coders run side by side.
        """
        state = np.full(lanes, LOWEST, np.uint64)
        state[: len(ends)] += ends
        chunks: list[npt.NDArray[Any]] = []
        for symbols, table in reversed(self._runs):
            frequencies = table.frequencies.astype(np.uint64)
            firsts = table.firsts.astype(np.uint64)
            for start in reversed(range(0, len(symbols), lanes)):
                row = symbols[start : start + lanes]
                width, first = frequencies[row], firsts[row]
                lane = state[: len(row)]
                full = np.flatnonzero(lane >= width << np.uint64(32 - PRECISION))
                chunks.append((lane[full] & np.uint64(0xFFFF)).astype("<u2"))
                lane[full] >>= np.uint64(16)
                times, rest = np.divmod(lane, width)
                lane[:] = (times << np.uint64(PRECISION)) + rest + first
        words = b"".join(chunk.tobytes() for chunk in reversed(chunks))
        return state.astype("<u4").tobytes() + words


class Decoder:
    """Gives back the runs of an encoder, if it is asked with the same tables."""

    def __init__(self, data: bytes | memoryview, lanes: int) -> None:
        """Begin with what ``Encoder.finish`` returned.

        Raises:
            ValueError: if it is too short for its lanes, or a state is none.
        """
        if len(data) < 4 * lanes or len(data) % 2:
            raise ValueError(f"{len(data):,} bytes of code do not hold {lanes:,} lanes")
        self._state = np.frombuffer(data, "<u4", lanes).astype(np.int64)
        self._words = np.frombuffer(data, "<u2", offset=4 * lanes).astype(np.int64)
        self._place = 0
        self._left = lanes * MOST_ROWS
        if (self._state < LOWEST).any():
            raise ValueError("a lane begins below its range")

    def take(self, count: int, table: Table) -> Symbols:
        """Return the next ``count`` symbols.

        Raises:
            ValueError: if the words end before, or the lanes may not hold so many.
        """
        if len(table.frequencies) == 1:
            return np.zeros(count, np.uint16)
        self._left -= count
        if self._left < 0:
            raise ValueError("it says more symbols than its lanes may hold")
        symbols = np.empty(count, np.uint16)
        lanes = len(self._state)
        few = min(count, lanes) <= _FEW
        rows = max(1, (_FEW_AT_ONCE if few else _SYMBOLS_AT_ONCE) // lanes)
        for start in range(0, count, rows * lanes):
            part = symbols[start : start + rows * lanes]
            if few:
                part[:] = self._one_by_one(len(part), table)
            elif len(part) < _WORTH_SLOTS:
                self._row_by_row_of_few(part, table)
            else:
                self._row_by_row(part, table)
        return symbols

    def one(self, table: Table) -> int:
        """Return the next symbol, as a run of its own.

        Raises:
            ValueError: if the words end before.
        """
        if len(table.frequencies) == 1:
            return 0
        # The step of _one_by_one without its lists, which cost several times as much as the step.
        ends, frequencies = table.by_symbol
        state = int(self._state[0])
        slot = state & _TOTAL - 1
        symbol = bisect_right(ends, slot)
        frequency = frequencies[symbol]
        state = frequency * (state >> PRECISION) + slot - ends[symbol] + frequency
        if state < LOWEST:
            if self._place == len(self._words):
                raise ValueError(_CUT_OFF)
            state = state << 16 | int(self._words[self._place])
            self._place += 1
        self._state[0] = state
        return symbol

    def _one_by_one(self, count: int, table: Table) -> list[int]:
        """Decode in plain numbers: for rows that are shorter than what a call of numpy takes."""
        ends, frequencies = table.by_symbol
        width = min(count, len(self._state))
        states = self._state[:width].tolist()
        words = self._words[self._place : self._place + count].tolist()
        symbols, taken = [], 0
        for index in range(count):
            lane = index % width
            state = states[lane]
            slot = state & _TOTAL - 1
            symbol = bisect_right(ends, slot)
            frequency = frequencies[symbol]
            state = frequency * (state >> PRECISION) + slot - ends[symbol] + frequency
            if state < LOWEST:
                if taken == len(words):
                    raise ValueError(_CUT_OFF)
                state = state << 16 | words[taken]
                taken += 1
            states[lane] = state
            symbols.append(symbol)
        self._state[:width] = states
        self._place += taken
        return symbols

    def _row_by_row(self, symbols: Symbols, table: Table) -> None:
        """Decode a symbol of each lane at a time."""
        of_slot, frequency, offset = table.by_slot
        slots = np.empty(len(symbols), np.int64)
        for part in self._rows(len(symbols)):
            row = slots[part]
            state = self._state[: len(row)]
            np.bitwise_and(state, _TOTAL - 1, out=row)
            state >>= PRECISION
            state *= frequency.take(row)
            state += offset.take(row)
            self._take_words(state)
        symbols[:] = of_slot.take(slots)

    def _row_by_row_of_few(self, symbols: Symbols, table: Table) -> None:
        """Do the same where it would take longer to spread the table over its slots."""
        for part in self._rows(len(symbols)):
            state = self._state[: len(symbols[part])]
            row = state & _TOTAL - 1
            found = table.ends.searchsorted(row, "right")
            symbols[part] = found
            state >>= PRECISION
            state *= table.frequencies.take(found)
            state += row
            state -= table.firsts.take(found)
            self._take_words(state)

    def _rows(self, count: int) -> Iterator[slice]:
        """Yield which symbols make up each row."""
        lanes = len(self._state)
        for start in range(0, count, lanes):
            yield slice(start, min(start + lanes, count))

    def _take_words(self, state: npt.NDArray[np.int64]) -> None:
        """Give a word to each state that has fallen below its range."""
        low = (state < LOWEST).nonzero()[0]
        if len(low):
            words = self._words[self._place : self._place + len(low)]
            if len(words) < len(low):
                raise ValueError(_CUT_OFF)
            state[low] = (state.take(low) << 16) | words
            self._place += len(low)

    def ends(self, count: int) -> bytes:
        """Return the 16 bits that each of the first ``count`` lanes began with.

        Raises:
            ValueError: if there are words left, or a lane is not where its encoder began.
        """
        left = self._state - LOWEST
        if self._place != len(self._words) or (left >> 16).any() or left[count:].any():
            raise ValueError("its code does not end where its weights do")
        return left[:count].astype("<u2").tobytes()
