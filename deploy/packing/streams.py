"""What codings write to and read from: symbols in lanes, and bytes as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.packing.lanes import Decoder, Encoder
from deploy.packing.tables import uniform

Values = npt.NDArray[Any]
"""Elements as unsigned whole numbers of 1, 2, 4 or 8 bytes, little-endian, one axis."""

DEFLATED_SINCE, PLAIN_SINCE, JOINED_SINCE = 2, 2, 3
"""The version of the format since when symbols may be deflated, elements be cut into bytes as they are, and
several tensors share values."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A coding that was tried: what it costs, and how it is written."""

    bits: float
    write: Callable[[Writer], None]
    refers: bool = False
    """Whether it names one value, or another tensor, and so costs next to nothing."""


class Writer:
    """What the codings write to: symbols for the lanes, and bytes that no coding makes shorter."""

    def __init__(self) -> None:
        self.encoder = Encoder()
        self.raw = bytearray()
        self.deflated_bytes = 0
        """How many of the raw bytes are symbols that were deflated."""
        self.plain_planes = False
        """Whether elements were cut into bytes as they are."""
        self.pools = 0
        """How many runs of values were written that several tensors share."""

    @property
    def version(self) -> int:
        """The lowest version of the format that has all that was written."""
        return max(
            DEFLATED_SINCE if self.deflated_bytes else 1,
            PLAIN_SINCE if self.plain_planes else 1,
            JOINED_SINCE if self.pools else 1,
        )

    def number(self, value: int) -> None:
        """Write a number, 7 bits a symbol."""
        while value > 0x7F:
            self.encoder.put(np.array([value & 0x7F | 0x80]), uniform(256))
            value >>= 7
        self.encoder.put(np.array([value]), uniform(256))

    def nibble(self, value: int) -> None:
        """Write a number below 16."""
        self.encoder.put(np.array([value]), uniform(16))


class Reader:
    """What a writer wrote, in its order."""

    def __init__(self, decoder: Decoder, raw: memoryview, most: int, version: int) -> None:
        self.decoder = decoder
        self.version = version
        self._raw = raw
        self._most = max(most, 255)  # a byte's value, in a model of fewer bytes than that
        self._unpooled = most
        self._pools: list[Values] = []

    def number(self) -> int:
        """Read a number.

        Raises:
            ValueError: if it is larger than anything in this model can be.
        """
        value = 0
        for shift in range(0, 35, 7):
            byte = self.decoder.one(uniform(256))
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        if value > self._most:
            raise ValueError(f"it says {value:,} where at most {self._most:,} can be")
        return value

    def nibble(self) -> int:
        """Read a number below 16."""
        return self.decoder.one(uniform(16))

    def raw(self, size: int) -> memoryview:
        """Read bytes as they are.

        Raises:
            ValueError: if there are not so many left.
        """
        if size > len(self._raw):
            raise ValueError("it is cut off: its raw bytes end before its weights do")
        taken, self._raw = self._raw[:size], self._raw[size:]
        return taken

    @property
    def pools(self) -> int:
        """How many runs of values there are so far that several tensors share."""
        return len(self._pools)

    def allow_pool(self, size: int, width: int) -> None:
        """Count values of so many bytes that several tensors share, before they are read.

        Raises:
            ValueError: if there are none, or all together have more than the model has bytes.
        """
        self._unpooled -= size * width
        if self._unpooled < 0 or not size:
            raise ValueError(f"{size:,} values of {width} bytes are said to be shared")

    def add_pool(self, values: Values) -> None:
        """Keep values that several tensors share."""
        self._pools.append(values)

    def take_shared(self, index: int, count: int, width: int) -> Values:
        """Return the next values of those that several tensors share.

        Raises:
            ValueError: if there are none of that index, or not so many left of that width.
        """
        if index >= len(self._pools):
            raise ValueError(f"refers to shared values {index} of {len(self._pools)}")
        pool = self._pools[index]
        if pool.dtype.itemsize != width or count > len(pool):
            raise ValueError(f"{count:,} values of {width} bytes are not left of those shared")
        taken, self._pools[index] = pool[:count], pool[count:]
        return taken

    @property
    def left(self) -> int:
        """How many raw bytes and shared values have not been read."""
        return len(self._raw) + sum(map(len, self._pools))
