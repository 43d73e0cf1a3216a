"""Int8 convolutions of few channels that compute several columns of their result at once.

ONNX Runtime's int8 convolution copies, for each pixel of the result, the pixels that it sees beside
each other, and multiplies the copies with a matrix of the weights. Where channels are few it copies
few bytes at a time and multiplies them with a narrow matrix: such a layer is slower in int8 than it
could be, and the first one slower than in float. A kernel that reaches over what ``c`` neighbouring
columns of the result see, and has the weights ``c`` times, each time a column further and zeros
elsewhere, gives the same sums in fewer and larger copies and a matrix of a better shape. In memory,
channels last, ``c`` columns of its results are the same bytes as one column of ``c`` times as many.

ONNX Runtime's fastest kernels read channels by fours. Where they are no multiple of four and columns
make them one, neighbouring columns of the image are read as channels of one, which are the same bytes too: the space-to-depth of a TPU's
first convolution (Ying et al. 2018, "Image classification at supercomputer scale", section 4.3),
along the width alone, which costs no copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.quantize.channels_last import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    target_of,
)
from compress.quantize.finished import finished
from compress.quantize.thin import Thin, thin_convolutions
from deploy.errors import UserError
from deploy.graph import (
    array_of,
    attributes,
    constants,
    producers,
    weighted_nodes,
    without_dead_parts,
)
from deploy.kernels import int8_layers

Array = npt.NDArray[Any]

_MOST_COLUMNS = 16
_CHANNELS_READ_AT_ONCE = 4
_AFTER = "channels_to_columns"
"""What the node is called, behind the layer's name, that brings several columns of a result apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reach:
    """What a kernel that computes several columns sees of an image.

    Attributes:
        block: columns of the image that are read as channels of one.
        first: the first block that the first columns of the result see; none or negative.
        blocks: how many of them the kernel sees.
        behind: how many to pad behind the image.
    """

    block: int
    first: int
    blocks: int
    behind: int


def columns_that_fit(model: Any) -> dict[str, tuple[int, ...]]:
    """Return how many columns the int8 convolutions of few channels may compute at once, by name.

    Up to sixteen channels and sixteen columns. Layers that can compute but one are missing, and those
    that compute several already.

    Args:
        model: a ``ModelProto`` of QuantizeLinear and DequantizeLinear, as ``quantize_static`` gives.
    """
    thin = thin_convolutions(model, without=columns_of(model))
    running = int8_layers(model, target=target_of(model)) if thin else {}
    fits = {
        one.node.name: tuple(
            columns for columns in range(2, _MOST_COLUMNS + 1) if _reach(one, columns) is not None
        )
        for one in thin
        if one.node.name in running
    }
    return {name: columns for name, columns in fits.items() if columns}


def check_columns(model: Any, columns: Mapping[str, int]) -> None:
    """Refuse columns that the layers of a ``ModelProto`` cannot compute at once.

    Raises:
        UserError: if ``columns_that_fit`` has no such layer, or not this number.
    """
    fits = columns_that_fit(model)
    for name, count in columns.items():
        if count not in fits.get(name, ()):
            told = {name: fits[name]} if name in fits else fits
            could = ", ".join(f"{layer} {list(counts)}" for layer, counts in told.items())
            raise UserError(
                f"columns: {name!r} cannot compute {count} columns at once; there are "
                f"{could or 'no int8 convolutions of few channels'}"
            )


def columns_of(model: Any) -> dict[str, int]:
    """Return how many columns the layers compute at once that ``width_to_depth`` has widened."""
    stored = constants(model.graph)
    widened = {}
    for found in weighted_nodes(model.graph):
        shape = stored.get(f"{found.node.name}/{_AFTER}/shape")
        if shape is not None:
            widened[found.node.name] = int(found.weight.dims[0] // array_of(shape)[-1])
    return widened


def why_wide(model: Any) -> dict[str, str]:
    """Say of every layer that computes several columns at once that its weights are no more than before."""
    return {
        name: f"computes {columns} columns at once: its weights, and zeros around them"
        for name, columns in columns_of(model).items()
    }


def width_to_depth(model: Any, columns: Mapping[str, int]) -> Any:
    """Return a ``ModelProto`` that gives the same numbers, some layers several columns at once.

    The layers keep their names. Their stored weights grow, by zeros; so do the products.

    Args:
        model: as in ``columns_that_fit``; left alone.
        columns: how many columns a layer computes at once, by its name.

    Raises:
        UserError: as ``check_columns`` does.
    """
    if not columns:
        return model
    check_columns(model, columns)
    twin = type(model)()
    twin.CopyFrom(model)
    for name, count in columns.items():
        thin = next(thin for thin in thin_convolutions(twin) if thin.node.name == name)
        if (reach := _reach(thin, count)) is not None:
            _widen(twin.graph, thin, count, reach)
    return finished(without_dead_parts(twin), model)


def _reach(thin: Thin, columns: int) -> _Reach | None:
    """Return what a kernel that computes several columns sees; None if the result is no whole number of them."""
    width, made = thin.shape[2], thin.made[2]
    if made % columns:
        return None
    step = columns * thin.stride
    block = next(
        (
            block
            for block in range(1, step + 1)
            if not (width % block or step % block or block * thin.shape[0] % _CHANNELS_READ_AT_ONCE)
        ),
        1,
    )
    first = -thin.left // block
    last = ((columns - 1) * thin.stride - thin.left + thin.size[1] - 1) // block
    behind = (made // columns - 1) * step // block + last - (width // block - 1)
    # What no kernel saw stays unseen: it is less than what two of them are apart.
    return _Reach(block=block, first=first, blocks=last - first + 1, behind=max(behind, 0))


def _widened(kernel: Array, thin: Thin, columns: int, reach: _Reach) -> Array:
    """Return the weights that give ``columns`` columns, ``(columns × outputs, block × channels, …)``.

    Args:
        kernel: ``(outputs, channels of a group, rows, columns)``.
        thin: the layer.
        columns: of the result.
        reach: what the new kernel sees.
    """
    outputs, each, rows, taps = kernel.shape
    channels = thin.shape[0]
    per_group = outputs // (channels // each)
    wide = np.zeros((columns, outputs, reach.block, channels, rows, reach.blocks), kernel.dtype)
    for output in range(outputs):
        group = output // per_group * each
        for column in range(columns):
            for tap in range(taps):
                at, within = divmod(column * thin.stride - thin.left + tap, reach.block)
                wide[column, output, within, group : group + each, :, at - reach.first] = kernel[
                    output, :, :, tap
                ]
    return wide.reshape(columns * outputs, reach.block * channels, rows, reach.blocks)


def _widen(graph: Any, thin: Thin, columns: int, reach: _Reach) -> None:
    """Let a layer of a graph compute several columns at once."""
    import onnx

    name = thin.node.name
    _widen_constants(constants(graph), thin, columns, reach)
    nodes = list(graph.node)
    image, before = thin.node.input[0], list[Any]()
    if reach.block > 1 or thin.shape[0] == 1:
        image, before = _in_blocks(graph, thin, reach.block)
    settings = attributes(thin.node)
    top, _, bottom, _ = settings.get("pads", [0, 0, 0, 0])
    wide = onnx.helper.make_node(
        "Conv",
        [image, *thin.node.input[1:]],
        thin.node.output,
        name=name,
        kernel_shape=[thin.size[0], reach.blocks],
        strides=[settings.get("strides", [1, 1])[0], columns * thin.stride // reach.block],
        pads=[top, -reach.first, bottom, reach.behind],
    )
    at = nodes.index(thin.node)
    nodes[at : at + 1] = [*before, wide]
    at = nodes.index(thin.result)
    nodes[at + 1 : at + 1] = _brought_apart(graph, thin)
    del graph.node[:]
    graph.node.extend(nodes)


def _in_blocks(graph: Any, thin: Thin, block: int) -> tuple[str, list[Any]]:
    """Return a layer's image with ``block`` columns read as channels of one, and nodes that make it.

    Values are moved as the integers that they are stored as.
    """
    import onnx

    (channels, rows, width), name = thin.shape, thin.node.name
    given, in_rows, made = _stored(graph, thin)
    if not in_rows:
        made.append(_moved(graph, name, "Transpose", given, "channels_last", perm=CHANNELS_LAST))
        given = made[-1].output[0]
    shape = [-1, rows, width // block, block * channels]
    made.append(_moved(graph, name, "Reshape", given, "columns_to_channels", shape=shape))
    given = made[-1].output[0]
    made.append(_moved(graph, name, "Transpose", given, "channels_first", perm=CHANNELS_FIRST))
    image = f"{name}/columns"
    made.append(
        onnx.helper.make_node(
            "DequantizeLinear",
            [made[-1].output[0], *thin.image.input[1:]],
            [image],
            name=f"{image}/dequantize",
        )
    )
    return image, made


def _brought_apart(graph: Any, thin: Thin) -> list[Any]:
    """Rename what a layer gives, and return nodes that bring its columns apart, under the name it had."""
    (outputs, rows, width), name = thin.made, thin.node.name
    result, given = thin.result.output[0], f"{name}/results"
    thin.result.output[0] = given
    made = [_moved(graph, name, "Transpose", given, "results_last", perm=CHANNELS_LAST)]
    given, shape = made[-1].output[0], [-1, rows, width, outputs]
    made.append(_moved(graph, name, "Reshape", given, _AFTER, shape=shape))
    given = made[-1].output[0]
    made.append(_moved(graph, name, "Transpose", given, "results_first", perm=CHANNELS_FIRST))
    made[-1].output[0] = result
    return made


def _moved(
    graph: Any, layer: str, kind: str, given: str, what: str, *, shape: Sequence[int] = (), **how: Any
) -> Any:  # fmt: skip
    """Return a node that moves values for a layer, called by what it gives; its shape is stored in the graph."""
    import onnx

    name = f"{layer}/{what}"
    if shape:
        graph.initializer.append(
            onnx.numpy_helper.from_array(np.array(shape, np.int64), f"{name}/shape")
        )
    inputs = [given, f"{name}/shape"] if shape else [given]
    return onnx.helper.make_node(kind, inputs, [f"{name}:0"], name=name, **how)


def _widen_constants(stored: Mapping[str, Any], thin: Thin, columns: int, reach: _Reach) -> None:
    """Put a layer's weights, its biases and, where there is one a channel, their scales, in columns."""
    import onnx

    for reader in (thin.kernel, thin.bias) if thin.bias is not None else (thin.kernel,):
        for tensor in reader.input:
            values = array_of(stored[tensor])
            if tensor == thin.kernel.input[0]:
                values = _widened(values, thin, columns, reach)
            elif values.ndim:  # one for each of the outputs
                values = np.tile(values, columns)
            stored[tensor].CopyFrom(onnx.numpy_helper.from_array(values, tensor))


def _stored(graph: Any, thin: Thin) -> tuple[str, bool, list[Any]]:
    """Return the integers of a layer's image, whether channels come last, and nodes that make them.

    An image of one channel is the same bytes either way. What only brings it into the order that a
    convolution of the file takes is passed over: the new one takes another.
    """
    made_by = producers(graph)
    tensor, grid = thin.image.input[0], list(thin.image.input[1:])
    one = thin.shape[0] == 1
    quantize = made_by.get(tensor)
    if quantize is None or quantize.op_type != "QuantizeLinear" or quantize.input[1:] != grid:
        return tensor, one, []
    move = made_by.get(quantize.input[0])
    if move is None or not (
        (one and move.op_type == "Reshape")
        or (
            move.op_type == "Transpose"
            and tuple(attributes(move).get("perm", ())) == CHANNELS_FIRST
        )
    ):
        return tensor, one, []
    before = made_by.get(move.input[0])
    if before is not None and before.op_type == "DequantizeLinear" and before.input[1:] == grid:
        return before.input[0], True, []
    stored = type(quantize)()
    stored.CopyFrom(quantize)  # with what it says of the integers
    stored.name = stored.output[0] = f"{thin.node.name}/stored"
    stored.input[0] = move.input[0]
    return stored.name, True, [stored]
