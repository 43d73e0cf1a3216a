"""Write tiny ONNX models without the onnx package, for tests where a device's packages must do.

Field numbers are those of ``onnx.proto`` (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

import struct

import numpy as np

_ELEM_TYPES = {
    "bool": 9, "float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "float16": 10, "float64": 11,
}  # fmt: skip


def model(
    nodes,
    *,
    inputs,
    outputs,
    initializers=None,
    metadata=None,
    opsets=(("", 17),),
    ir_version=8,
) -> bytes:
    """Return the bytes of a ModelProto.

    Args:
        nodes: tuples ``(op_type, input names, output names)``, with a dict of attributes (int,
            float, str, list of int, array, ``graph``) as an optional fourth and a domain as a fifth entry.
        inputs, outputs: ``{name: (dtype, shape)}``; a str in the shape is a free axis of that name.
        initializers: ``{name: array}``.
        metadata: ``{key: value}`` for ``metadata_props``.
        opsets: pairs of domain and version.
    """
    return b"".join(
        [
            _int(1, ir_version),
            _bytes(7, graph(nodes, inputs=inputs, outputs=outputs, initializers=initializers)),
            *(_bytes(8, _bytes(1, domain.encode()) + _int(2, v)) for domain, v in opsets),
            *(
                _bytes(14, _bytes(1, key.encode()) + _bytes(2, value.encode()))
                for key, value in (metadata or {}).items()
            ),
        ]
    )


def graph(nodes, *, inputs, outputs, initializers=None) -> bytes:
    """Return the bytes of a GraphProto: ``model``'s own, or an attribute of a node."""
    return b"".join(
        [
            *(_bytes(1, _node(index, node)) for index, node in enumerate(nodes)),
            _bytes(2, b"tiny"),
            *(_bytes(5, _tensor(array, name)) for name, array in (initializers or {}).items()),
            *(_bytes(11, _value_info(name, *spec)) for name, spec in inputs.items()),
            *(_bytes(12, _value_info(name, *spec)) for name, spec in outputs.items()),
        ]
    )


def linear(
    weights, *, dtype="float32", batch="batch", metadata=None, softmax=False, bias=None
) -> bytes:
    """Return a model that multiplies ``(batch, features)`` by ``weights`` ``(features, classes)``."""
    weights = np.asarray(weights, dtype)
    bias = np.zeros(weights.shape[1], dtype) if bias is None else np.asarray(bias, dtype)
    nodes = [("Gemm", ["x", "w", "b"], ["logits" if softmax else "scores"])]
    if softmax:
        nodes.append(("Softmax", ["logits"], ["scores"]))
    return model(
        nodes,
        inputs={"x": (dtype, (batch, weights.shape[0]))},
        outputs={"scores": (dtype, (batch, weights.shape[1]))},
        initializers={"w": weights, "b": bias},
        metadata=metadata,
    )


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _node(index, node) -> bytes:
    op_type, inputs, outputs, attributes, domain = (*node, *({}, "")[len(node) - 3 :])
    return b"".join(
        [
            *(_bytes(1, name.encode()) for name in inputs),
            *(_bytes(2, name.encode()) for name in outputs),
            _bytes(3, f"{op_type.lower()}{index}".encode()),
            _bytes(4, op_type.encode()),
            *(_bytes(5, _attribute(name, value)) for name, value in attributes.items()),
            _bytes(7, domain.encode()),
        ]
    )


def _attribute(name, value) -> bytes:
    match value:
        case int():
            body, kind = _int(3, value), 2
        case float():
            body, kind = _varint(2 << 3 | 5) + struct.pack("<f", value), 1
        case str():
            body, kind = _bytes(4, value.encode()), 3
        case list():
            body, kind = b"".join(_int(8, item) for item in value), 7
        case bytes():
            body, kind = _bytes(6, value), 5
        case np.ndarray():
            body, kind = _bytes(5, _tensor(value, name)), 4
        case _:
            raise TypeError(f"attribute {name}: {type(value)}")
    return _bytes(1, name.encode()) + body + _int(20, kind)


def _tensor(array, name) -> bytes:
    array = np.asarray(array)
    return b"".join(
        [
            *(_int(1, size) for size in array.shape),
            _int(2, _ELEM_TYPES[array.dtype.name]),
            _bytes(8, name.encode()),
            _bytes(9, array.tobytes()),
        ]
    )


def _value_info(name, dtype, shape) -> bytes:
    axes = b"".join(
        _bytes(1, _bytes(2, size.encode()) if isinstance(size, str) else _int(1, size))
        for size in shape
    )
    tensor = _int(1, _ELEM_TYPES[dtype]) + _bytes(2, axes)
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, tensor))
