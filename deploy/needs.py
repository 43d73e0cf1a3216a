"""What a model's bytes ask of a runtime, read without the onnx package.

Field numbers are those of ``onnx.proto`` (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from deploy.errors import UserError
from deploy.packing.packed import is_packed
from deploy.tflite import Tflite

_DEEPEST = 32
"""Graphs inside graphs; real models have a handful."""
_MODEL_IR, _MODEL_GRAPH, _MODEL_OPSET, _MODEL_TRAINING, _MODEL_FUNCTION = 1, 7, 8, 20, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_FUNCTION_NODE = 7
_NODE_OP, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_SPARSE_VALUES, _SPARSE_INDICES = 1, 2
_ZIP = b"PK\x03\x04"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Release, newest opset of the domain "" and newest IR version that it reads
# (https://onnxruntime.ai/docs/reference/compatibility.html).
_RELEASES = (
    ("1.10", 15, 8),
    ("1.11", 16, 8),
    ("1.12", 17, 8),
    ("1.14", 18, 8),
    ("1.15", 19, 9),
    ("1.17", 20, 9),
    ("1.18", 21, 10),
)
_LITERT_BEGAN = (2, 18)
_OLDEST_LITERT = "1.4"
"""What the extra asks for: the oldest that was tried; 1.0 does not load beside numpy 2."""


class WeightsElsewhereError(UserError):
    """A model keeps weights in another file, where none may be."""


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """What a model file needs.

    Attributes:
        ir_version: version of the file format.
        opsets: version of every operator set, by domain; ``""`` is ONNX's own.
        operators: every operator in the graph and in the graphs inside it, as ``domain:name``,
            or the name alone for ONNX's own.
    """

    ir_version: int
    opsets: dict[str, int]
    operators: frozenset[str]

    @property
    def quantized(self) -> bool:
        """Whether anything is rounded to few bits while the model runs."""
        return any("Quantize" in name and name != "DequantizeLinear" for name in self.operators)


@dataclass(slots=True)
class _Seen:
    folder: Path | None
    operators: set[str] = field(default_factory=set)


def graph_facts(model: bytes, *, folder: Path | None = None) -> GraphFacts:
    """Read what a model needs; look into every graph, function and attribute.

    Args:
        model: the bytes of the file.
        folder: where other files may hold weights of it; None if none may: they would be read
            without having been checked.

    Raises:
        UserError: if the bytes are no ``ModelProto``, or weights lie in another file than allowed.
    """
    seen, ir_version, opsets, graphs = _Seen(folder), 0, {}, 0
    try:
        for number, value in _fields(memoryview(model)):
            if number == _MODEL_IR and isinstance(value, int):
                ir_version = value
            elif number == _MODEL_OPSET and not isinstance(value, int):
                domain, version = _opset(value)
                opsets[domain] = version
            elif number == _MODEL_GRAPH and not isinstance(value, int):
                graphs += 1
                _graph(value, seen, 0)
            elif number == _MODEL_FUNCTION and not isinstance(value, int):
                _nodes(value, _FUNCTION_NODE, seen, 0)
            elif number == _MODEL_TRAINING:
                raise UserError("carries training information, which a device has no use for")
    except (ValueError, IndexError) as error:  # UnicodeDecodeError is a ValueError
        raise UserError(_what_else(model, str(error))) from error
    if graphs != 1 or ir_version < 1 or not opsets:
        raise UserError("is no ONNX model (it lacks its version, its operator sets or its graph)")
    return GraphFacts(ir_version, opsets, frozenset(seen.operators))


def _what_else(model: bytes, why: str) -> str:
    """Say what a file is that is no ONNX model, and what makes one of it, as far as it can be told."""
    if is_packed(bytes(model[:3])):
        return "is a packed model; lightship unpack makes the ONNX file of it"
    if bytes(model[:4]) == _ZIP:
        return (
            "is no ONNX model but a zip file, as a Keras model and a bundle are; lightship export makes the ONNX "
            "file of a Keras model, and python -m zipfile -e BUNDLE FOLDER unpacks a bundle and its model"
        )
    return f"is no ONNX model ({why})"


def least_onnxruntime(facts: GraphFacts, opened_by: str) -> str:
    """Return the oldest release of ONNX Runtime that is known to read a model.

    Args:
        facts: what the model needs.
        opened_by: the release that did open it; the answer where the table ends, and for operators
            that are not ONNX's own, whose history is nowhere written down.

    >>> least_onnxruntime(GraphFacts(8, {"": 17}, frozenset({"Gemm"})), "1.32.0")
    '1.12'
    """
    if not any(":" in name for name in facts.operators):
        for release, opset, ir_version in _RELEASES:
            if facts.opsets.get("", 0) <= opset and facts.ir_version <= ir_version:
                return release
    return ".".join(opened_by.split(".")[:2])


def least_litert(model: Tflite, opened_by: str) -> str:
    """Return the oldest release of LiteRT that is known to read a model.

    The converter writes down the release of TensorFlow Lite that its operators need. LiteRT went on
    from 2.18 of it.

    Args:
        model: the file.
        opened_by: the release that did open it; the answer where the file tells nothing older.
    """
    said = model.metadata.get("min_runtime_version", b"").rstrip(b"\0").decode("ascii", "replace")
    parts = [int(part) for part in said.split(".")[:2] if part.isdigit()]
    if len(parts) == 2 and tuple(parts) <= _LITERT_BEGAN:
        return _OLDEST_LITERT
    return ".".join(opened_by.split(".")[:2])


def operator_versions(model: Tflite) -> dict[str, int]:
    """Return the operators of a model by name, each with the newest version of it there."""
    found: dict[str, int] = {}
    for op in sorted(model.operators, key=lambda op: (op.kind, op.version)):
        found[op.kind] = op.version
    return found


def _graph(graph: memoryview, seen: _Seen, depth: int) -> None:
    _nodes(graph, _GRAPH_NODE, seen, depth)
    for number, value in _fields(graph):
        if isinstance(value, int):
            continue
        if number == _GRAPH_INITIALIZER:
            _require_inside(value, seen)
        elif number == _GRAPH_SPARSE:
            _sparse(value, seen)


def _nodes(parent: memoryview, place: int, seen: _Seen, depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError(f"graphs lie more than {_DEEPEST} deep in each other")
    for number, node in _fields(parent):
        if number != place or isinstance(node, int):
            continue
        name = domain = ""
        for part, value in _fields(node):
            if isinstance(value, int):
                continue
            if part == _NODE_OP:
                name = bytes(value).decode()
            elif part == _NODE_DOMAIN:
                domain = bytes(value).decode()
            elif part == _NODE_ATTRIBUTE:
                _attribute(value, seen, depth)
        seen.operators.add(f"{domain}:{name}" if domain not in {"", "ai.onnx"} else name)


def _attribute(attribute: memoryview, seen: _Seen, depth: int) -> None:
    for number, value in _fields(attribute):
        if isinstance(value, int):
            continue
        if number in _ATTRIBUTE_TENSORS:
            _require_inside(value, seen)
        elif number in _ATTRIBUTE_GRAPHS:
            _graph(value, seen, depth + 1)
        elif number in _ATTRIBUTE_SPARSE:
            _sparse(value, seen)


def _sparse(tensor: memoryview, seen: _Seen) -> None:
    for number, value in _fields(tensor):
        if number in {_SPARSE_VALUES, _SPARSE_INDICES} and not isinstance(value, int):
            _require_inside(value, seen)


def _require_inside(tensor: memoryview, seen: _Seen) -> None:
    for number, value in _fields(tensor):
        if number != _TENSOR_EXTERNAL and (number != _TENSOR_LOCATION or value == 0):
            continue
        if seen.folder is None:
            raise WeightsElsewhereError(
                "keeps weights in another file; save it as one file "
                "(onnx.save_model with save_as_external_data=False)"
            )
        if number == _TENSOR_EXTERNAL and not isinstance(value, int):
            _require_in_folder(value, seen.folder)


def _require_in_folder(entry: memoryview, folder: Path) -> None:
    """Refuse a location of weights that lies outside the folder, links followed."""
    said = {number: bytes(text) for number, text in _fields(entry) if not isinstance(text, int)}
    if said.get(_ENTRY_KEY) != b"location":
        return
    location = said.get(_ENTRY_VALUE, b"").decode()
    inside = (folder / location).resolve()
    if not inside.is_relative_to(folder.resolve()):
        raise UserError(f"keeps weights in {location!r}, outside its folder; put them beside it")


def _opset(value: memoryview) -> tuple[str, int]:
    domain, version = "", 0
    for number, part in _fields(value):
        if number == 1 and not isinstance(part, int):
            domain = bytes(part).decode()
        elif number == 2 and isinstance(part, int):
            version = part
    return ("" if domain == "ai.onnx" else domain), version


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of every field of a protobuf message; numbers as int, rest as bytes.

    Raises:
        ValueError: if a field is cut off or of a wire type that is not used any more.
        IndexError: if a number is cut off.
    """
    place, end = 0, len(message)
    while place < end:
        key, place = _varint(message, place)
        kind = key & 7
        if kind == _VARINT:
            number, place = _varint(message, place)
            yield key >> 3, number
            continue
        if kind == _BYTES:
            length, place = _varint(message, place)
        elif kind in {_FIXED32, _FIXED64}:
            length = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind} at byte {place}")
        if length > end - place:
            raise ValueError(
                f"cut off, or of another kind: a field of {length} bytes where {end - place} are left"
            )
        yield key >> 3, message[place : place + length]
        place += length


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError(f"a number without end at byte {place}")
