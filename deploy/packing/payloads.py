"""Where the weights lie in the bytes of an ONNX model: found by the wire format alone.

Field numbers are those of ``onnx.proto`` (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
What is left when the weights are cut out is the model's text. Every length in it stays as it was,
so that the text itself says where weights of how many bytes have to go back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

LEAST_BYTES = 32
"""Shorter weights stay in the text."""
_DEEPEST = 32
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL, _FUNCTION, _GRAPH, _NODE, _ATTRIBUTE, _SPARSE, _TENSOR = range(7)
_INSIDE = {
    _MODEL: {7: _GRAPH, 25: _FUNCTION},
    _FUNCTION: {7: _NODE},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
}
"""Which fields of a message are messages that weights can lie in."""
Kind = Literal["float", "int"]
_Element = tuple[int, Kind]
_DATA_TYPE, _RAW = 2, 9
_BYTE: _Element = (1, "int")
_TYPED: dict[int, _Element] = {4: (4, "float"), 5: _BYTE, 7: _BYTE, 10: (8, "float"), 11: _BYTE}
"""An element in the fields for one type, of so many bytes; whole numbers are varints there."""
_TYPES: dict[int, _Element] = {
    1: (4, "float"), 4: (2, "int"), 5: (2, "int"), 6: (4, "int"), 7: (8, "int"), 10: (2, "float"),
    11: (8, "float"), 12: (4, "int"), 13: (8, "int"), 14: (4, "float"), 15: (8, "float"),
    16: (2, "float"),
}  # fmt: skip
"""An element in raw data, by ``TensorProto.DataType``; any other is taken byte by byte."""


@dataclass(frozen=True, slots=True)
class Payload:
    """Weights that lie together.

    Attributes:
        start: where they begin in the whole model.
        size: how many bytes they take.
        width: bytes an element.
        kind: what an element is.
    """

    start: int
    size: int
    width: int
    kind: Kind


def payloads(text: bytes | memoryview, size: int, *, cut: bool) -> Iterator[Payload]:
    """Yield the weights in a model, in the order in which they lie in it.

    Args:
        text: the model, or with ``cut`` its text, from which the weights are missing.
        size: bytes of the whole model.
        cut: whether they are missing.

    Raises:
        ValueError: if the bytes are no protobuf message of that size.
    """
    walk = _Walk(memoryview(text), cut=cut)
    yield from walk.message(_MODEL, size, 0)
    if walk.place != len(text):
        raise ValueError(f"its text goes on at byte {walk.place:,}, where it should end")


class _Walk:
    """A place in the text, and by how much the whole model is ahead of it."""

    def __init__(self, text: memoryview, *, cut: bool) -> None:
        self.place = 0
        self._text = text
        self._cut = cut
        self._ahead = 0

    def message(self, kind: int, end: int, depth: int) -> Iterator[Payload]:
        """Walk through a message that ends at byte ``end`` of the whole model."""
        if depth > _DEEPEST:
            raise ValueError(f"messages lie more than {_DEEPEST} deep in each other")
        element, messages = _BYTE, _INSIDE.get(kind, {})
        while self.place + self._ahead < end:
            key = self._varint()
            field, wire = key >> 3, key & 7
            if wire == _VARINT:
                value = self._varint()
                if kind == _TENSOR and field == _DATA_TYPE:
                    element = _TYPES.get(value, _BYTE)
                continue
            size = self._size(wire)
            if self.place + self._ahead + size > end:
                raise ValueError(f"a field of {size:,} bytes where {end - self._whole:,} are left")
            inside = messages.get(field) if wire == _BYTES and size > LEAST_BYTES else None
            if inside is not None:
                yield from self.message(inside, self._whole + size, depth + 1)
            elif kind == _TENSOR and wire == _BYTES:
                yield from self._weights(element if field == _RAW else _TYPED.get(field), size)
            else:
                self.place += size
        if self._whole != end or self.place > len(self._text):
            raise ValueError(f"its text is cut off at byte {self.place:,}")

    def _weights(self, element: _Element | None, size: int) -> Iterator[Payload]:
        """Step over a field of a tensor; yield it if it holds weights that are cut out."""
        if element is None or size < LEAST_BYTES:
            self.place += size
            return
        yield Payload(self._whole, size, *(_BYTE if size % element[0] else element))
        if self._cut:
            self._ahead += size
        else:
            self.place += size

    @property
    def _whole(self) -> int:
        return self.place + self._ahead

    def _size(self, wire: int) -> int:
        if wire == _BYTES:
            return self._varint()
        if wire in {_FIXED32, _FIXED64}:
            return 4 if wire == _FIXED32 else 8
        raise ValueError(f"wire type {wire} at byte {self.place:,} of its text")

    def _varint(self) -> int:
        if self.place < len(self._text) and (byte := self._text[self.place]) < 0x80:
            self.place += 1  # most of them
            return byte
        value = 0
        for shift in range(0, 70, 7):
            try:
                byte = self._text[self.place]
            except IndexError:
                raise ValueError("its text is cut off") from None
            self.place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError(f"a number without end at byte {self.place:,} of its text")
