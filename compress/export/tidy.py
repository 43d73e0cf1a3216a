"""Small passes that simplify an ONNX graph without changing what it computes.

A pass is a function from ``ModelProto`` to ``ModelProto``. It leaves its input alone, keeps the
names, types and shapes of the graph's inputs and outputs and keeps ``metadata_props``. The outputs
stay bit-equal, except where a pass says otherwise.

One Transpose is left on purpose: the one that flattens an image in the order of Keras. Permuting
the dense weights instead was measured: no gain in float, and int8 gets slower, because there ONNX
Runtime works in Keras's order by itself and the Transpose cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from deploy.graph import (
    attributes,
    constants,
    consumers,
    drop_dead,
    producers,
    read_inside,
    shapes_of,
    without_dead_parts,
)

Pass = Callable[[Any], Any]

_SUMS = frozenset({"Add", "Conv", "ConvTranspose", "Gemm", "MatMul"})

# Operators that treat every element alike, so that a Transpose may move across them.
_ELEMENTWISE = frozenset(
    {
        "Abs", "Add", "Ceil", "Clip", "Div", "Elu", "Erf", "Exp", "Floor", "HardSigmoid",
        "HardSwish", "LeakyRelu", "Max", "Min", "Mul", "Neg", "Relu", "Round", "Selu", "Sigmoid",
        "Softplus", "Sqrt", "Sub", "Tanh", "ThresholdedRelu",
    }
)  # fmt: skip


def tidy(model: Any) -> Any:
    """Return the model (``ModelProto``) after every pass of ``PASSES``, in order."""
    for run in PASSES:
        model = run(model)
    return model


def without_identities(model: Any) -> Any:
    """Bypass every Identity, except one that joins a graph input to a graph output."""
    model = _copy(model)
    graph = model.graph
    for node in list(graph.node):
        if node.op_type == "Identity":
            _bypass(graph, node)
    return model


def without_transpose_pairs(model: Any) -> Any:
    """Remove a Transpose that undoes others, also where elementwise operators lie between them.

    The number of Transposes never grows: a pair goes only if every road from the second one up
    ends in a Transpose that it undoes, or in a constant of one element.
    """
    model = _copy(model)
    graph = model.graph
    removed = True
    while removed:
        removed = any(
            _undo_transpose(graph, node) for node in list(graph.node) if node.op_type == "Transpose"
        )
        drop_dead(graph)
    return model


def with_gemms(model: Any) -> Any:
    """Make MatMul and the Add of its bias one Gemm, where the input is a matrix ``(n, features)``.

    ONNX Runtime does so at load, and float speed is the same. Done here, quantization makes the
    layer one ``QGemm`` with an int32 bias instead of ``QLinearMatMul`` and ``QLinearAdd``, which
    rounds twice and was 5-10 % slower on LeNet-300-100. Outputs agree to float32 rounding.
    """
    model = _copy(model)
    graph = model.graph
    shapes = shapes_of(model)
    stored = constants(graph)
    for add in list(graph.node):
        if add.op_type == "Add":
            _fuse_bias(graph, add, shapes, stored)
    return model


def with_positive_zeros(model: Any) -> Any:
    """Let weights that are zero be +0, so that they are one symbol to whatever packs the file.

    A mask times a negative weight is −0. Only what sums of products read is changed: there the sign
    of a zero can decide nothing but the sign of an output that is zero.
    """
    from onnx import numpy_helper

    model = _copy(model)
    readers, inside = consumers(model.graph), read_inside(model.graph)
    for tensor in model.graph.initializer:
        if tensor.name in inside:
            continue
        read_by = {node.op_type for node in readers.get(tensor.name, ())}
        values = numpy_helper.to_array(tensor)
        if read_by and read_by <= _SUMS and values.dtype.kind == "f":
            positive = np.where(values == 0, values.dtype.type(0), values)
            tensor.CopyFrom(numpy_helper.from_array(positive, tensor.name))
    return model


def with_named_batch(model: Any) -> Any:
    """Name a free first axis of every graph input and output ``batch``."""
    model = _copy(model)
    for value in (*model.graph.input, *model.graph.output):
        axes = value.type.tensor_type.shape.dim
        if len(axes) and not axes[0].HasField("dim_value"):
            axes[0].dim_param = "batch"
    return model


def with_unique_node_names(model: Any) -> Any:
    """Name every node that has no name, or that of an earlier node, after its first output.

    Layers are told by the names of their nodes: in ``exclude``, in notes and in the report.
    """
    model = _copy(model)
    taken: set[str] = set()
    for node in model.graph.node:
        wanted = node.name if node.name and node.name not in taken else node.output[0]
        while wanted in taken:
            wanted += "_"
        node.name = wanted
        taken.add(wanted)
    return model


PASSES: Sequence[Pass] = (
    without_identities,
    without_transpose_pairs,
    with_gemms,
    without_dead_parts,
    with_positive_zeros,
    with_named_batch,
    with_unique_node_names,
)


def _copy(model: Any) -> Any:
    """Copy a model and forget its intermediate shapes, which a pass may make false."""
    twin = type(model)()
    twin.CopyFrom(model)
    del twin.graph.value_info[:]
    return twin


def _bypass(graph: Any, node: Any) -> None:
    """Remove a node with one output, so that its readers read its first input instead."""
    source, output = node.input[0], node.output[0]
    if any(value.name == output for value in graph.output):
        maker = producers(graph).get(source)
        if maker is None or any(value.name == source for value in graph.output):
            return
        # A graph output keeps its name, so the maker takes it over.
        _rename(graph, source, output)
    else:
        _rename(graph, output, source)
    graph.node.remove(node)


def _rename(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new


def _permutation(node: Any, rank: int | None = None) -> tuple[int, ...]:
    """Return the stated permutation; without one, ONNX reverses the axes."""
    stated = attributes(node).get("perm")
    return tuple(stated) if stated is not None else tuple(reversed(range(rank or 0)))


def _undo_transpose(graph: Any, last: Any) -> bool:
    """Remove ``last`` and the Transposes above it that it undoes; say whether it was done."""
    wanted = tuple(int(axis) for axis in np.argsort(_permutation(last)))
    made_by, readers, stored = producers(graph), consumers(graph), constants(graph)
    outputs = {value.name for value in graph.output}
    if last.output[0] in outputs and made_by.get(last.input[0], last).op_type == "Transpose":
        return False  # nothing lies between that could take over the name of the output
    between: list[Any] = []
    sources: dict[str, str] = {}

    def reaches_inverse(name: str) -> bool:
        if name in stored:
            return int(np.prod(stored[name].dims)) == 1
        maker = made_by.get(name)
        if maker is None:
            return False
        if maker.op_type == "Transpose":
            sources[name] = maker.input[0]
            return _permutation(maker) == wanted
        is_private = name not in outputs and len(readers[name]) == 1
        if maker.op_type in _ELEMENTWISE and is_private:
            between.append(maker)
            return all(reaches_inverse(source) for source in maker.input if source)
        return False

    if not _permutation(last) or not reaches_inverse(last.input[0]) or not sources:
        return False
    for node in between:
        for index, name in enumerate(node.input):
            node.input[index] = sources.get(name, name)
    last.input[0] = sources.get(last.input[0], last.input[0])
    _bypass(graph, last)
    return True


def _only_reader(readers: dict[str, list[Any]], outputs: set[str], name: str) -> Any:
    """Return the node that alone reads a tensor, or None if there are more or it is an output."""
    nodes = readers.get(name, [])
    return nodes[0] if len(nodes) == 1 and name not in outputs else None


def _fuse_bias(
    graph: Any, add: Any, shapes: dict[str, tuple[int | None, ...]], stored: dict[str, Any]
) -> None:
    import onnx

    made_by, readers = producers(graph), consumers(graph)
    outputs = {value.name for value in graph.output}
    for product, bias in (tuple(add.input), tuple(reversed(add.input))):
        matmul = made_by.get(product)
        if (
            matmul is None
            or matmul.op_type != "MatMul"
            or bias not in stored
            or matmul.input[1] not in stored
            or _only_reader(readers, outputs, product) is None
            or len(shapes.get(matmul.input[0], ())) != 2
            or len(stored[matmul.input[1]].dims) != 2
            or tuple(stored[bias].dims) != (stored[matmul.input[1]].dims[1],)
        ):
            continue
        gemm = onnx.helper.make_node(
            "Gemm", [*matmul.input, bias], [add.output[0]], name=matmul.name or add.name
        )
        graph.node.insert(list(graph.node).index(add), gemm)
        graph.node.remove(matmul)
        graph.node.remove(add)
        return
