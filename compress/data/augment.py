"""Training batches made anew on every pass: shifted, turned, cut and mixed. Training alone sees them."""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta
from typing_extensions import assert_never

from compress.data.rows import Rows, drawn
from deploy.errors import needs_extra

Fraction = Annotated[float, Meta(ge=0, lt=1)]
Share = Annotated[float, Meta(gt=0, le=1)]
Pixels = Annotated[int, Meta(ge=1)]


class _Augment(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"
):
    """One change to a batch; each sample draws its own."""


class Shift(_Augment, frozen=True, tag="shift"):
    """Move an image by up to a share of its size; its edge pixels fill the gap."""

    height: Fraction = 0.1
    width: Fraction = 0.1


class Flip(_Augment, frozen=True, tag="flip"):
    """Mirror every other image. Digits and letters are no longer themselves then."""

    horizontal: bool = True
    vertical: bool = False


class Rotation(_Augment, frozen=True, tag="rotation"):
    """Turn an image around its centre, by up to so many degrees either way; edge pixels fill the gaps."""

    degrees: Annotated[float, Meta(gt=0, le=180)] = 10.0


class Zoom(_Augment, frozen=True, tag="zoom"):
    """Make an image larger or smaller around its centre; edge pixels fill the gaps."""

    low: Annotated[float, Meta(gt=0)] = 0.9
    high: Annotated[float, Meta(gt=0)] = 1.1
    """A factor between both, above 1 is larger."""

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low must not be above high, got {self.low} and {self.high}")


class Crop(_Augment, frozen=True, tag="crop"):
    """Pad an image and cut one of its own size out of it (He et al., "Deep Residual Learning", 2015, 4.2)."""

    padding: Pixels = 4
    fill: Literal["zero", "edge"] = "zero"
    """What the padding is: zeros of the model's inputs, or the pixels of the edge."""


class Cutout(_Augment, frozen=True, tag="cutout"):
    """Put the image's mean in place of a square (DeVries and Taylor, "Cutout", 2017).

    The square's centre lies anywhere, so that part of it may lie outside.
    """

    size: Pixels = 8


class Mixup(_Augment, frozen=True, tag="mixup"):
    """Blend a sample and its target with another of the batch (Zhang et al., "mixup", 2018, equation 2)."""

    alpha: Annotated[float, Meta(gt=0)] = 0.2
    """Of the Beta distribution that the share is drawn from: 1 draws all shares alike, less stays near
    one of the two."""


Augment: TypeAlias = Shift | Flip | Rotation | Zoom | Crop | Cutout | Mixup


def why_not_augmented(spec: tuple[Augment, ...], shape: tuple[int, ...]) -> str | None:
    """Say why samples of a shape cannot be changed so, or None if they can.

    >>> why_not_augmented((Flip(),), (8, 8, 1))
    >>> why_not_augmented((Mixup(), Flip()), (30,))
    "augment[1]: 'flip' needs images (height, width, channels), the model's inputs are (30,)"
    """
    for index, augment in enumerate(spec):
        kind = augment.__struct_config__.tag
        if len(shape) != 3 and not isinstance(augment, Mixup):
            return (
                f"augment[{index}]: {kind!r} needs images (height, width, channels), the model's "
                f"inputs are {shape}"
            )
        match augment:
            case Crop() if augment.padding >= min(shape[:2]):
                got = f"padding = {augment.padding}"
            case Cutout() if augment.size > min(shape[:2]):
                got = f"size = {augment.size}"
            case _:
                continue
        return (
            f"augment[{index}]: {kind!r} with {got} leaves nothing of {shape[0]}×{shape[1]} pixels"
        )
    return None


def augment_batch(
    spec: tuple[Augment, ...], x: Any, y: Any, seed: Any, rows: Rows | None = None
) -> tuple[Any, Any]:
    """Return a batch as training is to see it this time.

    Operations of TensorFlow alone, without state: equal seeds give equal batches, in a ``tf.function``
    too.

    Args:
        spec: the changes, in order; none leave the batch as it is.
        x: model inputs ``(b, ...)``, float.
        y: targets ``(b, outputs)``, float.
        seed: two integers, ``(2,)``.
        rows: which of the batch these are, if other accelerators have the rest.
    """
    if not spec:
        return x, y
    with needs_extra("compress"):
        import tensorflow as tf
    for index, augment in enumerate(spec):
        own = tf.random.experimental.stateless_fold_in(seed, index)
        match augment:
            case Mixup():
                x, y = _mixed(augment, x, y, own, rows)
            case Crop():
                x = _cropped(augment, x, own, rows)
            case Cutout():
                x = _cut_out(augment, x, own, rows)
            case Flip():
                x = _flipped(augment, x, own, rows)
            case Shift() | Rotation() | Zoom():
                x = _moved(augment, x, own, rows)
            case _:
                assert_never(augment)
    return x, y


def _uniform(seed: Any, part: int, x: Any, rows: Rows | None, *, low: float, high: float) -> Any:
    """Return a number for each sample, ``(b,)``."""
    import tensorflow as tf

    own = tf.random.experimental.stateless_fold_in(seed, part)
    return drawn(
        lambda shape: tf.random.stateless_uniform(shape, own, low, high, dtype=tf.float32),
        tf.shape(x)[:1],
        rows,
    )


def _moved(augment: Shift | Rotation | Zoom, x: Any, seed: Any, rows: Rows | None) -> Any:
    """Sample images ``(b, h, w, c)`` anew at places that an affine map gives."""
    import tensorflow as tf

    height, width = (tf.cast(tf.shape(x)[axis], tf.float32) for axis in (1, 2))
    one, zero = tf.ones([tf.shape(x)[0]]), tf.zeros([tf.shape(x)[0]])
    match augment:
        case Shift():
            down = _uniform(seed, 0, x, rows, low=-augment.height, high=augment.height) * height
            right = _uniform(seed, 1, x, rows, low=-augment.width, high=augment.width) * width
            lines = (one, zero, -right), (zero, one, -down)
        case Rotation():
            most = math.radians(augment.degrees)
            angle = _uniform(seed, 0, x, rows, low=-most, high=most)
            cos, sin = tf.cos(angle), tf.sin(angle)
            lines = _around_centre((cos, sin), (-sin, cos), height, width)
        case Zoom():
            shrink = 1.0 / _uniform(seed, 0, x, rows, low=augment.low, high=augment.high)
            lines = _around_centre((shrink, zero), (zero, shrink), height, width)
        case _:
            assert_never(augment)
    transforms = tf.stack([*lines[0], *lines[1], zero, zero], axis=1)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=x,
        transforms=transforms,
        output_shape=tf.shape(x)[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    )


def _around_centre(
    row_x: tuple[Any, Any], row_y: tuple[Any, Any], height: Any, width: Any
) -> tuple[tuple[Any, Any, Any], tuple[Any, Any, Any]]:
    """Return a linear map of (x, y) with the shift that leaves the centre of the image in place."""
    x, y = (width - 1) / 2, (height - 1) / 2
    return (
        (*row_x, x - row_x[0] * x - row_x[1] * y),
        (*row_y, y - row_y[0] * x - row_y[1] * y),
    )


def _flipped(augment: Flip, x: Any, seed: Any, rows: Rows | None) -> Any:
    import tensorflow as tf

    for part, (asked, axis) in enumerate(((augment.horizontal, 2), (augment.vertical, 1))):
        if asked:
            mirrored = _uniform(seed, part, x, rows, low=0.0, high=1.0) < 0.5
            x = tf.where(mirrored[:, None, None, None], tf.reverse(x, [axis]), x)
    return x


def _cropped(augment: Crop, x: Any, seed: Any, rows: Rows | None) -> Any:
    import tensorflow as tf

    for axis in (1, 2):
        size = tf.shape(x)[axis]
        draw = partial(
            tf.random.stateless_uniform,
            seed=tf.random.experimental.stateless_fold_in(seed, axis),
            minval=-augment.padding,
            maxval=augment.padding + 1,
            dtype=tf.int32,
        )
        offset = drawn(draw, tf.shape(x)[:1], rows)
        places = tf.range(size)[None, :] + offset[:, None]
        inside = (places >= 0) & (places < size)
        x = tf.gather(x, tf.clip_by_value(places, 0, size - 1), axis=axis, batch_dims=1)
        if augment.fill == "zero":
            mask = inside[:, :, None, None] if axis == 1 else inside[:, None, :, None]
            x = tf.where(mask, x, tf.zeros([], x.dtype))
    return x


def _cut_out(augment: Cutout, x: Any, seed: Any, rows: Rows | None) -> Any:
    import tensorflow as tf

    covered = []
    for axis in (1, 2):
        size = tf.shape(x)[axis]
        centre = tf.floor(
            _uniform(seed, axis, x, rows, low=0.0, high=1.0) * tf.cast(size, tf.float32)
        )
        start = tf.cast(centre, tf.int32) - augment.size // 2
        places = tf.range(size)[None, :] - start[:, None]
        covered.append((places >= 0) & (places < augment.size))
    square = covered[0][:, :, None, None] & covered[1][:, None, :, None]
    return tf.where(square, tf.reduce_mean(x, axis=(1, 2), keepdims=True), x)


def _mixed(augment: Mixup, x: Any, y: Any, seed: Any, rows: Rows | None) -> tuple[Any, Any]:
    import tensorflow as tf

    shape = tf.shape(x)[:1] if rows is None else [rows.samples]
    seeds = [tf.random.experimental.stateless_fold_in(seed, part) for part in range(3)]
    # A Beta variable is the share of one of two Gamma variables; small alphas may draw 0 of both.
    first, second = (tf.random.stateless_gamma(shape, own, augment.alpha) for own in seeds[:2])
    share = tf.math.divide_no_nan(first, first + second)
    share = tf.where(first + second > 0, share, tf.ones_like(share))
    other = tf.argsort(tf.random.stateless_uniform(shape, seeds[2]))
    if rows is not None:
        share, other = share[rows.begin : rows.end], other[rows.begin : rows.end]

    def blend(values: Any) -> Any:
        own = tf.reshape(share, [-1] + [1] * (len(values.shape) - 1))
        own = tf.cast(own, values.dtype)
        whole = values if rows is None else rows.gather(values)
        return own * values + (1 - own) * tf.gather(whole, other)

    return blend(x), blend(y)
