"""What the bytes of a ``.tflite`` file say, read without LiteRT or TensorFlow.

A ``.tflite`` file is a FlatBuffer; field numbers are those of ``schema.fbs``
(https://github.com/tensorflow/tensorflow/blob/master/tensorflow/compiler/mlir/lite/schema/schema.fbs).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deploy.errors import UserError
from deploy.record import LayerFacts

METADATA = "lightship"
"""The entry of the file's metadata that holds what a model of ours says of itself."""
KERNEL = "/kernel"
"""What follows a layer's name in the name of its weights, in files of ours."""

_IDENTIFIER = b"TFL3"
_MOST_ENTRIES = 1 << 20
_SCHEMA = 3

_TYPES: Mapping[int, str] = {
    0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16",
    9: "int8", 10: "float64", 17: "int4",
}  # fmt: skip
OPERATORS: Mapping[int, str] = {
    0: "ADD", 1: "AVERAGE_POOL_2D", 2: "CONCATENATION", 3: "CONV_2D", 4: "DEPTHWISE_CONV_2D",
    6: "DEQUANTIZE", 9: "FULLY_CONNECTED", 14: "LOGISTIC", 17: "MAX_POOL_2D", 18: "MUL",
    19: "RELU", 21: "RELU6", 22: "RESHAPE", 25: "SOFTMAX", 28: "TANH", 32: "CUSTOM", 34: "PAD",
    36: "GATHER", 39: "TRANSPOSE", 40: "MEAN", 41: "SUB", 43: "SQUEEZE", 45: "STRIDED_SLICE",
    67: "TRANSPOSE_CONV", 77: "SHAPE", 82: "REDUCE_MAX", 83: "PACK", 98: "LEAKY_RELU",
    114: "QUANTIZE", 117: "HARD_SWISH", 126: "BATCH_MATMUL", 132: "CONV_3D",
}  # fmt: skip
"""Names of operators by ``BuiltinOperator``; one without a name here is called by its number."""

_WEIGHTED = frozenset(
    {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL", "CONV_3D"}
)
"""Operators whose second input is what they multiply with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor of the graph.

    Attributes:
        shape: with a batch of 1 where the batch axis is free.
        free: axes that may change, by number.
        dtype: numpy's name, or ``int4``, or ``type N`` for what no network here holds.
        data: the stored bytes; empty where the tensor is computed.
        zero_points: the stored value that means 0.0, one or one a channel; empty for float.
        axis: the axis of the channels of ``zero_points``.
    """

    name: str
    shape: tuple[int, ...]
    free: tuple[int, ...]
    dtype: str
    data: memoryview
    zero_points: tuple[int, ...]
    axis: int

    def stored(self) -> npt.NDArray[np.generic]:
        """Return the stored values, of ``shape``; two 4-bit values come out of each byte.

        Raises:
            ValueError: if the bytes are not those of that shape and type.
        """
        if self.dtype == "int4":
            halves = np.frombuffer(self.data, np.uint8)
            nibbles = np.stack([halves & 15, halves >> 4], axis=1).reshape(-1)
            values = nibbles.astype(np.int8)[: math.prod(self.shape)]
            return np.where(values > 7, values - 16, values).reshape(self.shape)
        return np.frombuffer(self.data, self.dtype).reshape(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One node of the graph; inputs and outputs are numbers of tensors, -1 for none."""

    kind: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tflite:
    """A model file, read.

    Attributes:
        tensors: of the first graph, as are the next three.
        inputs: numbers of tensors.
        outputs: numbers of tensors.
        operators: in the order in which they run.
        metadata: what the file carries beside its graph, by name.
    """

    tensors: tuple[Tensor, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    operators: tuple[Operator, ...]
    metadata: Mapping[str, bytes]

    def weighted(self) -> list[tuple[Operator, Tensor]]:
        """Return the operators that multiply with stored weights, each with these, in order.

        Weights that are stored in fewer bits are found behind their ``DEQUANTIZE`` too.
        """
        made_by = {number: op for op in self.operators for number in op.outputs}
        found = []
        for op in self.operators:
            if op.kind not in _WEIGHTED or len(op.inputs) < 2:
                continue
            number = op.inputs[1]
            while number in made_by and made_by[number].kind == "DEQUANTIZE":
                number = made_by[number].inputs[0]
            if len(self.tensors[number].data):
                found.append((op, self.tensors[number]))
        return found

    @property
    def quantized(self) -> bool:
        """Whether activations are rounded to 8 bits while the model runs."""
        return any(op.kind == "QUANTIZE" for op in self.operators) or any(
            computes_in_int8(self, op, weight) for op, weight in self.weighted()
        )


def is_tflite(start: bytes | memoryview) -> bool:
    """Say whether bytes begin as a ``.tflite`` file does; the first 8 are looked at."""
    return bytes(start[4:8]) == _IDENTIFIER


def computes_in_int8(model: Tflite, op: Operator, weight: Tensor) -> bool:
    """Say whether an operator multiplies 8-bit integers.

    LiteRT's kernels are chosen by type: 8-bit weights with an 8-bit input, or with a float input
    that the kernel itself quantizes on each run ("hybrid", dynamic range).
    """
    return weight.dtype == "int8" and model.tensors[op.inputs[1]].dtype == "int8"


def layer_name(op: Operator, model: Tflite, weight: Tensor) -> str:
    """Return what to call an operator with weights: its layer's name in files of ours."""
    return weight.name.removesuffix(KERNEL) or model.tensors[op.outputs[0]].name


def layer_facts(model: Tflite, notes: Mapping[str, str]) -> tuple[LayerFacts, ...]:
    """Describe every operator that multiplies with stored weights, as for an ONNX file.

    Weights that two operators share are described once; a stored integer that equals its zero
    point is a zero.

    Args:
        model: the file.
        notes: layer name → why a technique left that layer alone; other names are ignored.
    """
    facts: dict[str, LayerFacts] = {}
    for op, weight in model.weighted():
        name = layer_name(op, model, weight)
        stored = weight.stored()
        facts.setdefault(
            name,
            LayerFacts(
                name=name,
                kind=op.kind,
                parameters=int(stored.size),
                zeros=int(np.count_nonzero(stored == _zeros_of(weight))),
                bits=4 if weight.dtype == "int4" else 8 * stored.itemsize,
                note=notes.get(name),
                distinct=len(np.unique(stored)),
            ),
        )
    return tuple(facts.values())


def macs_of(model: Tflite, op: Operator, weight: Tensor) -> int:
    """Return the multiply-accumulates that an operator with weights spends on one sample."""
    made = math.prod(model.tensors[op.outputs[0]].shape)
    if op.kind == "TRANSPOSE_CONV":
        return math.prod(model.tensors[op.inputs[2]].shape) * math.prod(weight.shape[:-1])
    if op.kind == "DEPTHWISE_CONV_2D":
        return made * math.prod(weight.shape[1:3])
    if op.kind == "CONV_3D":
        return made * math.prod(weight.shape[:-1])
    if op.kind == "BATCH_MATMUL":
        return made * math.prod(weight.shape) // max(1, model.tensors[op.outputs[0]].shape[-1])
    return made * math.prod(weight.shape[1:])


def read_tflite(content: bytes) -> Tflite:
    """Read a model file; every offset is checked against the bytes there are.

    Raises:
        UserError: if the bytes are no such file, or it has not one graph.
    """
    if not is_tflite(content[:8]):
        raise UserError("is no .tflite file: its bytes 4 to 8 are not 'TFL3'")
    try:
        return _model(_Table.root(memoryview(content)))
    except (struct.error, ValueError, IndexError) as error:  # UnicodeDecodeError is a ValueError
        raise UserError(f"is a damaged .tflite file ({error})") from error


def _zeros_of(weight: Tensor) -> npt.NDArray[np.int64]:
    zeros = np.asarray(weight.zero_points or (0,), np.int64)
    if zeros.size == 1:
        return zeros.reshape(())
    return zeros.reshape([-1 if a == weight.axis else 1 for a in range(len(weight.shape))])


def _model(root: _Table) -> Tflite:
    if root.number(0, "<I") != _SCHEMA:
        raise ValueError(f"its schema is {root.number(0, '<I')}, not {_SCHEMA}")
    graphs, buffers = root.tables(2), root.tables(4)
    if len(graphs) != 1:
        raise UserError(f"needs one graph, got {len(graphs)}; convert one model a file")
    for buffer in buffers:
        if buffer.number(1, "<Q") > 1:
            raise UserError("keeps weights outside its FlatBuffer; convert it below 2 GB")
    data = [buffer.bytes(0) for buffer in buffers]
    graph = graphs[0]
    tensors = tuple(_tensor(table, data) for table in graph.tables(0))
    codes = [_code(table) for table in root.tables(1)]
    operators = []
    for table in graph.tables(3):
        kind, version = codes[table.number(0, "<I")]
        operators.append(
            Operator(
                kind=kind,
                version=version,
                inputs=_known(table.numbers(1), len(tensors)),
                outputs=_known(table.numbers(2), len(tensors)),
            )
        )
    return Tflite(
        tensors=tensors,
        inputs=_known(graph.numbers(1), len(tensors), least=0),
        outputs=_known(graph.numbers(2), len(tensors), least=0),
        operators=tuple(operators),
        metadata={t.text(0): bytes(data[t.number(1, "<I")]) for t in root.tables(6)},
    )


def _known(numbers: tuple[int, ...], tensors: int, *, least: int = -1) -> tuple[int, ...]:
    if any(not least <= number < tensors for number in numbers):
        raise ValueError(f"names a tensor that is not among its {tensors}")
    return numbers


def _code(table: _Table) -> tuple[str, int]:
    """Return name and version; numbers above 127 are in a second field (schema 3a)."""
    number = max(table.number(0, "<b"), table.number(3, "<i"))
    name = OPERATORS.get(number, f"BUILTIN_{number}")
    if name == "CUSTOM":
        name = f"CUSTOM:{table.text(1)}"
    return name, table.number(2, "<i", default=1)


def _tensor(table: _Table, data: list[memoryview]) -> Tensor:
    kind = table.number(1, "<b")
    scheme = table.table(4)
    shape = table.numbers(0)
    signature = table.numbers(7) or shape
    if any(size < 0 for size in shape):
        raise ValueError("a shape is negative")
    return Tensor(
        name=table.text(3),
        shape=shape,
        free=tuple(axis for axis, size in enumerate(signature) if size < 0),
        dtype=_TYPES.get(kind, f"type {kind}"),
        data=data[table.number(2, "<I")],
        zero_points=scheme.numbers(3, "<q") if scheme else (),
        axis=scheme.number(6, "<i") if scheme else 0,
    )


class _Table:
    """A FlatBuffer table: fields by number, each at the offset that its vtable tells."""

    __slots__ = ("_data", "_place", "_vtable", "_vtable_size")

    def __init__(self, data: memoryview, place: int) -> None:
        self._data, self._place = data, place
        self._vtable = place - self._read("<i", place)
        if self._vtable < 0:
            raise ValueError("a table begins before the file")
        self._vtable_size = self._read("<H", self._vtable)

    @staticmethod
    def root(data: memoryview) -> _Table:
        """Return the table that the file begins with."""
        return _Table(data, struct.unpack_from("<I", data, 0)[0])

    def _read(self, form: str, place: int) -> int:
        if place < 0:
            raise ValueError("an offset points before the file")
        value: int = struct.unpack_from(form, self._data, place)[0]
        return value

    def _field(self, number: int) -> int | None:
        entry = 4 + 2 * number
        if entry + 2 > self._vtable_size:
            return None
        offset = self._read("<H", self._vtable + entry)
        return self._place + offset if offset else None

    def number(self, number: int, form: str, *, default: int = 0) -> int:
        """Return a scalar field."""
        place = self._field(number)
        return default if place is None else self._read(form, place)

    def table(self, number: int) -> _Table | None:
        """Return a field that is another table, or None if it is not there."""
        place = self._field(number)
        return None if place is None else _Table(self._data, place + self._read("<I", place))

    def _vector(self, number: int, width: int) -> tuple[int, int]:
        """Return where a vector's elements begin, and how many there are."""
        place = self._field(number)
        if place is None:
            return 0, 0
        start = place + self._read("<I", place)
        count = self._read("<I", start)
        if count * width > len(self._data) - start - 4:
            raise ValueError(f"a list of {count} entries does not fit the file")
        return start + 4, count

    def bytes(self, number: int) -> memoryview:
        """Return a field of bytes."""
        start, count = self._vector(number, 1)
        return self._data[start : start + count]

    def text(self, number: int) -> str:
        """Return a field of text."""
        return bytes(self.bytes(number)).decode()

    def numbers(self, number: int, form: str = "<i") -> tuple[int, ...]:
        """Return a field that lists numbers."""
        width = struct.calcsize(form)
        start, count = self._vector(number, width)
        if count > _MOST_ENTRIES:
            raise ValueError(f"a list has {count} entries")
        return tuple(struct.unpack_from(f"<{count}{form[1]}", self._data, start))

    def tables(self, number: int) -> list[_Table]:
        """Return a field that lists tables."""
        start, count = self._vector(number, 4)
        if count > _MOST_ENTRIES:
            raise ValueError(f"a list has {count} entries")
        places = range(start, start + 4 * count, 4)
        return [_Table(self._data, place + self._read("<I", place)) for place in places]
