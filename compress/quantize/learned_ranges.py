"""Ranges that training has found, in the place of those that calibration would."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

INPUT = "(input)"
"""What the model's input is called among the layers."""


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
    """Put learned ranges in the place of the calibrated ones, for all results of their layers."""
    from onnxruntime.quantization.calibrate import TensorData

    def put(tensor: str, name: str) -> None:
        low, high = learned.ranges[name]
        if tensor in ranges:
            ranges[tensor] = TensorData(lowest=np.float32(low), highest=np.float32(high))

    if INPUT in learned.ranges:
        put(graph.input[0].name, INPUT)
    for node in graph.node:
        # A layer's nodes are called "layer" and "layer/relu", those of a nested one "inner/layer".
        name = next((name for name in _prefixes(node.name) if name in learned.ranges), None)
        if name is not None:
            for tensor in node.output:
                put(tensor, name)


def _prefixes(name: str) -> Iterator[str]:
    """Yield a name and what is left when its last parts are taken away.

    >>> list(_prefixes("inner/conv/relu"))
    ['inner/conv/relu', 'inner/conv', 'inner']
    """
    parts = name.split("/")
    yield from ("/".join(parts[:count]) for count in range(len(parts), 0, -1))
