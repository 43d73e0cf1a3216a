"""How raw samples become model inputs: a declarative spec, and its meaning in numpy.

The spec is data. It is stored with every model, and the device applies the very functions
that the host applied, so both see the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
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


def _require_float32(**values: float) -> None:
    """Refuse numbers that float32 cannot hold: JSON cannot hold infinity or NaN either."""
    for name, value in values.items():
        if not abs(value) <= float(np.finfo(np.float32).max):
            raise ValueError(f"{name} must be a number that float32 can hold, got {value}")


class Cast(_Op, frozen=True, tag="cast"):
    """Change the element type."""

    dtype: Literal["float32", "int32", "int64", "uint8"] = "float32"


class Scale(_Op, frozen=True, tag="scale"):
    """``x * factor + offset``, in float32."""

    factor: float = 1.0 / 255.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        _require_float32(factor=self.factor, offset=self.offset)


class Normalize(_Op, frozen=True, tag="normalize"):
    """``(x - mean) / std`` in float32, per entry of the last axis or one value for all."""

    mean: tuple[float, ...]
    std: tuple[Annotated[float, Meta(gt=0)], ...]

    def __post_init__(self) -> None:
        for mean in self.mean:
            _require_float32(mean=mean)
        for std in self.std:
            _require_float32(std=std)
            if np.float32(std) <= 0:
                raise ValueError(f"std must be above 0 in float32, got {std}")


class Reshape(_Op, frozen=True, tag="reshape"):
    """Give every sample this shape; the batch axis stays in front."""

    shape: tuple[Positive, ...]


class Resize(_Op, frozen=True, tag="resize"):
    """Resize images ``(n, height, width, channels)``, bilinear with half-pixel centres.

    The same grid as ``tf.image.resize(..., method="bilinear", antialias=False)``.
    """

    height: Positive
    width: Positive


class OneHot(_Op, frozen=True, tag="one_hot"):
    """Turn integer codes ``(n, ...)`` into a last axis of ``depth`` zeros and ones."""

    depth: Positive


class Clip(_Op, frozen=True, tag="clip"):
    """Bring values into a range, in float32: per entry of the last axis, or one range for all.

    A missing value (NaN) stays missing.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.low) != len(self.high):
            raise ValueError(f"low and high must pair, got {len(self.low)} and {len(self.high)}")
        for low, high in zip(self.low, self.high, strict=True):
            _require_float32(low=low, high=high)
            if low > high:
                raise ValueError(f"low must not be above high, got {low} and {high}")


class Fill(_Op, frozen=True, tag="fill"):
    """Put a value where one is missing (NaN), in float32: per entry of the last axis, or one for all."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        for value in self.values:
            _require_float32(values=value)


class Pad(_Op, frozen=True, tag="pad"):
    """Put images ``(n, height, width, channels)`` into the middle of a larger frame.

    Where the frame cannot be even, the lower and the right edge get the pixel more. The type stays.
    """

    height: Positive
    width: Positive
    value: float = 0.0

    def __post_init__(self) -> None:
        _require_float32(value=self.value)


class ImageSize(_Op, frozen=True, tag="image_size"):
    """Bring images ``(n, height, width, channels)`` of any size to one, uint8 to uint8.

    Image files are brought to it one by one when they are read, on the host and on a device. Bilinear
    with half-pixel centres; what becomes smaller is averaged over what it covers, as
    ``tf.image.resize(..., method="bilinear", antialias=True)`` does, then rounded, halves to even.
    """

    height: Positive
    width: Positive


class Column(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One column of a table."""

    name: str
    categories: tuple[str, ...] | None = None
    """The texts that the column holds, in the order of their codes; None for a column of numbers."""


MISSING_MARKS = ("", "NA", "N/A", "NaN", "nan", "null", "?")


class Table(_Op, frozen=True, tag="table"):
    """How the rows of a table become samples ``(n, columns)``, float32.

    A category is its code, counted from 0; −1 is one that training did not have. ``deploy.tables``
    reads texts so. Samples themselves are left alone, once they fit.
    """

    columns: Annotated[tuple[Column, ...], Meta(min_length=1)]
    missing: bool = False
    """Whether values may be missing (NaN), because a later step fills them."""
    marks: tuple[str, ...] = MISSING_MARKS
    """Texts that stand for a missing value; spaces around them do not count."""

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        if len(set(names)) < len(names):
            raise ValueError(f"columns must have different names, got {', '.join(names)}")


class OneHotColumns(_Op, frozen=True, tag="one_hot_columns"):
    """Replace columns of codes ``(n, columns)`` by as many columns of zeros and ones as there are codes.

    The other columns stay, in order. An unknown category (−1) and a missing one become zeros alone.
    """

    columns: tuple[Annotated[int, Meta(ge=0)], ...]
    """Numbers of the columns, counted from 0."""
    depths: tuple[Positive, ...]
    """How many codes each of them has."""

    def __post_init__(self) -> None:
        if len(self.columns) != len(self.depths) or len(set(self.columns)) < len(self.columns):
            raise ValueError(
                f"columns must be different and pair with depths, "
                f"got {self.columns} and {self.depths}"
            )


Op = (
    Cast
    | Scale
    | Normalize
    | Reshape
    | Resize
    | OneHot
    | Clip
    | Fill
    | Pad
    | ImageSize
    | Table
    | OneHotColumns
)
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
        samples = _checked(index, op, samples)
    return np.ascontiguousarray(samples)


def prepared(
    spec: Preprocess, shape: tuple[int, ...], dtype: npt.DTypeLike
) -> Callable[[Array], Array]:
    """Return what ``apply`` does to raw samples ``(n, *shape)`` of one type, in a third of its time.

    The numbers are the same to the last bit. What follows from shape and type alone is looked at
    once, here; what the values decide is looked at each time.

    Args:
        spec: the steps, in order.
        shape: of one raw sample.
        dtype: of the raw samples.

    >>> prepared((Scale(factor=0.5),), (2,), "uint8")(np.array([[2, 4]], np.uint8)).tolist()
    [[1.0, 2.0]]
    """
    steps: list[Callable[[Array], Array]] = []
    like = np.zeros((1, *shape), dtype)
    for index, op in enumerate(spec):
        if _why_not_applied(op, like) is not None:  # zeros do not fit; whether others do, they say
            return partial(apply, spec)
        steps.append(_always_fitting(op, like.dtype) or partial(_checked, index, op))
        like = _apply_one(op, like)

    def run(samples: Array) -> Array:
        for step in steps:
            samples = step(samples)
        return np.ascontiguousarray(samples)

    return run


def _always_fitting(op: Op, dtype: np.dtype[Any]) -> Callable[[Array], Array] | None:
    """Return a step that fits whatever the values are, once it fits a shape and type; else None."""
    match op:
        case Reshape():
            shape = (-1, *op.shape)
            return lambda samples: samples.reshape(shape)
        case Cast() if np.dtype(op.dtype).kind == "f" or np.can_cast(dtype, op.dtype):
            wanted = np.dtype(op.dtype)
            return lambda samples: samples.astype(wanted, copy=False)
        case Scale():
            return _scaling(np.float32(op.factor), np.float32(op.offset))
        case Normalize():
            return _normalizing(_float32(op.mean), _float32(op.std))
        case _:
            return None


def _scaling(factor: np.float32, offset: np.float32) -> Callable[[Array], Array]:
    def scale(samples: Array) -> Array:
        scaled: Array = samples.astype(np.float32, copy=False) * factor
        scaled += offset
        return scaled

    return scale


def _normalizing(mean: Array, std: Array) -> Callable[[Array], Array]:
    def normalize(samples: Array) -> Array:
        normal: Array = samples.astype(np.float32, copy=False) - mean
        normal /= std
        return normal

    return normalize


def _checked(index: int, op: Op, samples: Array) -> Array:
    """Apply one step, or say where it stands and why it does not fit."""
    why_not = _why_not_applied(op, samples)
    if why_not is not None:
        raise UserError(f"preprocess[{index}]: {why_not}")
    return _apply_one(op, samples)


def _why_not_applied(op: Op, samples: Array) -> str | None:
    """Say why a step does not fit what reaches it, or None if it does."""
    shape = samples.shape[1:]
    match op:
        case Reshape() if math.prod(op.shape) != math.prod(shape):
            return f"reshape to {op.shape} needs {math.prod(op.shape)} values a sample, got {shape}"
        case Cast() if _leaves_range(op.dtype, samples):
            return (
                f"cast to {op.dtype} would change values out of its range, which processors do "
                f"differently; got {samples.min()} to {samples.max()}"
            )
        case Normalize() | Clip() | Fill():
            return _why_not_per_entry(op, shape[-1] if shape else 1)
        case Resize() | Pad() | ImageSize():
            return _why_not_reframed(op, samples)
        case OneHot():
            return _why_not_one_hot(op, samples)
        case Table():
            return _why_not_of_table(op, samples)
        case OneHotColumns():
            return _why_not_one_hot_columns(op, samples)
        case _:
            return None


def _why_not_per_entry(op: Normalize | Clip | Fill, entries: int) -> str | None:
    match op:
        case Normalize() if not ({len(op.mean), len(op.std)} <= {1, entries}):
            return (
                f"normalize needs 1 or {entries} values, "
                f"got {len(op.mean)} for mean and {len(op.std)} for std"
            )
        case Clip() if len(op.low) not in {1, entries}:
            return f"clip needs 1 or {entries} values, got {len(op.low)}"
        case Fill() if len(op.values) not in {1, entries}:
            return f"fill needs 1 or {entries} values, got {len(op.values)}"
        case _:
            return None


def _why_not_one_hot(op: OneHot, samples: Array) -> str | None:
    if not np.issubdtype(samples.dtype, np.integer):
        return f"one_hot needs integer codes, got {samples.dtype}; cast them first"
    if samples.size and not (samples.min() >= 0 and samples.max() < op.depth):
        return (
            f"one_hot of depth {op.depth} needs codes from 0 to {op.depth - 1}, "
            f"got {samples.min()} to {samples.max()}"
        )
    return None


def _leaves_range(dtype: str, samples: Array) -> bool:
    """Say whether a cast to an integer type would meet values that the type cannot hold."""
    if not np.issubdtype(np.dtype(dtype), np.integer) or not samples.size:
        return False
    if np.can_cast(samples.dtype, dtype):
        return False
    limits = np.iinfo(dtype)
    # NaN compares false with everything, so it counts as out of range. A float that equals the
    # limit of int64 is already one too many: 2**63 - 1 rounds up.
    if np.issubdtype(samples.dtype, np.floating):
        return not (float(limits.min) <= samples.min() and samples.max() < float(limits.max) + 1.0)
    return not (limits.min <= int(samples.min()) and int(samples.max()) <= limits.max)


def _apply_one(op: Op, samples: Array) -> Array:
    match op:
        case Cast():
            cast: Array = samples.astype(op.dtype, copy=False)
            return cast
        case Scale():
            return _float32(_float32(samples) * np.float32(op.factor) + np.float32(op.offset))
        case Normalize():
            return _float32((_float32(samples) - _float32(op.mean)) / _float32(op.std))
        case Reshape():
            return samples.reshape(len(samples), *op.shape)
        case Clip():
            # Both pass NaN on, unlike a comparison.
            return np.minimum(np.maximum(_float32(samples), _float32(op.low)), _float32(op.high))
        case Fill():
            x = _float32(samples)
            return np.where(np.isnan(x), _float32(op.values), x)
        case Resize() | Pad() | ImageSize():
            return _reframed(op, samples)
        case OneHot() | Table() | OneHotColumns():
            return _decoded(op, samples)


def _reframed(op: Resize | Pad | ImageSize, images: Array) -> Array:
    """Return images ``(n, height, width, channels)`` in another size."""
    match op:
        case Resize():
            return _resize_bilinear(_float32(images), op.height, op.width)
        case Pad():
            rows, columns = op.height - images.shape[1], op.width - images.shape[2]
            around = ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2))
            return np.pad(images, ((0, 0), *around, (0, 0)), constant_values=op.value)
        case ImageSize():
            return resize_images(images, op.height, op.width)


def _decoded(op: OneHot | Table | OneHotColumns, samples: Array) -> Array:
    """Return what codes stand for."""
    match op:
        case OneHot():
            return _float32(samples[..., None] == np.arange(op.depth))
        case Table():
            return _float32(samples)
        case OneHotColumns():
            return _one_hot_columns(op, _float32(samples))


def _why_not_reframed(op: Resize | Pad | ImageSize, samples: Array) -> str | None:
    name, shape = op.__struct_config__.tag, samples.shape[1:]
    if samples.ndim != 4:
        return f"{name} needs samples of shape (height, width, channels), got {shape}"
    match op:
        case ImageSize() if samples.dtype != np.uint8:
            return f"image_size needs uint8 samples, got {samples.dtype}; put it first"
        case Pad():
            return _why_not_padded(op, samples)
        case _:
            return None


def _why_not_padded(op: Pad, samples: Array) -> str | None:
    if samples.shape[1] > op.height or samples.shape[2] > op.width:
        return (
            f"pad makes images larger, {op.height}×{op.width} is smaller than "
            f"{samples.shape[1]}×{samples.shape[2]}; resize them first"
        )
    if samples.dtype.kind in "iu":
        limits = np.iinfo(samples.dtype)
        if not (float(op.value).is_integer() and limits.min <= op.value <= limits.max):
            return f"pad with {op.value:g} does not fit {samples.dtype}; cast or scale first"
    return None


def _why_not_of_table(op: Table, samples: Array) -> str | None:
    if samples.ndim != 2 or samples.shape[1] != len(op.columns):
        return f"the table has {len(op.columns)} columns, got samples of shape {samples.shape[1:]}"
    absent = np.isnan(_float32(samples))
    if not op.missing and absent.any():
        row, column = np.argwhere(absent)[0].tolist()
        return (
            f"sample {row} lacks {op.columns[column].name!r}; the model was made without a rule for "
            f"missing values, give it a value"
        )
    for index, column in enumerate(op.columns):
        if column.categories is None:
            continue
        codes = samples[:, index][~absent[:, index]]
        wrong = (codes < -1) | (codes >= len(column.categories)) | (codes != np.trunc(codes))
        if wrong.any():
            return (
                f"{column.name!r} holds codes from −1 to {len(column.categories) - 1}, "
                f"got {codes[wrong][0]:g}"
            )
    return None


def _why_not_one_hot_columns(op: OneHotColumns, samples: Array) -> str | None:
    if samples.ndim != 2 or max(op.columns, default=0) >= samples.shape[1]:
        return f"one_hot_columns needs columns {op.columns}, got samples of {samples.shape[1:]}"
    for column, depth in zip(op.columns, op.depths, strict=True):
        codes = samples[:, column]
        if samples.dtype.kind == "f":
            codes = codes[~np.isnan(codes)]
        if codes.size and not (codes.min() >= -1 and codes.max() < depth):
            return (
                f"one_hot_columns needs codes from −1 to {depth - 1} in column {column}, "
                f"got {codes.min():g} to {codes.max():g}"
            )
    return None


def _one_hot_columns(op: OneHotColumns, samples: Array) -> Array:
    depths = dict(zip(op.columns, op.depths, strict=True))
    parts = [
        _float32(samples[:, [column]] == np.arange(depths[column]))
        if column in depths
        else samples[:, [column]]
        for column in range(samples.shape[1])
    ]
    return np.concatenate(parts, axis=1)


def _float32(values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    return np.asarray(values, dtype=np.float32)


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


def resize_images(images: Array, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Bring uint8 images ``(n, height, width, channels)`` to a size, as ``ImageSize`` says."""
    if images.shape[1:3] == (height, width):
        return images
    rows = _average(_float32(images), axis=1, size=height)
    return np.rint(_average(rows, axis=2, size=width)).astype(np.uint8)


def _average(images: Array, *, axis: int, size: int) -> Array:
    """Interpolate along one axis with a triangle as wide as a new pixel, at least as an old one.

    Products are added one after the other, not by a matrix product, whose order and so whose last
    bit would be the processor's choice.
    """
    length = images.shape[axis]
    scale = length / size
    reach = max(scale, 1.0)
    centre = (np.arange(size) + 0.5) * scale
    first = np.floor(centre - reach).astype(np.int64)
    taps = np.arange(math.ceil(2 * reach) + 1)
    places = first[:, None] + taps  # (size, taps)
    weights = np.maximum(0.0, 1.0 - np.abs(places + 0.5 - centre[:, None]) / reach)
    weights[(places < 0) | (places >= length)] = 0.0
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    places = np.clip(places, 0, length - 1)
    shape = [-1 if a == axis else 1 for a in range(images.ndim)]
    total = np.zeros((*images.shape[:axis], size, *images.shape[axis + 1 :]), np.float32)
    for tap in taps:
        total += images.take(places[:, tap], axis=axis) * weights[:, tap].reshape(shape)
    return total
