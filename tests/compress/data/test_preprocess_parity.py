from __future__ import annotations

import numpy as np
import pytest

from compress.data.clean import Clean
from compress.data.fit_preprocess import Standardize, fit_preprocess
from deploy.preprocess import Clip, ImageSize, Normalize, OneHotColumns, Pad, Resize, apply


@pytest.mark.parametrize("size", [(7, 5), (1, 1), (3, 17), (14, 10), (28, 28), (5, 7), (224, 96)])
def test_resize_gives_what_tensorflow_gives(size):
    import tensorflow as tf

    images = np.random.default_rng(0).integers(0, 256, (2, 7, 5, 3), np.uint8)
    expected = tf.image.resize(images, size, method="bilinear", antialias=False).numpy()
    got = apply((Resize(height=size[0], width=size[1]),), images)
    assert np.abs(got - expected).max() <= 1e-4


@pytest.mark.parametrize("size", [(7, 5), (1, 1), (3, 17), (14, 10), (5, 4), (20, 3)])
def test_image_size_gives_what_tensorflow_gives_with_antialias_rounded(size):
    import tensorflow as tf

    images = np.random.default_rng(0).integers(0, 256, (2, 40, 33, 3), np.uint8)
    exact = tf.image.resize(images, size, method="bilinear", antialias=True).numpy()
    got = apply((ImageSize(height=size[0], width=size[1]),), images)
    # Within a rounding of it, and equal but where it lies on the edge between two values.
    assert np.abs(got - exact).max() <= 0.5 + 1e-4
    assert (got == np.rint(exact)).mean() > 0.999


def test_pad_and_clip_and_one_hot_give_what_tensorflow_gives_to_the_bit():
    import tensorflow as tf

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 7, 4, 3), np.uint8)
    padded = tf.image.pad_to_bounding_box(images, 1, 2, 9, 9).numpy()
    np.testing.assert_array_equal(apply((Pad(height=9, width=9),), images), padded)
    x = rng.normal(size=(50, 3)).astype(np.float32)
    clipped = tf.clip_by_value(x, np.float32([-1, 0, -0.5]), np.float32([1, 0.1, 2])).numpy()
    np.testing.assert_array_equal(apply((Clip(low=(-1, 0, -0.5), high=(1, 0.1, 2)),), x), clipped)
    codes = np.float32([[0], [2], [-1], [1]])
    hot = tf.one_hot(codes[:, 0].astype(int), 3).numpy()
    np.testing.assert_array_equal(apply((OneHotColumns(columns=(0,), depths=(3,)),), codes), hot)


def test_standardize_gives_what_keras_normalization_gives():
    import tf_keras

    images = np.random.default_rng(0).integers(0, 256, (60, 6, 5, 3), np.uint8)
    for per, axis in (("channel", -1), ("feature", (1, 2, 3)), ("all", None)):
        spec = fit_preprocess((Standardize(per=per),), images, clean=Clean())
        layer = tf_keras.layers.Normalization(axis=axis)
        layer.adapt(images.astype(np.float32))
        expected = layer(images.astype(np.float32)).numpy()
        # Keras sums in float32, here the sums are float64.
        assert np.abs(apply(spec, images) - expected).max() <= 1e-5
        known = next(op for op in spec if isinstance(op, Normalize))
        shape = (1,) if per == "all" else images.shape[1:] if per == "feature" else (3,)
        mean, std = (np.float32(values).reshape(shape) for values in (known.mean, known.std))
        same = tf_keras.layers.Lambda(lambda x, m=mean, s=std: (x - m) / s)
        np.testing.assert_array_equal(apply(spec, images), same(images.astype(np.float32)).numpy())
