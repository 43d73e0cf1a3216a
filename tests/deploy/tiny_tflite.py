"""Write tiny ``.tflite`` models without TensorFlow or LiteRT, as ``tiny_onnx`` does ONNX models.

A FlatBuffer written forwards: a table first, then what its offsets point at. Field numbers are those
of ``schema.fbs`` (see ``deploy.tflite``).
"""

from __future__ import annotations

import json
import struct

import numpy as np

from deploy.tflite import METADATA

FLOAT, INT32, INT8 = 0, 2, 9
FULLY_CONNECTED, QUANTIZE, DEQUANTIZE, SOFTMAX = 9, 114, 6, 25
_OPTIONS = {FULLY_CONNECTED: 8, QUANTIZE: 85, DEQUANTIZE: 26, SOFTMAX: 9}


def linear(weights, *, free_batch=True, metadata=None, int8=False, inputs=1) -> bytes:
    """Return a model that multiplies ``(batch, features)`` by ``weights`` ``(features, classes)``.

    With ``int8`` it does so in int8: input from 0 to 255 in steps of 1, weights and scores in steps
    of 1/8 of the largest, as small weights are held exactly.
    """
    weights = np.asarray(weights, np.float32).T
    classes, features = weights.shape
    buffers = [b""]

    def tensor(name, shape, kind, data=b"", *, scale=None, zero=0, batch=False):
        buffers.append(data)
        table = {
            0: [int(n) for n in shape],
            1: ("<b", kind),
            2: ("<I", len(buffers) - 1),
            3: name,
        }
        if scale is not None:
            table[4] = {2: ("<f", [scale]), 3: ("<q", [zero])}
        if batch and free_batch:
            table[7] = [-1, *(int(n) for n in shape[1:])]
        return table

    if int8:
        step = float(np.abs(weights).max()) / 127
        stored = np.rint(weights / step).astype(np.int8)
        tensors = [
            tensor("x", (1, features), FLOAT, batch=True),
            tensor("x8", (1, features), INT8, scale=1.0, zero=-128, batch=True),
            tensor("dense/kernel", stored.shape, INT8, stored.tobytes(), scale=step),
            tensor("b", (classes,), INT32, bytes(4 * classes), scale=step),
            tensor("s8", (1, classes), INT8, scale=127 * step * 2, zero=-128, batch=True),
            tensor("scores", (1, classes), FLOAT, batch=True),
        ]
        codes = [QUANTIZE, FULLY_CONNECTED, DEQUANTIZE]
        wires = [([0], [1]), ([1, 2, 3], [4]), ([4], [5])]
    else:
        tensors = [
            tensor("x", (1, features), FLOAT, batch=True),
            tensor("dense/kernel", weights.shape, FLOAT, weights.tobytes()),
            tensor("b", (classes,), FLOAT, bytes(4 * classes)),
            tensor("scores", (1, classes), FLOAT, batch=True),
        ]
        codes, wires = [FULLY_CONNECTED], [([0, 1, 2], [3])]
    entries = []
    if metadata is not None:
        buffers.append(json.dumps(metadata).encode())
        entries.append({0: METADATA, 1: ("<I", len(buffers) - 1)})
    operators = [
        {
            0: ("<I", index),
            1: given,
            2: made,
            3: ("<B", _OPTIONS[code]),
            4: {},
        }
        for index, (code, (given, made)) in enumerate(zip(codes, wires, strict=True))
    ]
    graph = {0: tensors, 1: [0] * inputs, 2: [len(tensors) - 1], 3: operators, 4: "main"}
    versions = {FULLY_CONNECTED: 4 if int8 else 1, QUANTIZE: 1, DEQUANTIZE: 2}
    return flatbuffer(
        {
            0: ("<I", 3),
            1: [{0: ("<b", code), 2: ("<i", versions[code]), 3: ("<i", code)} for code in codes],
            2: [graph],
            3: "tiny",
            4: [{0: data} if data else {} for data in buffers],
            6: entries,
        }
    )


def flatbuffer(root: dict) -> bytes:
    """Return a table of tables, vectors, texts and numbers as a file with the name TFL3."""
    out = bytearray(b"\0\0\0\0TFL3")
    place = _table(out, root)
    out[:4] = struct.pack("<I", place)
    return bytes(out)


def _align(out: bytearray, to: int, *, ahead: int = 0) -> None:
    out.extend(bytes(-(len(out) + ahead) % to))


def _table(out: bytearray, fields: dict) -> int:
    """Append a table, every field in a slot of 8 bytes, then what it points at; return its place."""
    numbers = sorted(fields)
    slots = {number: 8 * (1 + index) for index, number in enumerate(numbers)}
    highest = numbers[-1] if numbers else -1
    _align(out, 8)
    vtable = len(out)
    out += struct.pack("<HH", 6 + 2 * highest, 8 + 8 * len(numbers))
    out += b"".join(struct.pack("<H", slots.get(n, 0)) for n in range(highest + 1))
    _align(out, 8)
    table = len(out)
    out += struct.pack("<i", table - vtable) + bytes(4 + 8 * len(numbers))
    for number in numbers:
        slot, value = table + slots[number], fields[number]
        if isinstance(value, tuple) and not isinstance(value[1], list):
            struct.pack_into(value[0], out, slot, value[1])
        else:
            place = _child(out, value)
            struct.pack_into("<I", out, slot, place - slot)
    return table


def _child(out: bytearray, value) -> int:
    """Append what an offset points at; return its place."""
    if isinstance(value, dict):
        return _table(out, value)
    if isinstance(value, str | bytes):
        content = value.encode() if isinstance(value, str) else value
        _align(out, 16, ahead=4)
        place = len(out)
        out += struct.pack("<I", len(content)) + content + b"\0"
        return place
    form, values = value if isinstance(value, tuple) else ("<i", value)
    _align(out, 8, ahead=4)
    place = len(out)
    out += struct.pack("<I", len(values))
    if values and isinstance(values[0], dict):
        first = len(out)
        out += bytes(4 * len(values))
        for index, table in enumerate(values):
            slot = first + 4 * index
            target = _table(out, table)
            struct.pack_into("<I", out, slot, target - slot)
    else:
        out += struct.pack(f"<{len(values)}{form[1]}", *values)
    return place
