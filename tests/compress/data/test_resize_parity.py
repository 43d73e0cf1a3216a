from __future__ import annotations

import numpy as np
import pytest

from deploy.preprocess import Resize, apply


@pytest.mark.parametrize("size", [(7, 5), (1, 1), (3, 17), (14, 10), (28, 28), (5, 7), (224, 96)])
def test_resize_gives_what_tensorflow_gives(size):
    import tensorflow as tf

    images = np.random.default_rng(0).integers(0, 256, (2, 7, 5, 3), np.uint8)
    expected = tf.image.resize(images, size, method="bilinear", antialias=False).numpy()
    got = apply((Resize(height=size[0], width=size[1]),), images)
    assert np.abs(got - expected).max() <= 1e-4
