"""Which weight of a layer is its kernel, for what changes single weights."""

from __future__ import annotations

from typing import Any

_KERNELS = {
    "Conv1D": "kernel",
    "Conv1DTranspose": "kernel",
    "Conv2D": "kernel",
    "Conv2DTranspose": "kernel",
    "Conv3D": "kernel",
    "Conv3DTranspose": "kernel",
    "Dense": "kernel",
    "Embedding": "embeddings",
    "SeparableConv1D": "pointwise_kernel",
    "SeparableConv2D": "pointwise_kernel",
}
"""By layer type. Depthwise kernels are none: they hold few weights, and a channel hangs on a handful."""


def kernel_of(layer: Any) -> Any | None:
    """Return a layer's kernel, or None; a subclass in user code is a type of its own."""
    if not type(layer).__module__.startswith("tf_keras."):
        return None
    return getattr(layer, _KERNELS.get(type(layer).__name__, ""), None)


def kernel_name(layer: Any) -> str:
    """Return the attribute that holds the kernel of a layer that has one."""
    return _KERNELS[type(layer).__name__]
