"""Weights that are stored in fewer bits, computed with as float32."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.data.task import Task
from compress.quantize.corrections import Correction, check_corrections, corrected
from compress.quantize.finished import finished
from compress.quantize.rounding import Bits
from compress.quantize.unfit import refuse_unfit
from deploy.errors import UserError
from deploy.graph import array_of, outputs_axis, weighted_nodes
from deploy.record import Record

Array = npt.NDArray[Any]

_LARGEST_FLOAT16 = 65504.0


class ToFloat16(Record, frozen=True, tag_field="kind", tag="float16"):
    """Weights and biases stored as float16, computed with as float32: half the size, equal speed.

    ONNX Runtime's CPU has next to no float16 kernels. A model converted as a whole (tried:
    ``onnxruntime.transformers.float16``) gets casts to float32 around everything, rounds its
    activations as well, and was 2-10 % slower. A Cast behind each stored weight is folded away at
    load instead, so that the float32 graph runs, at the speed of float32.
    """


class WeightOnly(Record, frozen=True, tag_field="kind", tag="quantize_weight_only"):
    """Kernels stored as int8 per output channel, computed with as float32: a quarter of the size.

    They are read back as ``Mul(Cast(int8), scale)``, which ONNX Runtime folds into one float32
    constant at load: the speed is that of float32. The obvious ``DequantizeLinear`` is not folded;
    it dequantizes on every run (2-8 times slower), and at times becomes ``MatMulNBits``.
    """

    weight_bits: Bits = 8
    """As in ``quantize_static``."""
    correct: tuple[Correction, ...] = ()
    """As in ``quantize_static``; what is corrected looks at calibration samples."""

    def __post_init__(self) -> None:
        check_corrections(self.correct)


def to_float16(model: Any, step: ToFloat16) -> Any:
    """Return a ``ModelProto`` that stores the weights and biases of its layers as float16.

    Args:
        model: a float ``ModelProto``. It is left alone.
        step: has no settings.

    Raises:
        UserError: if the model is quantized already or a value is too large for float16.
    """
    refuse_unfit(model)
    return store_in_fewer_bits(model, step)


def weight_only(model: Any, step: WeightOnly, task: Task | None = None) -> Any:
    """Return a ``ModelProto`` that stores its kernels as int8, one scale per output channel.

    A stored weight is ``round(w / scale)`` with ``scale = max |w| / 127`` over its channel: off by
    half a step at most, and zero stays zero. Biases stay float32.

    Args:
        model: a float ``ModelProto``. It is left alone.
        step: how to store them.
        task: calibrates what is corrected; not looked at otherwise.

    Raises:
        UserError: if the model is quantized already or a weight is not finite, or a correction does
            not fit, as in ``quantize_static``.
    """
    refuse_unfit(model)
    if step.weight_bits == 8 and not step.correct:
        return store_in_fewer_bits(model, step)
    if task is None:
        raise TypeError("fewer bits and corrections need a task")
    made = corrected(
        model,
        [found.node.name for found in weighted_nodes(model.graph)],
        task.calibration.x,
        bits=step.weight_bits,
        levels=127,
        per_channel=True,
        corrections=step.correct,
    )
    return store_in_fewer_bits(made.model, step, scales=made.scales)


def store_in_fewer_bits(
    model: Any,
    step: ToFloat16 | WeightOnly,
    *,
    layers: Collection[str] | None = None,
    scales: Mapping[str, Array] = MappingProxyType({}),
) -> Any:
    """Return a copy whose layers, or some of them, keep their weights as a step says.

    Args:
        model: a ``ModelProto`` whose layers have names. It is left alone.
        step: what to store them as.
        layers: names of layers with float32 weights; None for all there are.
        scales: the grids of weights that lie on one, by the weight's name, one step a channel.

    Raises:
        UserError: if there are none, or a weight cannot be stored so.
    """
    match step:
        case ToFloat16():
            return _with_stored_otherwise(model, step, _halve, layers, with_bias=True)
        case WeightOnly():

            def rewrite(
                layer: str, name: str, values: Array, axis: int
            ) -> tuple[list[Any], list[Any]]:
                return _quarter(layer, name, values, axis, scales.get(name))

            return _with_stored_otherwise(model, step, rewrite, layers, with_bias=False)


def _halve(layer: str, name: str, values: Array, _: int) -> tuple[list[Any], list[Any]]:
    import onnx

    largest = float(np.abs(values).max(initial=0))
    if not largest <= _LARGEST_FLOAT16:
        raise UserError(
            f"layer {layer!r}: float16 holds values up to {_LARGEST_FLOAT16:.0f}, got "
            f"{largest:g} in {name!r}; leave this model in float32"
        )
    half = onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}_float16")
    cast = onnx.helper.make_node(
        "Cast", [half.name], [name], name=f"{name}/cast", to=onnx.TensorProto.FLOAT
    )
    return [half], [cast]


def _quarter(
    layer: str, name: str, values: Array, axis: int, scale: Array | None
) -> tuple[list[Any], list[Any]]:
    import onnx

    if not np.isfinite(values).all():
        raise UserError(f"layer {layer!r}: {name!r} holds NaN or infinity; train it again")
    others = tuple(a for a in range(values.ndim) if a != axis)
    largest = np.abs(values).max(axis=others, keepdims=True)
    if scale is None:
        scale = np.where(largest > 0, largest / np.float32(127), np.float32(1))
    scale = scale.reshape(largest.shape).astype(np.float32)
    stored = np.clip(np.rint(values / scale), -127, 127).astype(np.int8)
    tensors = [
        onnx.numpy_helper.from_array(stored, f"{name}_int8"),
        onnx.numpy_helper.from_array(scale, f"{name}_scale"),
    ]
    cast = onnx.helper.make_node(
        "Cast",
        [tensors[0].name],
        [f"{name}_steps"],
        name=f"{name}/cast",
        to=onnx.TensorProto.FLOAT,
    )
    scaled = onnx.helper.make_node(
        "Mul", [f"{name}_steps", tensors[1].name], [name], name=f"{name}/mul"
    )
    return tensors, [cast, scaled]


def _with_stored_otherwise(
    model: Any,
    step: ToFloat16 | WeightOnly,
    rewrite: Callable[[str, str, Array, int], tuple[list[Any], list[Any]]],
    layers: Collection[str] | None,
    *,
    with_bias: bool,
) -> Any:
    """Return a copy whose weights are replaced by other tensors and the nodes that read them back.

    ``rewrite`` gets the layer's name, the tensor's name, its values and the axis of its output
    channels. It returns the tensors to store and the nodes that make the values again.
    """
    nodes = [
        found
        for found in weighted_nodes(model.graph)
        if layers is None or found.node.name in layers
    ]
    if not nodes:
        raise UserError(f"model: {type(step).__name__} needs layers with stored weights, got none")
    twin = type(model)()
    twin.CopyFrom(model)
    graph = twin.graph
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    tensors: list[Any] = []
    readers: list[Any] = []
    done: set[str] = set()
    for found in nodes:
        names = [found.weight.name]
        if with_bias and found.node.op_type != "MatMul":
            names += [name for name in found.node.input[2:3] if name in stored]
        for name in names:
            if name not in done:
                done.add(name)
                axis = outputs_axis(found)
                new, made = rewrite(found.node.name, name, array_of(stored[name]), axis)
                tensors += new
                readers += made
    kept_tensors = [tensor for tensor in model.graph.initializer if tensor.name not in done]
    del graph.initializer[:]
    graph.initializer.extend([*tensors, *kept_tensors])
    del graph.node[:]
    graph.node.extend([*readers, *model.graph.node])
    return finished(twin, model)
