"""Ranges that training has found, in the place of those that calibration would."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

INPUT = "(input)"
"""What the model's input is called among the layers."""

_MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
"""Operators that only move values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What training has decided of a quantization.

    Attributes:
        ranges: smallest and largest value of the results of layers, by the layer's name; that of
            the model's input by ``INPUT``.
        one_scale: whether a kernel has one scale for all its channels.
    """

    ranges: Mapping[str, tuple[float, float]]
    one_scale: bool


def put_learned(ranges: Any, graph: Any, learned: Learned) -> None:
    """Put learned ranges in the place of the calibrated ones, for all results of their layers.

    What a layer does to bring its input into form before it computes keeps the grid of that input.
    """
    from onnxruntime.quantization.calibrate import TensorData

    found = {}
    if INPUT in learned.ranges:
        found[graph.input[0].name] = learned.ranges[INPUT]
    for node in graph.node:  # in the order in which they are computed
        if node.op_type in _MOVES and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
            continue
        # A layer's nodes are called "layer" and "layer/relu", those of a nested one "inner/layer".
        name = next((name for name in _prefixes(node.name) if name in learned.ranges), None)
        if name is not None:
            found.update(dict.fromkeys(node.output, learned.ranges[name]))
    for tensor, (low, high) in found.items():
        if tensor in ranges:
            ranges[tensor] = TensorData(lowest=np.float32(low), highest=np.float32(high))


def _prefixes(name: str) -> Iterator[str]:
    """Yield a name and what is left when its last parts are taken away.

    >>> list(_prefixes("inner/conv/relu"))
    ['inner/conv/relu', 'inner/conv', 'inner']
    """
    parts = name.split("/")
    yield from ("/".join(parts[:count]) for count in range(len(parts), 0, -1))
