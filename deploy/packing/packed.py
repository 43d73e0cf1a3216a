"""The packed file: ``docs/packing.md`` says it byte by byte."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence

import numpy as np

from deploy.errors import UserError
from deploy.packing.codings import best_plan, joined_plans, read_values
from deploy.packing.lanes import MOST_ROWS, Decoder
from deploy.packing.payloads import Kind, Payload, payloads
from deploy.packing.streams import Plan, Reader, Values, Writer
from deploy.packing.text import deflate, inflate

MAGIC = b"LSP"
"""Begins every packed file; the version of the format is the byte behind it."""
_VERSIONS = (1, 2, 3)
LARGEST_MODEL = 1 << 29
"""The bytes that a model may unpack to where nobody says otherwise."""
_ONNX, _TEXT, _BYTES = 0, 1, 2
"""An ONNX model; any bytes as text; any bytes by their entropy."""
_MOST_LANES = 1 << 12
_LEAST_LANES = 4
_BYTES_A_LANE = 464
_ROWS = 64
"""Fewer symbols a lane than that are not worth one."""
_DIGEST_BYTES = 32


class PackingError(UserError):
    """A packed file is damaged, or is none: nothing of it was used."""


def is_packed(start: bytes) -> bool:
    """Say whether bytes are, or begin as, a packed model of any version."""
    return start[:3] == MAGIC


def pack(model: bytes) -> bytes:
    """Return a model in fewer bytes, from which ``unpack`` gives back the very same.

    Any bytes may be packed; only of an ONNX model, weights and text are told apart.
    """
    try:
        found = list(payloads(model, len(model), cut=False))
    except ValueError:  # no ONNX model
        as_text = _packed(model, [], deflate(model), _TEXT)
        if not model:
            return as_text
        return min(as_text, _packed(model, [_whole(len(model))], b"", _BYTES), key=len)
    return _packed(model, found, deflate(b"".join(_between(model, found))), _ONNX)


def _packed(model: bytes, found: list[Payload], text: bytes, form: int) -> bytes:
    writer, known, tensors = Writer(), list[Values](), list[tuple[Values, Kind, Plan]]()
    for payload in found:
        values = _values(model, payload)
        tensors.append((values, payload.kind, best_plan(values, payload.kind, known)))
        known.append(values)
    plans = joined_plans(tensors)
    for plan in plans:
        plan.write(writer)
    lanes = _lanes(sum(plan.bits for plan in plans), writer)
    digest = hashlib.sha256(model).digest()[: 2 * lanes]
    code = writer.encoder.finish(np.frombuffer(digest, "<u2"), lanes)
    numbers = (form, len(model), len(text), len(writer.raw), lanes)
    return b"".join(
        [MAGIC, bytes([writer.version]), *map(_varint, numbers), text, writer.raw, code]
    )


def parts_of(model: bytes) -> tuple[bytes, list[Values]]:
    """Return the text of a model as it is packed, deflated, and the weights it was cut out of."""
    found = _found(model)
    return deflate(b"".join(_between(model, found))), [_values(model, one) for one in found]


def unpack(data: bytes | memoryview, where: str, most_bytes: int = LARGEST_MODEL) -> bytes:
    """Return the model that was packed.

    Args:
        data: the packed file.
        where: what an error names.
        most_bytes: what the model may have at most; nothing larger is made room for.

    Raises:
        PackingError: if it is no packed file, is of another version, damaged or too large.
    """
    try:
        return _unpacked(memoryview(data), most_bytes)
    except ValueError as error:
        raise PackingError(f"{where}: {error}") from error


def _unpacked(data: memoryview, most_bytes: int) -> bytes:
    if bytes(data[:3]) != MAGIC:
        raise ValueError("is no packed model; it does not begin as one does")
    if len(data) == len(MAGIC):
        raise ValueError("is cut off")
    version = data[len(MAGIC)]
    if version not in _VERSIONS:
        newer = "; use a newer lightship" if version > max(_VERSIONS) else ""
        raise ValueError(f"is packed in version {version}, this reads 1 to {max(_VERSIONS)}{newer}")
    numbers, place = [], len(MAGIC) + 1
    for _ in range(5):
        number, place = _read_varint(data, place)
        numbers.append(number)
    _, size, text_size, raw_size, lanes = numbers
    if size > most_bytes:
        raise ValueError(f"says that it unpacks to {size:,} bytes, {most_bytes:,} are allowed")
    if not _LEAST_LANES <= lanes <= _MOST_LANES:
        raise ValueError(f"says {lanes:,} lanes, {_LEAST_LANES} to {_MOST_LANES:,} are possible")
    if text_size + raw_size + 4 * lanes > len(data) - place:
        raise ValueError("is cut off")
    try:
        return _decoded(data[place:], version, numbers)
    except ValueError as error:
        raise ValueError(f"is damaged: {error}") from error


def _decoded(data: memoryview, version: int, numbers: Sequence[int]) -> bytes:
    """Return the model in what follows the numbers of a packed file."""
    form, size, text_size, raw_size, lanes = numbers
    text = inflate(data[:text_size], size) if form != _BYTES else b""
    raw, code = data[text_size:][:raw_size], data[text_size + raw_size :]
    decoder = Decoder(code, lanes)
    reader = Reader(decoder, raw, size, version)
    model = _filled(text, size, _missing(form, text, size), reader)
    digest = decoder.ends(min(lanes, _DIGEST_BYTES // 2))
    if reader.left:
        raise ValueError("it has bytes or values that no weights take")
    if hashlib.sha256(model).digest()[: len(digest)] != digest:
        raise ValueError("what it unpacks to is not what was packed")
    return bytes(model)


def _missing(form: int, text: bytes, size: int) -> Iterator[Payload]:
    """Return what is missing in the text of a model of so many bytes."""
    if form == _ONNX:
        return payloads(text, size, cut=True)
    if form not in {_TEXT, _BYTES} or (form == _BYTES and not size):
        raise ValueError(f"it is of form {form}, which there is none of")
    return iter([_whole(size)] if form == _BYTES else [])


def _whole(size: int) -> Payload:
    return Payload(0, size, 1, "int")


def _found(model: bytes) -> list[Payload]:
    try:
        return list(payloads(model, len(model), cut=False))
    except ValueError:  # no ONNX model: all of it is text
        return []


def _values(model: bytes, payload: Payload) -> Values:
    count = payload.size // payload.width
    return np.frombuffer(model, f"<u{payload.width}", count, payload.start)


def _filled(text: bytes, size: int, found: Iterator[Payload], reader: Reader) -> bytearray:
    """Return a model: its text, with the weights read into it where they belong."""
    model = bytearray(size)
    known = _Known(model)
    place = taken = 0
    for payload in found:
        between = text[taken : taken + payload.start - place]
        model[place : place + len(between)] = between
        taken += len(between)
        place = payload.start + payload.size
        count = payload.size // payload.width
        values = read_values(reader, count, payload.width, known)
        model[payload.start : place] = values.tobytes()
        known.add(payload)
    if len(text) - taken != size - place:
        raise ValueError("its text is not as long as it says")
    model[place:] = text[taken:]
    return model


class _Known:
    """The weights that have been read, as they lie in the model: no copies of them are kept."""

    def __init__(self, model: bytearray) -> None:
        self._model = model
        self._places = array("Q")

    def add(self, payload: Payload) -> None:
        self._places.extend((payload.start, payload.size, payload.width))

    def __len__(self) -> int:
        return len(self._places) // 3

    def __getitem__(self, index: int) -> Values:
        start, size, width = self._places[3 * index : 3 * index + 3]
        return np.frombuffer(self._model, f"<u{width}", size // width, start)


def _between(model: bytes, found: list[Payload]) -> Iterator[bytes]:
    place = 0
    for payload in found:
        yield model[place : payload.start]
        place = payload.start + payload.size
    yield model[place:]


def _lanes(bits: float, writer: Writer) -> int:
    """Return how many coders run side by side: each costs about three bytes, and saves time.

    What zlib decodes saves no time by them; so many as the digest needs there are all the same.
    """
    by_size = int(bits / 8 // _BYTES_A_LANE)
    by_need = min(
        (int(bits / 8) - writer.deflated_bytes) // _BYTES_A_LANE, writer.encoder.symbols // _ROWS
    )
    least = min(max(by_size, _LEAST_LANES), _DIGEST_BYTES // 2)
    by_time = -(-writer.encoder.symbols // MOST_ROWS)
    return min(max(by_need, by_time, least), _MOST_LANES)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 35, 7):
        if place >= len(data):
            raise ValueError("is cut off")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("says a number that is larger than any can be")
