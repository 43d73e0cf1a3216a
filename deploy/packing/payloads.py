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
_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}
"""Wire types of numbers, of so many bytes."""
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


def payloads(text: bytes, size: int, *, cut: bool) -> Iterator[Payload]:
    """Yield the weights in a model, in the order in which they lie in it.

    Args:
        text: the model, or with ``cut`` its text, from which the weights are missing.
        size: bytes of the whole model.
        cut: whether they are missing.

    Raises:
        ValueError: if the bytes are no protobuf message of that size.
    """
    walk = _Walk(text, cut=cut)
    try:
        yield from walk.message(_MODEL, size, 0)
    except IndexError:
        raise ValueError("its text is cut off") from None
    if walk.place != len(text):
        raise ValueError(f"its text goes on at byte {walk.place:,}, where it should end")


class _Walk:
    """A place in the text, and by how much the whole model is ahead of it."""

    def __init__(self, text: bytes, *, cut: bool) -> None:
        self.place = 0
        self._text = text
        self._cut = cut
        self._ahead = 0

    def message(  # noqa: C901  # one loop: calls would take longer than what they do
        self, kind: int, end: int, depth: int
    ) -> Iterator[Payload]:
        """Walk through a message that ends at byte ``end`` of the whole model."""
        if depth > _DEEPEST:
            raise ValueError(f"messages lie more than {_DEEPEST} deep in each other")
        element, messages, text = _BYTE, _INSIDE.get(kind, {}), self._text
        # Local names, and no call for a number of one byte: of a small model, this walk takes half
        # of the time.
        place, stop = self.place, end - self._ahead
        while place < stop:
            key, place = text[place], place + 1
            if key > 0x7F:
                key, place = self._number(place - 1)
            field, wire = key >> 3, key & 7
            if wire == _VARINT:
                value, place = self._number(place)
                if kind == _TENSOR and field == _DATA_TYPE:
                    element = _TYPES.get(value, _BYTE)
                continue
            if wire == _BYTES:
                size, place = text[place], place + 1
                if size > 0x7F:
                    size, place = self._number(place - 1)
            elif wire in _FIXED:
                size = _FIXED[wire]
            else:
                raise ValueError(f"wire type {wire} at byte {place:,} of its text")
            if place + size > stop:
                raise ValueError(f"a field of {size:,} bytes where {stop - place:,} are left")
            if wire == _BYTES and size > LEAST_BYTES and field in messages:
                self.place = place
                yield from self.message(messages[field], place + size + self._ahead, depth + 1)
                place, stop = self.place, end - self._ahead
                continue
            held = element if field == _RAW else _TYPED.get(field)
            if kind == _TENSOR and wire == _BYTES and size >= LEAST_BYTES and held is not None:
                yield Payload(place + self._ahead, size, *(_BYTE if size % held[0] else held))
                if self._cut:
                    self._ahead += size
                    stop -= size
                    continue
            place += size
        if place != stop or place > len(text):
            raise ValueError(f"its text is cut off at byte {place:,}")
        self.place = place

    def _number(self, place: int) -> tuple[int, int]:
        """Return a varint of the text, and the place behind it."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self._text[place]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, place
        raise ValueError(f"a number without end at byte {place:,} of its text")
