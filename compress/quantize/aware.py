"""Training with the rounding of int8 in the loop, on the grid of the runtime that will run it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.data.task import Task
from compress.networks.rewire import copied, rewired
from compress.quantize.balance import balanced
from compress.quantize.excluded import Exclusion
from compress.quantize.learned_ranges import INPUT, Learned
from compress.quantize.static import QuantizeStatic
from compress.train.fit import Fit, History, OnEpoch, TrainingFiles, fit
from compress.train.teacher import Distillation, Teacher
from deploy.errors import UserError
from deploy.machine import SCHEMES, Target, this_target
from deploy.record import LayerFacts, Record

Array = npt.NDArray[Any]
Range = tuple[float, float]

_KERNELS: dict[str, tuple[str, tuple[int, ...]]] = {
    "Dense": ("kernel", (0,)),
    "Conv1D": ("kernel", (0, 1)),
    "Conv2D": ("kernel", (0, 1, 2)),
    "DepthwiseConv2D": ("depthwise_kernel", (0, 1)),
}
"""By layer type: the weight, and its axes that share a scale: all but those of the outputs."""

_SAME_GRID = frozenset(
    {
        "InputLayer", "MaxPooling1D", "MaxPooling2D", "GlobalMaxPooling2D", "Flatten", "Reshape",
        "Permute", "RepeatVector", "ZeroPadding1D", "ZeroPadding2D", "Cropping1D", "Cropping2D",
        "Dropout", "SpatialDropout2D", "UpSampling2D", "ActivityRegularization", "GaussianNoise",
    }
)  # fmt: skip
"""Layers that pass values on: what they give lies on the grid of what they are given."""

_FAKE_QUANT = "quantization.fake_quant_with_min_max_args"


class QuantizeAware(Record, frozen=True, tag_field="kind", tag="quantize_aware"):
    """Train on with weights and activations rounded as int8 kernels round them.

    Jacob et al. (2018), section 3: the forward pass rounds, the gradient passes straight through.
    BatchNorm is folded first. Channels are equalised across layers (Nagel et al. 2019), so that one
    learning rate fits all; not where clusters are kept. Weights are signed int8, symmetric, one scale
    per output channel; activations get 256 steps over a range that follows the batches. The result is
    exported to int8 with just these weights and ranges.
    """

    fine_tune: Fit
    """How the model trains meanwhile; a tenth of the first learning rate is a good start."""
    target: Target | None = None
    """The machine to quantize for; None means this one. ``x86-avx2`` spends one bit of the weights."""
    exclude: tuple[str, ...] = ()
    """Names of layers to leave in float; ``*`` and ``?`` stand for any characters."""
    exclusion: Exclusion = "session_option"
    """What keeps excluded layers in float at load, as in ``quantize_static``."""
    keep_zeros: bool = True
    """Weights that are exactly zero stay zero, so that a pruned model stays pruned."""
    keep_clusters: bool = False
    """Every kernel keeps its number of distinct values, so that a clustered model stays clustered;
    a kernel then has one scale for all channels."""
    distill: Distillation | bool = Distillation()
    """How the training listens to the baseline beside the truth; false leaves the baseline out."""


def as_static(step: QuantizeAware, plain: Any, exported: Any) -> QuantizeStatic:
    """Return the post-training step that writes what this step has learned.

    Args:
        step: what was trained.
        plain: the float model of ``learned``.
        exported: the same as a ``ModelProto``.
    """
    float_layers = [
        layer.name
        for layer in plain.layers
        if layer.weights and why_not_aware(layer.name, layer, step) is not None
    ]
    nodes = [
        node.name
        for node in exported.graph.node
        if any(node.name == name or node.name.startswith(f"{name}/") for name in float_layers)
    ]
    return QuantizeStatic(target=step.target, exclude=tuple(nodes), exclusion=step.exclusion)


def why_not_aware(name: str, layer: Any, step: QuantizeAware) -> str | None:
    """Say why a layer with weights stays in float, or None if it is trained as int8."""
    pattern = next((p for p in step.exclude if fnmatchcase(name, p)), None)
    if pattern is not None:
        return f"excluded by {pattern!r}"
    kind = type(layer).__name__
    if not type(layer).__module__.startswith("tf_keras."):
        return f"a {kind} is a layer of the user's own, whose arithmetic is not known"
    if kind not in _KERNELS:
        return f"a {kind} has no int8 kernel that training could imitate"
    return None


def why_not_kept(
    made: Sequence[LayerFacts], parent: Sequence[LayerFacts], step: QuantizeAware
) -> str | None:
    """Say which layer of an int8 file lost zeros or gained values, or None if none did.

    Args:
        made: what the bytes of the file say of its layers.
        parent: what those of the parent's float file say.
        step: promises what is compared.
    """
    before = {layer.name: layer for layer in parent}
    for layer in made:
        was = before.get(layer.name)
        if was is None or was.parameters != layer.parameters:
            continue
        if step.keep_zeros and layer.zeros < was.zeros:
            return f"quantize_aware: '{layer.name}' has {layer.zeros} zeros left of {was.zeros}"
        few, many = was.distinct or 0, layer.distinct or 0
        if step.keep_clusters and many > few:
            return f"quantize_aware: '{layer.name}' has {many} distinct weights, {few} before"
    return None


def check_excluded(names: list[str], step: QuantizeAware) -> None:
    """Raise a UserError if a pattern of ``exclude`` matches none of the layers."""
    for pattern in step.exclude:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"exclude: no layer is named {pattern!r}; there are {', '.join(names)}")


def quantize_aware(
    model: Any,
    step: QuantizeAware,
    task: Task,
    *,
    seed: int,
    teacher: Teacher | None = None,
    on_epoch: OnEpoch | None = None,
    files: TrainingFiles | None = None,
) -> tuple[Any, History]:
    """Return a model whose weights lie on the int8 grid and whose activations are rounded.

    The result is plain Keras: ``fake_quant_with_min_max_args`` stands behind every layer whose
    result is stored as int8. ``learned`` takes it apart again for the export.

    Args:
        model: a folded model that nests no other, as ``fold_batch_norm`` gives; left alone.
        step: how to quantize and train.
        task: what to train on; ``calibration.x`` gives the first ranges.
        seed: of the training.
        teacher: whose answers the training listens to.
        on_epoch: told about the end of each epoch.
        files: what the fine-tuning leaves on disk meanwhile.

    Raises:
        UserError: if ``exclude`` matches nothing or leaves nothing, or as ``fit`` does.
    """
    check_excluded([layer.name for layer in model.layers], step)
    quantized = [
        layer
        for layer in model.layers
        if layer.weights and why_not_aware(layer.name, layer, step) is None
    ]
    if not quantized:
        raise UserError(
            "quantize_aware: no layer is left to quantize; it needs a "
            f"{', '.join(_KERNELS)} that exclude does not name"
        )
    if not step.keep_clusters:  # equal weights of channels with factors of their own would differ
        model = balanced(model)
    ranges = _calibrated(model, _rounded(model), task.calibration.x)
    rounding = _Rounding(model, {layer.name for layer in quantized}, ranges, step)
    history = fit(
        rounding.model,
        task,
        step.fine_tune,
        seed=seed,
        teacher=teacher,
        on_epoch=on_epoch,
        files=files,
    )
    return rounding.plain(model), history


def learned(model: Any, step: QuantizeAware) -> tuple[Any, Learned]:
    """Take apart what ``quantize_aware`` gave: the float model, and what its export has to keep.

    Args:
        model: as it was returned, or loaded from its file; left alone.
        step: the step that made it.
    """
    ranges = {}
    for layer in model.layers:
        if _is_rounding(layer):
            (node,) = layer.inbound_nodes
            before = node.inbound_layers
            name = INPUT if type(before).__name__ == "InputLayer" else before.name
            ranges[name] = (node.call_kwargs["min"], node.call_kwargs["max"])
    made: list[tuple[Any, Any]] = []

    def make(layer: Any, name: str) -> Callable[..., Any]:
        if _is_rounding(layer):
            return lambda x, **_: x
        twin: Callable[..., Any] = copied(layer, name)
        made.append((layer, twin))
        return twin

    plain = rewired(model, make)
    for layer, twin in made:
        twin.set_weights(layer.get_weights())
    return plain, Learned(ranges=ranges, one_scale=step.keep_clusters)


def _rounded(model: Any) -> frozenset[str]:
    """Return the layers whose results are stored as int8, as ONNX Runtime fuses layers.

    A ReLU is part of the layer before it; what only moves values keeps their grid; the class
    scores stay float.
    """
    last = {layer.name for layer in _towards_scores(model)}
    after = set()
    for layer in model.layers:
        readers = [node.layer for node in layer.outbound_nodes]
        absorbed = len(readers) == 1 and _is_relu(readers[0]) and not _is_relu(layer)
        if not (layer.name in last or absorbed or type(layer).__name__ in _SAME_GRID):
            after.add(layer.name)
    return frozenset(after)


def _towards_scores(model: Any) -> Iterator[Any]:
    """Yield the layer that gives the output, and the ones before it that only bring it into form."""
    for output in model.outputs:
        layer = output.node.layer
        yield layer
        while type(layer).__name__ in {"Softmax", "Activation", "Rescaling"}:
            layer = layer.inbound_nodes[0].inbound_layers
            yield layer


def _is_relu(layer: Any) -> bool:
    kind = type(layer).__name__
    if kind == "ReLU":
        return not layer.negative_slope and not layer.threshold
    return kind == "Activation" and getattr(layer.activation, "__name__", "") in {"relu", "relu6"}


def _grid_before(layer: Any) -> str | None:
    """Return the layer on whose grid lies what a layer is given, or None where calls differ in it."""
    names = set()
    for node in layer.inbound_nodes:
        # Along the calls, not the layers: one that passes values on may be called for several.
        before = node.parent_nodes
        while len(before) == 1 and type(before[0].layer).__name__ in _SAME_GRID - {"InputLayer"}:
            before = before[0].parent_nodes
        if len(before) != 1:
            return None
        given = before[0].layer
        names.add(INPUT if type(given).__name__ == "InputLayer" else given.name)
    return names.pop() if len(names) == 1 else None


def _is_rounding(layer: Any) -> bool:
    return type(layer).__name__ == "TFOpLambda" and layer.get_config()["function"] == _FAKE_QUANT


def _calibrated(model: Any, points: frozenset[str], x: Any) -> dict[str, Range]:
    """Return the range of the results of each layer over the calibration samples."""
    import tensorflow as tf
    import tf_keras

    results = {
        layer.name: [node.outputs for node in layer.inbound_nodes]
        for layer in model.layers
        if layer.name in points
    }
    watched = tf_keras.Model(model.inputs, {INPUT: [model.inputs], **results})
    ranges = dict.fromkeys([INPUT, *results], (0.0, 0.0))
    for start in range(0, len(x), 64):
        for name, tensors in watched(x[start : start + 64], training=False).items():
            for values in tf.nest.flatten(tensors):
                low, high = ranges[name]
                ranges[name] = (
                    min(low, float(tf.reduce_min(values))),
                    max(high, float(tf.reduce_max(values))),
                )
    return ranges


class _Rounding:
    """A model that rounds while it trains: tfmot's wrappers on the runtime's own grid.

    Attributes:
        model: what to train.
    """

    def __init__(
        self, model: Any, quantized: set[str], ranges: dict[str, Range], step: QuantizeAware
    ) -> None:
        from compress.quantize import grid

        self._grid = grid
        self._quantized, self._step = quantized, step
        self._ranges = {name: grid.Activations(first) for name, first in ranges.items()}
        self._weights: dict[str, list[Any]] = {}
        self._kernels: dict[str, Any] = {}
        self.model = rewired(model, self._rounding_layer, on_input=self._rounded_input)

    def plain(self, model: Any) -> Any:
        """Return the model with the weights and ranges of now, without tfmot.

        Args:
            model: the model that this one was made from.
        """
        import tensorflow as tf

        made: list[tuple[str, Any]] = []
        ends = {
            name: tuple(float(end.numpy()) for end in quantizer.range)
            for name, quantizer in self._ranges.items()
        }

        def rounded(name: str, result: Any) -> Any:
            if name not in ends:
                return result
            low, high = _nudged(*ends[name])
            return tf.quantization.fake_quant_with_min_max_args(result, min=low, max=high)

        def make(layer: Any, name: str) -> Callable[..., Any]:
            twin = copied(layer, name)
            made.append((name, twin))
            return lambda *args, **kwargs: rounded(name, twin(*args, **kwargs))

        result = rewired(model, make, on_input=lambda tensor: rounded(INPUT, tensor))
        for name, twin in made:
            values = [variable.numpy() for variable in self._weights[name]]
            if name in self._kernels:
                quantizer = self._kernels[name]
                values[0] = np.asarray(quantizer(self._weights[name][0], False))
                layer = model.get_layer(name)
                before = _grid_before(layer)
                if layer.use_bias and before in ends:
                    low, high = _nudged(*ends[before])
                    kernel, bias = values
                    values[1] = _on_grid_of_sums(kernel, bias, quantizer, step=(high - low) / 255)
            twin.set_weights(values)
        return result

    def _rounding_layer(self, layer: Any, name: str) -> Callable[..., Any]:
        twin: Any = copied(layer, name)
        if layer.weights:
            twin.build(layer.get_input_shape_at(0))
            twin.set_weights(layer.get_weights())
        # tfmot puts the rounded tensor in the variable's place.
        self._weights[name] = list(twin.weights)
        called = twin
        if name in self._quantized:
            weight, axes = _KERNELS[type(layer).__name__]
            kernel, step = getattr(layer, weight).numpy(), self._step
            self._kernels[name] = quantizer = self._grid.Weights(
                axes=None if step.keep_clusters else axes,
                levels=SCHEMES[step.target or this_target()].levels,
                zeros=kernel != 0 if step.keep_zeros else None,
                clusters=kernel if step.keep_clusters else None,
            )
            called = self._grid.QuantizeWrapperV2(
                twin, self._grid.OnGrid(weight, quantizer), name=f"int8_{name}"
            )
        if name not in self._ranges:
            wrapped: Callable[..., Any] = called
            return wrapped
        rounding = self._grid.QuantizeLayer(self._ranges[name], name=f"round_{name}")
        return lambda *args, **kwargs: rounding(called(*args, **kwargs))

    def _rounded_input(self, tensor: Any) -> Any:
        return self._grid.QuantizeLayer(self._ranges[INPUT], name="round_input")(tensor)


def _on_grid_of_sums(kernel: Array, bias: Array, quantizer: Any, *, step: float) -> Array:
    """Return a bias as it is stored, in steps of the products that it is added to.

    Where a channel has large weights these steps are a good part of one of the result.

    Args:
        kernel: on the int8 grid.
        bias: ``(channels,)``.
        quantizer: the ``grid.Weights`` that brought the kernel there.
        step: of what the layer is given.
    """
    scale = np.abs(kernel).max(axis=quantizer.axes).astype(np.float64).reshape(-1)
    steps = np.where(scale > 0, scale / quantizer.levels, 1.0) * step
    return np.asarray(np.rint(bias / steps) * steps, np.float32)


def _nudged(low: float, high: float) -> Range:
    """Return the range of 256 steps, zero being one of them, that is meant by a learned range.

    The same arithmetic as in TensorFlow's ``fake_quant`` kernels.

    >>> low, high = _nudged(-1.0, 254.4)
    >>> round(low, 4), round(high, 4)
    (-1.0016, 254.3984)
    """
    scale = max(high - low, 1e-8) / 255
    zero = float(np.clip(round(-low / scale), 0, 255))
    return 0.0 - zero * scale, (255 - zero) * scale
