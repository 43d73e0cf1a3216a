"""What tfmot is told of the runtime's int8 grid: its own default is that of another runtime.

Imported only while a model is trained: tfmot takes seconds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf  # noqa: TID253  # classes need their bases; the module is imported in a function
import tensorflow_model_optimization as tfmot  # noqa: TID253  # likewise
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import (  # noqa: TID253  # likewise
    QuantizeLayer,
)
from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import (  # noqa: TID253  # likewise
    QuantizeWrapperV2,
)

Array = npt.NDArray[Any]

__all__ = ["Activations", "OnGrid", "QuantizeLayer", "QuantizeWrapperV2", "Weights"]

_MEMORY = 0.99
"""Share of a range that a batch leaves as it was: Krishnamoorthi (2018), section 3.1.1."""


class Weights(tfmot.quantization.keras.quantizers.Quantizer):  # type: ignore[misc]  # tfmot has no types
    """Signed, symmetric, without a state: the scale is that of the weights as they are now.

    tfmot's own quantizer stores the range of the step before, so that what is saved lies on
    another grid than the weights that are saved with it.
    """

    def __init__(
        self,
        *,
        axes: tuple[int, ...] | None,
        levels: int,
        zeros: Array | None,
        clusters: Array | None,
    ) -> None:
        """Say how a kernel is rounded.

        Args:
            axes: axes of the kernel that share a scale; None shares one over all.
            levels: largest stored weight.
            zeros: True where a weight may be other than zero; None lets all be.
            clusters: a kernel whose equal values stay equal; None lets all differ.
        """
        self.axes, self.levels = axes, levels
        self.mask = None if zeros is None else tf.constant(zeros, tf.float32)
        self.members: Array | None = None
        if clusters is not None:
            values, members = np.unique(clusters, return_inverse=True)
            self.members, self.count = members.reshape(-1), len(values)

    def build(self, _tensor_shape: Any, _name: str, _layer: Any) -> dict[str, Any]:
        """Return the variables of the range: there are none."""
        return {}

    def __call__(self, inputs: Any, _training: bool, _weights: Any = None, **_: Any) -> Any:
        """Return the kernel rounded; the gradient passes as if it were not."""
        kernel = tf.convert_to_tensor(inputs)
        if self.members is not None:
            flat = tf.reshape(kernel, [-1])
            centres = tf.math.unsorted_segment_mean(flat, self.members, self.count)
            kernel = tf.reshape(tf.gather(centres, self.members), kernel.shape)
        if self.mask is not None:
            kernel = kernel * self.mask
        largest = tf.reduce_max(tf.abs(kernel), axis=self.axes, keepdims=True)
        scale = tf.where(largest > 0, largest / self.levels, tf.ones_like(largest))
        return kernel + tf.stop_gradient(tf.round(kernel / scale) * scale - kernel)

    def get_config(self) -> dict[str, Any]:
        """Return nothing: a wrapped model is never saved."""
        return {}


class Activations(tfmot.quantization.keras.quantizers.Quantizer):  # type: ignore[misc]  # likewise
    """256 steps over a range that contains zero and follows the batches."""

    def __init__(self, first: tuple[float, float]) -> None:
        """Begin with a calibrated range: from tfmot's −6 to 6 an average takes an epoch to arrive."""
        self.first = first
        self.range: tuple[Any, ...] = ()

    def build(self, _tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """Return the variables of the range."""
        low, high = (
            layer.add_weight(
                name=f"{name}_{end}",
                initializer=tf.constant_initializer(value),
                trainable=False,
            )
            for end, value in zip(("low", "high"), self.first, strict=True)
        )
        self.range = low, high
        return {"low": low, "high": high}

    def __call__(self, inputs: Any, training: bool, weights: dict[str, Any], **_: Any) -> Any:
        """Return the values rounded; the gradient passes within the range."""
        low, high = weights["low"], weights["high"]
        if training:
            lowest = tf.minimum(tf.reduce_min(inputs), 0.0)
            highest = tf.maximum(tf.reduce_max(inputs), 0.0)
            low.assign(_MEMORY * low + (1 - _MEMORY) * lowest)
            high.assign(_MEMORY * high + (1 - _MEMORY) * highest)
        return tf.quantization.fake_quant_with_min_max_vars(inputs, low, high)

    def get_config(self) -> dict[str, Any]:
        """Return nothing: a wrapped model is never saved."""
        return {}


class OnGrid(tfmot.quantization.keras.QuantizeConfig):  # type: ignore[misc]  # likewise
    """Rounds one weight of a layer; results are rounded by a layer of their own."""

    def __init__(self, weight: str, quantizer: Weights) -> None:
        self.weight, self.quantizer = weight, quantizer

    def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        """Return the kernel and how it is rounded."""
        return [(getattr(layer, self.weight), self.quantizer)]

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        """Let the layer compute with the rounded kernel."""
        setattr(layer, self.weight, quantize_weights[0])

    def get_activations_and_quantizers(self, _layer: Any) -> list[Any]:
        """Return nothing."""
        return []

    def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
        """Do nothing: results are rounded elsewhere."""
        del layer, quantize_activations  # an empty body is more than AutoGraph can read

    def get_output_quantizers(self, _layer: Any) -> list[Any]:
        """Return nothing."""
        return []

    def get_config(self) -> dict[str, Any]:
        """Return nothing: a wrapped model is never saved."""
        return {}
