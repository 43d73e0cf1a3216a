"""How raw samples become model inputs: a declarative spec, and its meaning in numpy.

The spec is data. It is stored with every model, and the device applies the very functions
that the host applied, so both see the same numbers.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from deploy.errors import UserError

Array = npt.NDArray[Any]
Positive = Annotated[int, Meta(gt=0)]


class _Op(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op"):
    """One step on a batch of samples ``(n, ...)``."""


class Cast(_Op, tag="cast"):
    """Change the element type."""

    dtype: Literal["float32", "int32", "int64", "uint8"] = "float32"


class Scale(_Op, tag="scale"):
    """``x * factor + offset``, in float32."""

    factor: float = 1.0 / 255.0
    offset: float = 0.0


class Normalize(_Op, tag="normalize"):
    """``(x - mean) / std`` in float32, per entry of the last axis or one value for all."""

    mean: tuple[float, ...]
    std: tuple[Annotated[float, Meta(gt=0)], ...]


class Reshape(_Op, tag="reshape"):
    """Give every sample this shape; the batch axis stays in front."""

    shape: tuple[Positive, ...]


class Resize(_Op, tag="resize"):
    """Resize images ``(n, height, width, channels)``, bilinear with half-pixel centres.

    The same grid as ``tf.image.resize(..., method="bilinear", antialias=False)``.
    """

    height: Positive
    width: Positive


class OneHot(_Op, tag="one_hot"):
    """Turn integer codes ``(n, ...)`` into a last axis of ``depth`` zeros and ones."""

    depth: Positive


Op = Cast | Scale | Normalize | Reshape | Resize | OneHot
Preprocess = tuple[Op, ...]


def apply(spec: Preprocess, samples: Array) -> Array:
    """Return the model inputs for a batch of raw samples.

    Args:
        spec: the steps, in order.
        samples: raw samples, shape ``(n, ...)``.

    Raises:
        UserError: if a step does not fit the shape or the values that reach it.

    >>> apply((Scale(factor=0.5), Reshape(shape=(2, 1))), np.array([[2, 4]])).tolist()
    [[[1.0], [2.0]]]
    """
    for index, op in enumerate(spec):
        why_not = _why_not_applied(op, samples)
        if why_not is not None:
            raise UserError(f"preprocess[{index}]: {why_not}")
        samples = _apply_one(op, samples)
    return np.ascontiguousarray(samples)


def _why_not_applied(op: Op, samples: Array) -> str | None:
    """Say why a step does not fit what reaches it, or None if it does."""
    shape = samples.shape[1:]
    match op:
        case Reshape() if int(np.prod(op.shape)) != int(np.prod(shape)):
            return f"reshape to {op.shape} needs {np.prod(op.shape)} values a sample, got {shape}"
        case Resize() if samples.ndim != 4:
            return f"resize needs samples of shape (height, width, channels), got {shape}"
        case Normalize() if not ({len(op.mean), len(op.std)} <= {1, shape[-1] if shape else 1}):
            return (
                f"normalize needs 1 or {shape[-1] if shape else 1} values, "
                f"got {len(op.mean)} for mean and {len(op.std)} for std"
            )
        case OneHot() if not np.issubdtype(samples.dtype, np.integer):
            return f"one_hot needs integer codes, got {samples.dtype}; cast them first"
        case OneHot() if samples.size and not (0 <= samples.min() and samples.max() < op.depth):
            return (
                f"one_hot of depth {op.depth} needs codes from 0 to {op.depth - 1}, "
                f"got {samples.min()} to {samples.max()}"
            )
        case _:
            return None


def _apply_one(op: Op, samples: Array) -> Array:
    match op:
        case Cast():
            return samples.astype(op.dtype)
        case Scale():
            return samples.astype(np.float32) * np.float32(op.factor) + np.float32(op.offset)
        case Normalize():
            mean, std = np.float32(op.mean), np.float32(op.std)
            return (samples.astype(np.float32) - mean) / std
        case Reshape():
            return samples.reshape(len(samples), *op.shape)
        case Resize():
            return _resize_bilinear(samples.astype(np.float32), op.height, op.width)
        case OneHot():
            return np.eye(op.depth, dtype=np.float32)[samples]


def _resize_bilinear(images: Array, height: int, width: int) -> Array:
    rows = _interpolate(images, axis=1, size=height)
    return _interpolate(rows, axis=2, size=width)


def _interpolate(images: Array, *, axis: int, size: int) -> Array:
    """Interpolate linearly along one axis; sample centres lie at half pixels, edges repeat."""
    length = images.shape[axis]
    centre = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(length / size)
    centre = centre - np.float32(0.5)
    floor = np.floor(centre)
    weight = (centre - floor).reshape([-1 if a == axis else 1 for a in range(images.ndim)])
    below = np.clip(floor.astype(np.int64), 0, length - 1)
    above = np.clip(floor.astype(np.int64) + 1, 0, length - 1)
    low, high = images.take(below, axis=axis), images.take(above, axis=axis)
    blended: Array = low + (high - low) * weight.astype(np.float32)
    return blended
