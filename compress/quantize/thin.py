"""Int8 convolutions of few channels, as they stand in a file."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compress.quantize.channels_last import one_element
from deploy.graph import (
    array_of,
    attributes,
    constants,
    consumers,
    producers,
    read_inside,
    shapes_of,
)

_FEW_CHANNELS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Thin:
    """An int8 convolution of few channels, as it stands in a file.

    Attributes:
        node: the ``Conv``.
        image: ``DequantizeLinear`` of what it is given.
        kernel: that of its weights.
        bias: that of its bias; None if it has none.
        result: ``QuantizeLinear`` of what it gives, past ``Relu`` and ``Clip``.
        size: rows and columns of its kernel.
        shape: ``(channels, rows, columns)`` of the image.
        made: the same of the result.
    """

    node: Any
    image: Any
    kernel: Any
    bias: Any | None
    result: Any
    size: tuple[int, int]
    shape: tuple[int, int, int]
    made: tuple[int, int, int]

    @property
    def stride(self) -> int:
        """Columns of the image from one column of the result to the next."""
        return int(attributes(self.node).get("strides", [1, 1])[1])

    @property
    def left(self) -> int:
        """Columns of zeros in front of the image."""
        return int(attributes(self.node).get("pads", [0, 0, 0, 0])[1])


def thin_convolutions(model: Any, *, without: Collection[str] = ()) -> list[Thin]:
    """Return the int8 convolutions of up to sixteen channels whose every number is known.

    Args:
        model: a ``ModelProto`` of QuantizeLinear and DequantizeLinear, as ``quantize_static`` gives.
        without: names of layers that are not wanted.
    """
    graph = model.graph
    if read_inside(graph):
        return []  # an If or a Loop may read any tensor
    stored, made_by, readers = constants(graph), producers(graph), consumers(graph)
    shapes = shapes_of(model)
    outputs = {value.name for value in graph.output}
    open_to_others = outputs | {value.name for value in graph.input}
    names = [node.name for node in graph.node]
    found = []
    for node in graph.node:
        if node.op_type != "Conv" or not _plain(attributes(node)):
            continue
        if not node.name or names.count(node.name) > 1:
            continue  # it could not be asked for
        inputs = [made_by[name] for name in node.input if name in made_by]
        if [one.op_type for one in inputs] != ["DequantizeLinear"] * len(node.input):
            continue
        if node.name in without or not _plain_grids(inputs, node.output[0], stored, open_to_others):
            continue
        own = [name for one in inputs[1:] for name in (*one.input, *one.output)]
        if any(len(readers[name]) > 1 for name in own):
            continue
        result = _quantize_behind(node, readers, outputs)
        if result is None or not one_element(stored.get(result.input[1])):
            continue
        shape, made = (
            tuple(size or 0 for size in shapes.get(name, ())[1:])
            for name in (node.input[0], node.output[0])
        )
        # Four axes: a convolution of two dimensions.
        if len(shape) == len(made) == 3 and all(shape) and all(made) and shape[0] <= _FEW_CHANNELS:
            found.append(
                Thin(
                    node=node,
                    image=inputs[0],
                    kernel=inputs[1],
                    bias=inputs[2] if len(inputs) > 2 else None,
                    result=result,
                    size=tuple(stored[inputs[1].input[0]].dims)[2:],
                    shape=shape,
                    made=made,
                )
            )
    return found


def _plain_grids(
    inputs: Sequence[Any], result: str, stored: Mapping[str, Any], open_to_others: set[str]
) -> bool:
    """Say whether image, weights and bias lie on grids that stay what they are in columns.

    An image on one, whose zero is filled in at its edges; weights and bias on one or one for each of
    the outputs, where zero is stored as 0; all of it constant.

    Args:
        inputs: the ``DequantizeLinear`` of each.
        result: what the layer gives.
        stored: the initialisers.
        open_to_others: tensors that somebody outside the graph gives or reads.
    """
    image, kernel, *_ = inputs
    constant = [*image.input[1:], *(name for one in inputs[1:] for name in one.input)]
    given = [*constant, *(one.output[0] for one in inputs[1:]), result]
    if not stored.keys() >= set(constant) or open_to_others & set(given):
        return False
    outputs = stored[kernel.input[0]].dims[0]
    for one in inputs[1:]:
        axis = attributes(one).get("axis", 1) % len(stored[one.input[0]].dims)
        for name in one.input[1:]:
            dims = list(stored[name].dims)
            if dims and (dims != [outputs] or axis != 0):
                return False
        if len(one.input) > 2 and array_of(stored[one.input[2]]).any():
            return False
    return one_element(stored[image.input[1]])


def _quantize_behind(
    node: Any, readers: Mapping[str, Sequence[Any]], outputs: Collection[str]
) -> Any | None:
    """Return the QuantizeLinear that alone reads a node's result, past Relu and Clip; None if none does."""
    while node.output[0] not in outputs and len(reading := readers.get(node.output[0], ())) == 1:
        (node,) = reading
        if node.op_type == "QuantizeLinear":
            return node
        if node.op_type not in {"Relu", "Clip"}:
            return None
    return None


def _plain(settings: Mapping[str, Any]) -> bool:
    """Say whether a convolution states its padding and skips no pixel."""
    return settings.get("auto_pad", b"NOTSET") == b"NOTSET" and set(
        settings.get("dilations", [1])
    ) == {1}
