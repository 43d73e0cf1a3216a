"""Int8 convolutions of few channels that compute several columns of their result at once.

ONNX Runtime's int8 convolution copies, for each pixel of the result, the pixels that it sees beside
each other, and multiplies the copies with a matrix of the weights. Where channels are few it copies
few bytes at a time and multiplies them with a narrow matrix: such a layer is slower in int8 than it
could be, and the first one slower than in float. A kernel that reaches over what ``c`` neighbouring
columns of the result see, and has the weights ``c`` times, each time a column further and zeros
elsewhere, gives the same sums in fewer and larger copies and a matrix of a better shape. In memory,
channels last, ``c`` columns of its results are the same bytes as one column of ``c`` times as many.

ONNX Runtime's fastest kernels read channels by fours. Where they are fewer, neighbouring columns of
the image are read as channels of one, which are the same bytes too: the space-to-depth of a TPU's
first convolution (Ying et al. 2018, "Image classification at supercomputer scale", section 4.3),
along the width alone, which costs no copy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.quantize.channels_last import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    one_element,
    target_of,
)
from compress.quantize.finished import finished
from deploy.errors import UserError
from deploy.graph import (
    array_of,
    attributes,
    constants,
    consumers,
    producers,
    read_inside,
    shapes_of,
    weighted_nodes,
    without_dead_parts,
)
from deploy.kernels import int8_layers

Array = npt.NDArray[Any]

_FEW_CHANNELS = 16
_MOST_COLUMNS = 16
_CHANNELS_READ_AT_ONCE = 4
_AFTER = "channels_to_columns"
"""What the node is called, behind the layer's name, that brings several columns of a result apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Thin:
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
    thin = _thin(model)
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
            could = ", ".join(f"{layer} {list(counts)}" for layer, counts in fits.items())
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
        thin = next(thin for thin in _thin(twin) if thin.node.name == name)
        if (reach := _reach(thin, count)) is not None:
            _widen(twin.graph, thin, count, reach)
    return finished(without_dead_parts(twin), model)


def _thin(model: Any) -> list[_Thin]:
    """Return the int8 convolutions of few channels whose every number is known."""
    graph = model.graph
    if read_inside(graph):
        return []  # an If or a Loop may read any tensor
    stored, made_by, readers = constants(graph), producers(graph), consumers(graph)
    shapes = shapes_of(model)
    outputs = {value.name for value in graph.output}
    open_to_others = outputs | {value.name for value in graph.input}
    names, wide = [node.name for node in graph.node], columns_of(model)
    found = []
    for node in graph.node:
        if node.op_type != "Conv" or not _plain(attributes(node)):
            continue
        if not node.name or names.count(node.name) > 1:
            continue  # it could not be asked for
        inputs = [made_by[name] for name in node.input if name in made_by]
        if [one.op_type for one in inputs] != ["DequantizeLinear"] * len(node.input):
            continue
        if node.name in wide or not _plain_grids(inputs, node.output[0], stored, open_to_others):
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
                _Thin(
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


def _reach(thin: _Thin, columns: int) -> _Reach | None:
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


def _widened(kernel: Array, thin: _Thin, columns: int, reach: _Reach) -> Array:
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


def _widen(graph: Any, thin: _Thin, columns: int, reach: _Reach) -> None:
    """Let a layer of a graph compute several columns at once."""
    import onnx

    name, stored = thin.node.name, constants(graph)
    (channels, rows, width), (outputs, made_rows, made_width) = thin.shape, thin.made

    def put(tensor: str, values: Array) -> str:
        graph.initializer.append(onnx.numpy_helper.from_array(values, tensor))
        return tensor

    def moved(kind: str, given: str, what: str, **how: Any) -> Any:
        """Return a node that moves values, called by what it gives."""
        shape = [put(f"{name}/{what}/shape", np.array(how.pop("shape")))] if "shape" in how else []
        return onnx.helper.make_node(
            kind, [given, *shape], [f"{name}/{what}:0"], name=f"{name}/{what}", **how
        )

    _widen_constants(stored, thin, columns, reach)
    # Values are moved as the integers that they are stored as.
    nodes = list(graph.node)
    image, folded = thin.node.input[0], []
    if reach.block > 1 or channels == 1:
        given, in_rows, folded = _stored(graph, thin)
        if not in_rows:
            folded.append(moved("Transpose", given, "channels_last", perm=CHANNELS_LAST))
            given = folded[-1].output[0]
        shape = [-1, rows, width // reach.block, reach.block * channels]
        folded.append(moved("Reshape", given, "columns_to_channels", shape=shape))
        given = folded[-1].output[0]
        folded.append(moved("Transpose", given, "channels_first", perm=CHANNELS_FIRST))
        image = f"{name}/columns"
        folded.append(
            onnx.helper.make_node(
                "DequantizeLinear",
                [folded[-1].output[0], *thin.image.input[1:]],
                [image],
                name=f"{image}/dequantize",
            )
        )
    result = thin.result.output[0]
    thin.result.output[0] = f"{name}/results"
    unfolded = [moved("Transpose", thin.result.output[0], "results_last", perm=CHANNELS_LAST)]
    shape = [-1, made_rows, made_width, outputs]
    unfolded.append(moved("Reshape", unfolded[-1].output[0], _AFTER, shape=shape))
    unfolded.append(
        moved("Transpose", unfolded[-1].output[0], "results_first", perm=CHANNELS_FIRST)
    )
    unfolded[-1].output[0] = result
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
    nodes[at : at + 1] = [*folded, wide]
    at = nodes.index(thin.result)
    nodes[at + 1 : at + 1] = unfolded
    del graph.node[:]
    graph.node.extend(nodes)


def _widen_constants(
    stored: Mapping[str, Any], thin: _Thin, columns: int, reach: _Reach
) -> None:
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


def _stored(graph: Any, thin: _Thin) -> tuple[str, bool, list[Any]]:
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
