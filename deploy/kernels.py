"""What ONNX Runtime really runs a model's layers with, and what keeps a layer out of int8."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from deploy.errors import needs_extra
from deploy.graph import (
    Weighted,
    array_of,
    attributes,
    consumers,
    depthwise,
    outputs_axis,
    producers,
    weighted_nodes,
)
from deploy.machine import SCHEMES, Target, this_target
from deploy.record import SessionOptions
from deploy.session import fast_sums_overflow, start_session

INT8_OPERATORS = frozenset(
    {
        "QLinearConv", "QLinearMatMul", "QGemm", "MatMulInteger", "ConvInteger",
        "DynamicQuantizeMatMul", "MatMulIntegerToFloat",
    }
)  # fmt: skip
"""Operators of ONNX Runtime that multiply 8-bit integers."""

FLOAT_OPERATORS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "FusedConv", "FusedGemm",
                              "FusedMatMul", "MatMulNBits"})  # fmt: skip
_SAFE_PAIR = 128
"""Weights that 16 bits hold the products of, each with 255, together: 255 × 128 = 32,640."""
# Graph optimisers let these vanish into the product that they follow.
_ABSORBED = frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish",
                       "BatchNormalization", "Add", "Mul", "Identity"})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """Why a layer is no int8 kernel.

    Attributes:
        pattern: what in the file stopped it.
        remedy: what to do about it.
    """

    pattern: str
    remedy: str


def optimized(
    model: Any, *, target: Target | None = None, options: SessionOptions = SessionOptions()
) -> Any:
    """Return the graph (``ModelProto``) that ONNX Runtime runs in place of ``model``.

    Args:
        model: any ``ModelProto`` that ONNX Runtime opens.
        target: the machine it is made for; None means this one. On another machine ONNX Runtime is
            asked to accept signed activations for ``arm64``, which it otherwise turns down on x86.
        options: how the model is opened; by default as it ships.

    Raises:
        MissingExtraError: if ``onnx`` is not installed, as on a device.
    """
    with needs_extra("compress"):
        import onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "optimized.onnx")

        def prepare(settings: ort.SessionOptions) -> None:
            settings.optimized_model_filepath = str(path)
            if target == "arm64":
                settings.add_session_config_entry("session.qdqisint8allowed", "1")

        start_session(model.SerializeToString(), options, prepare)
        return onnx.load(path)


def file_name(node: Any) -> str:
    """Return the name that a node of an optimised graph had in the file, where it had one."""
    return re.sub(r"_token_\d+$", "", node.name).removeprefix("fused ")


def kernels_of(model: Any, running: Any) -> dict[str, Any]:
    """Return the node of the optimised graph that computes each weighted node, by its name.

    A layer is told by the stored weights where they are its own and kept their name, else by the
    names that ONNX Runtime gives: ``conv``, ``conv_token_3``, ``fused conv``, ``TENSOR_nchwc``. A
    layer that cannot be told is missing.

    Args:
        model: the ``ModelProto`` of the file; its weighted nodes have names of their own.
        running: what ``optimized`` made of it.
    """
    layers = weighted_nodes(model.graph)
    names = {found.node.name for found in layers}
    made_by = producers(model.graph)
    owners: dict[str, list[str]] = {}
    for found in layers:
        owners.setdefault(found.weight.name, []).append(found.node.name)
    weights = {found.node.output[0]: found.weight.name for found in weighted_nodes(running.graph)}
    kernels: dict[str, Any] = {}
    for node in running.graph.node:
        if node.op_type not in INT8_OPERATORS | FLOAT_OPERATORS:
            continue
        own = owners.get(weights.get(node.output[0], ""), [])
        stem = file_name(node)
        if len(own) == 1:
            kernels[own[0]] = node
        elif stem in names:
            kernels[stem] = node
        else:
            tensors = (stem.removesuffix("_nchwc"), *node.output)
            name = next(filter(None, (_layer_behind(t, made_by, names) for t in tensors)), None)
            if name is not None:
                kernels.setdefault(name, node)
    return kernels


def _layer_behind(tensor: str, made_by: Mapping[str, Any], names: set[str]) -> str | None:
    """Return the weighted node whose result, activated at most, is ``tensor`` of the file."""
    node = made_by.get(tensor)
    while node is not None and node.name not in names:
        if node.op_type not in _ABSORBED:
            return None
        node = made_by.get(node.input[0])
    return str(node.name) if node is not None else None


def int8_layers(
    model: Any, *, target: Target | None = None, options: SessionOptions = SessionOptions()
) -> dict[str, str]:
    """Return the weighted nodes of ``model`` that run as int8 kernels, with the kernel's operator.

    Args:
        model: as in ``kernels_of``.
        target: as in ``optimized``.
        options: as in ``optimized``.
    """
    running = kernels_of(model, optimized(model, target=target, options=options))
    return {
        found.node.name: running[found.node.name].op_type
        for found in weighted_nodes(model.graph)
        if found.node.name in running and running[found.node.name].op_type in INT8_OPERATORS
    }


def why_not_int8(model: Any, *, target: Target | None = None) -> dict[str, str]:
    """Say of every node planned as int8 why it runs in float all the same; empty is as planned.

    Planned as int8 is a node whose weights stand behind ``DequantizeLinear`` or in an integer
    operator. Weight-only models plan none.
    """
    running = int8_layers(model, target=target)
    dequantized = {
        name
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        for name in node.output
    }
    planned = [
        found
        for found in weighted_nodes(model.graph)
        if (found.node.input[1] in dequantized or found.node.op_type in INT8_OPERATORS)
        and found.node.name not in running
    ]
    return {
        found.node.name: f"planned as int8, but runs in float: {obstacle(model, found, target=target).pattern}"
        for found in planned
    }


def can_saturate(model: Any, found: Weighted, *, target: Target | None = None) -> bool:
    """Say whether sums of a layer's fast int8 kernel can be wrong on a machine, by the weights.

    Where a target's scheme keeps weights to 7 bits, its kernels add two products of an unsigned and
    a signed byte in 16 bits. That overflows where two weights of one output add up to more than
    128, if they happen to meet, and their inputs are large: a file that was made for another target
    opens and answers something else, unless the session asks for exact sums
    (``SessionOptions.exact_sums``), which other kernels then give in more time. Unsigned weights
    and convolutions of each channel by itself are added in 32 bits. Signed inputs are no refuge:
    ONNX Runtime makes them unsigned when it opens a file on x86.

    Args:
        model: the ``ModelProto`` of the file.
        found: one of its weighted nodes, which runs as an int8 kernel.
        target: the machine it runs on; None means this one.
    """
    weights = array_of(found.weight)
    overflow = fast_sums_overflow() if target is None else SCHEMES[target].reduce_range
    if not overflow or weights.dtype != np.int8:
        return False
    if depthwise(found) and found.weight.dims[0] == _group(found):
        return False
    axis = outputs_axis(found)
    rows = np.sort(np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1).astype(int))
    return bool(max(rows[:, -2:].sum(axis=1).max(), -rows[:, :2].sum(axis=1).min()) > _SAFE_PAIR)


def _group(found: Weighted) -> int:
    return int(attributes(found.node).get("group", 1))


def obstacle(model: Any, found: Weighted, *, target: Target | None = None) -> Obstacle:
    """Say what keeps a weighted node of ``model`` that runs in float from being an int8 kernel.

    The patterns are those that ONNX Runtime's selectors ask for (``qdq_selectors.cc``): both
    inputs behind ``DequantizeLinear`` of 8-bit integers, the bias an int32 behind another, and,
    for a convolution, one reader of the result: a ``QuantizeLinear``, past a Relu or Clip at most.

    Args:
        model: the ``ModelProto`` of the file.
        found: one of its weighted nodes.
        target: the machine it runs on; None means this one.
    """
    node, made_by = found.node, producers(model.graph)
    if node.op_type == "ConvTranspose":
        return Obstacle(
            pattern="ONNX Runtime has no int8 ConvTranspose",
            remedy="leave it in float, or upsample and convolve instead",
        )
    unknown = Obstacle(
        pattern=f"ONNX Runtime {ort.__version__} runs no int8 {node.op_type} for it",
        remedy="leave it in float (exclude), or try another release of ONNX Runtime",
    )
    if node.op_type in INT8_OPERATORS:
        return unknown
    inputs = [made_by.get(name) for name in node.input]
    image, kernel = inputs[0], inputs[1]
    quantized = [n is not None and n.op_type == "DequantizeLinear" for n in inputs]
    reason = None
    if not quantized[1]:
        reason = _float_weights(found, kernel, input_is_int8=quantized[0])
    elif not quantized[0]:
        reason = Obstacle(
            pattern=f"its weights are int8, but its input {node.input[0]!r} is float",
            remedy="quantize activations as well: quantize_static, or quantize_dynamic",
        )
    else:
        problems = (
            *_unfit_quantization(model, image, kernel, target or this_target()),
            *_unfit_bias(node, quantized),
            *_unfit_result(model, node),
        )
        reason = next(iter(problems), None)
    return reason or unknown


def _float_weights(found: Weighted, kernel: Any, *, input_is_int8: bool) -> Obstacle:
    if kernel is not None and found.weight.name != found.node.input[1]:
        return Obstacle(
            pattern="its weights are stored in fewer bits and read back as float when it is opened",
            remedy="this form saves bytes, not time; for int8 kernels use quantize_static",
        )
    if input_is_int8:
        return Obstacle(
            pattern="the file leaves it in float between int8 layers: its weights are float32",
            remedy="it was excluded: take it out of exclude to have it in int8",
        )
    return Obstacle(
        pattern="the file leaves it in float: neither its weights nor its input are quantized",
        remedy="use quantize_static on the model, or take it out of exclude",
    )


def _unfit_quantization(model: Any, image: Any, kernel: Any, target: Target) -> Iterator[Obstacle]:
    import onnx

    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    eight = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    for what, node in (("input", image), ("weights", kernel)):
        kind = kinds.get(node.input[2] if len(node.input) > 2 else node.input[0], min(eight))
        if kind not in eight:
            yield Obstacle(
                pattern=f"its {what} are {onnx.TensorProto.DataType.Name(kind).lower()}: the "
                "kernels take 8 bits",
                remedy="quantize to int8 or uint8",
            )
        if (
            what == "input"
            and kind == onnx.TensorProto.INT8
            and SCHEMES[target].activations == "u8"
        ):
            yield Obstacle(
                pattern=f"its input is signed int8; on {target} the kernels take uint8",
                remedy=f'quantize with target = "{target}"',
            )
        if node.input[1] not in shapes:
            yield Obstacle(
                pattern=f"the scale of its {what} is computed, not stored",
                remedy="store scales and zero points as initialisers",
            )
    if max(shapes.get(image.input[1], ()), default=1) > 1:
        yield Obstacle(
            pattern="its input has one scale a channel; the kernels take one for all",
            remedy="quantize activations per tensor",
        )


def _unfit_bias(node: Any, quantized: list[bool]) -> Iterator[Obstacle]:
    if len(node.input) > 2 and node.input[2] and not quantized[2]:
        yield Obstacle(
            pattern=f"its bias {node.input[2]!r} is float",
            remedy="store the bias as int32 behind DequantizeLinear, scale = input × weights",
        )


def _unfit_result(model: Any, node: Any) -> Iterator[Obstacle]:
    """Say what stands between a convolution and the QuantizeLinear that it needs."""
    if node.op_type != "Conv":
        return  # a product of matrices gives float as well
    readers = consumers(model.graph)
    outputs = {value.name for value in model.graph.output}
    last = node
    while True:
        (name,) = last.output
        reading = readers.get(name, [])
        if name in outputs or len(reading) != 1:
            yield Obstacle(
                pattern=f"its result {name!r} is read in float by {len(reading) or 'no'} nodes"
                + (" and is an output of the model" if name in outputs else ""),
                remedy="quantize the result at once and let every reader have the quantized one",
            )
            return
        before, last = last, reading[0]
        if last.op_type == "QuantizeLinear":
            if before is not node and _outlives(model, before, last):
                yield Obstacle(
                    pattern=f"its {before.op_type} {before.name!r} has to be computed: the range "
                    "of the QuantizeLinear behind it reaches further",
                    remedy=f"quantize within the bounds of the {before.op_type}",
                )
            return
        if last.op_type not in {"Relu", "Clip"}:
            yield Obstacle(
                pattern=f"no QuantizeLinear follows it: its result goes to {last.op_type} "
                f"{last.name!r} in float",
                remedy=f"quantize between it and {last.op_type}",
            )
            return


def _outlives(model: Any, activation: Any, quantize: Any) -> bool:
    """Say whether a Relu or Clip cuts off what the QuantizeLinear behind it would not."""
    stored = {tensor.name: array_of(tensor) for tensor in model.graph.initializer}
    names = (*quantize.input[1:], *activation.input[1:])
    if any(name and name not in stored for name in names) or len(quantize.input) < 3:
        return False  # cannot be told
    scale, zero = (stored[name] for name in quantize.input[1:3])
    kind = np.iinfo(zero.dtype)
    low, high = (float((edge - zero.astype(int)).min() * scale) for edge in (kind.min, kind.max))
    bounds = [float(stored[name]) if name else None for name in activation.input[1:]]
    floor = 0.0 if activation.op_type == "Relu" else next(iter(bounds), None)
    ceiling = bounds[1] if len(bounds) > 1 else None
    return (floor is not None and low < floor) or (ceiling is not None and high > ceiling)
