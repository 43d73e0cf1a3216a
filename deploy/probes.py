"""Tiny ONNX files that ask the runtime what it does here, written without the onnx package.

Equal layers, to time a layer by its width; and one sum of int8 products, to see whether it overflows.

A device has no onnx, and a protocol buffer is a list of numbered fields: those of ``onnx.proto``
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from deploy.machine import Scheme
from deploy.record import Record

Operator = Literal["conv", "dense"]
Precision = Literal["float32", "int8"]
Positive = Annotated[int, Meta(ge=1)]
Attribute = int | str | Sequence[int]

Stored = dict[str, Any]
"""Arrays by the name that the graph gives them."""

_CODES: Mapping[Literal["u8", "s8"], Literal["uint8", "int8"]] = {"u8": "uint8", "s8": "int8"}
_ELEMENT_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6}
_OPSET, _IR_VERSION = 17, 8
_ACTIVATION_SCALE = 1 / 64
"""Of every quantized activation; what is computed does not matter, only how long it takes."""
SUMMED = 64
"""Products that ``sum_model`` adds."""


class Probe(Record, frozen=True):
    """What is timed: ``depth`` layers in a row, each with as many outputs as inputs."""

    size: Positive = 14
    """Height and width of what a convolution reads."""
    kernel: Positive = 3
    """Height and width of its kernel; padded, so that the size stays."""
    depth: Positive = 4
    """More than one, so that entering and leaving the runtime's own layout counts for little."""


@dataclass(frozen=True, slots=True)
class _Node:
    operator: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Attribute]


def probe_model(
    operator: Operator, precision: Precision, width: int, probe: Probe, scheme: Scheme
) -> bytes:
    """Return the bytes of an ONNX model of equal layers of one width, each followed by a Relu.

    In int8, what goes in and comes out is int8 already: no conversion is timed.

    Args:
        operator: ``conv`` reads ``(n, width, size, size)``, ``dense`` ``(n, width)``.
        precision: ``int8`` is Q/DQ as ``quantize_static`` writes it.
        width: channels, or units, in and out of every layer.
        probe: how many layers, and how large.
        scheme: the integers of the target.
    """
    rng = np.random.default_rng(width)
    window = (probe.kernel, probe.kernel) if operator == "conv" else ()
    sides = (probe.size, probe.size) if operator == "conv" else ()
    spread = (2 / (width * int(np.prod(window, dtype=int)))) ** 0.5
    nodes: list[_Node] = []
    stored: Stored = {}
    read: tuple[str, ...]
    for layer in range(probe.depth):
        x, y, after = f"x{layer}", f"y{layer}", f"x{layer + 1}"
        weights = rng.normal(0, spread, (width, width, *window)).astype(np.float32)
        if precision == "float32":
            stored |= {f"w{layer}": weights, f"b{layer}": np.zeros(width, np.float32)}
            read = (x, f"w{layer}", f"b{layer}")
            nodes += [_product(operator, probe, read, y), _Node("Relu", (y,), after, {})]
        else:
            stored |= _int8_weights(layer, weights, scheme)
            behind = [_dequantized(x, "scale", "zero")]
            behind += [
                _dequantized(name, f"{name}_scale", f"{name}_zero", axis=0)
                for name in (f"w{layer}", f"b{layer}")
            ]
            read = tuple(node.output for node in behind)
            nodes += [
                *behind,
                _product(operator, probe, read, y),
                _Node("Relu", (y,), f"{y}_relu", {}),
                _Node("QuantizeLinear", (f"{y}_relu", "scale", "zero"), after, {}),
            ]
    kind = "float32" if precision == "float32" else _CODES[scheme.activations]
    shape = ("batch", width, *sides)
    return _model(nodes, stored, _value("x0", kind, shape), _value(f"x{probe.depth}", kind, shape))


def sum_model() -> bytes:
    """Return the bytes of an ONNX model of ``x0`` (1, SUMMED), uint8, that gives 127 times its sum, int32.

    In the kernel that ONNX Runtime takes for products of unsigned by signed bytes.
    """
    node = _Node("MatMulInteger", ("x0", "w"), "sum", {})
    weights = np.full((SUMMED, 1), 127, np.int8)
    made = _value("sum", "int32", (1, 1))
    return _model([node], {"w": weights}, _value("x0", "uint8", (1, SUMMED)), made)


def _int8_weights(layer: int, weights: npt.NDArray[np.float32], scheme: Scheme) -> Stored:
    """Return what a layer stores: codes, symmetric and with one scale an output channel.

    Outputs are the first axis of ``weights``: of Conv, and of Gemm with transB.
    """
    width = len(weights)
    largest = np.abs(weights).reshape(width, -1).max(axis=1)
    scales = (largest / scheme.levels).astype(np.float32)
    codes = np.round(weights / scales.reshape(-1, *[1] * (weights.ndim - 1))).astype(np.int8)
    kind = _CODES[scheme.activations]
    return {
        "scale": np.float32(_ACTIVATION_SCALE),
        # What a Relu lets through begins at zero: the smallest code there is.
        "zero": np.array(np.iinfo(kind).min, kind),
        f"w{layer}": codes,
        f"w{layer}_scale": scales,
        f"w{layer}_zero": np.zeros(width, np.int8),
        f"b{layer}": np.zeros(width, np.int32),
        f"b{layer}_scale": scales * np.float32(_ACTIVATION_SCALE),
        f"b{layer}_zero": np.zeros(width, np.int32),
    }


def _dequantized(name: str, scale: str, zero: str, **attributes: int) -> _Node:
    return _Node("DequantizeLinear", (name, scale, zero), f"{name}_float", attributes)


def _product(operator: Operator, probe: Probe, inputs: tuple[str, ...], output: str) -> _Node:
    if operator == "dense":
        return _Node("Gemm", inputs, output, {"transB": 1})
    window = [probe.kernel, probe.kernel]
    return _Node("Conv", inputs, output, {"kernel_shape": window, "auto_pad": "SAME_UPPER"})


def _model(nodes: Sequence[_Node], stored: Stored, reads: bytes, gives: bytes) -> bytes:
    """Return a ModelProto of nodes and constants, and of one input and one output, as ``_value`` has them."""
    graph = b"".join(
        [
            *(_field(1, _node(node)) for node in nodes),
            _field(2, b"probe"),
            *(_field(5, _tensor(name, array)) for name, array in stored.items()),
            _field(11, reads),
            _field(12, gives),
        ]
    )
    opset = _field(1, b"") + _number(2, _OPSET)
    return _number(1, _IR_VERSION) + _field(7, graph) + _field(8, opset)


def _node(node: _Node) -> bytes:
    return b"".join(
        [
            *(_field(1, name.encode()) for name in node.inputs),
            _field(2, node.output.encode()),
            _field(3, f"{node.output}:{node.operator}".encode()),
            _field(4, node.operator.encode()),
            *(_field(5, _attribute(name, value)) for name, value in node.attributes.items()),
        ]
    )


def _attribute(name: str, value: Attribute) -> bytes:
    named = _field(1, name.encode())
    if isinstance(value, int):
        return named + _number(3, value) + _number(20, 2)
    if isinstance(value, str):
        return named + _field(4, value.encode()) + _number(20, 3)
    return named + b"".join(_number(8, one) for one in value) + _number(20, 7)


def _tensor(name: str, array: npt.NDArray[Any]) -> bytes:
    return b"".join(
        [
            *(_number(1, size) for size in array.shape),
            _number(2, _ELEMENT_TYPES[array.dtype.name]),
            _field(8, name.encode()),
            _field(9, array.tobytes()),
        ]
    )


def _value(name: str, kind: str, shape: Sequence[int | str]) -> bytes:
    sizes = (
        _field(2, size.encode()) if isinstance(size, str) else _number(1, size) for size in shape
    )
    axes = b"".join(_field(1, size) for size in sizes)
    tensor = _number(1, _ELEMENT_TYPES[kind]) + _field(2, axes)
    return _field(1, name.encode()) + _field(2, _field(1, tensor))


def _varint(value: int) -> bytes:
    """Return a number as protocol buffers write it: 7 bits a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append((value & 0x7F) | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content
