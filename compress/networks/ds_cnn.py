"""The depthwise separable network for keyword spotting."""

from __future__ import annotations

from typing import Any

from compress.networks.config import NetworkConfig
from compress.networks.heads import Head, with_head
from compress.networks.sample_shape import require_image

_FILTERS = 64
_BLOCKS = 4


class DsCnn(NetworkConfig, frozen=True, tag="ds_cnn"):
    """A wide stem and four depthwise separable blocks of 64 filters.

    Source: Zhang et al. 2017, "Hello Edge: Keyword Spotting on Microcontrollers", section 3.4
    and table 6 (DS-CNN, small); ``benchmark/training/keyword_spotting/keras_model.py`` of
    mlcommons/tiny. Its L2 penalty is left to training. Its final average is taken over the whole
    map, which MLPerf Tiny does all but one row of.

    The stem's 10 × 4 kernel spans time × frequency of a 49 × 10 spectrogram. It is used where
    samples are at least twice as high as wide; any other image gets 4 × 4, because a square
    image has no long axis. The stride is 2 × 2 always.
    """


def build_ds_cnn(
    _network: DsCnn, *, input_shape: tuple[int, ...], classes: int, head: Head = Head()
) -> Any:
    """Return the network as a ``tf_keras.Model``.

    Raises:
        UserError: if a sample is smaller than the stem's kernel.

    >>> build_ds_cnn(DsCnn(), input_shape=(49, 10, 1), classes=12).count_params()
    24908
    >>> build_ds_cnn(DsCnn(), input_shape=(28, 28, 1), classes=10).get_layer("conv1").kernel_size
    (4, 4)
    """
    tall = len(input_shape) == 3 and input_shape[0] >= 2 * input_shape[1]
    stem = (10, 4) if tall else (4, 4)
    shape = require_image("ds_cnn", input_shape, least=stem)
    from tf_keras import Model, layers

    def bn_relu(x: Any, suffix: str) -> Any:
        x = layers.BatchNormalization(name=f"bn{suffix}")(x)
        return layers.ReLU(name=f"relu{suffix}")(x)

    inputs = layers.Input(shape, name="input")
    x = layers.Conv2D(_FILTERS, stem, strides=2, padding="same", name="conv1")(inputs)
    x = layers.Dropout(0.2, name="dropout1")(bn_relu(x, "1"))
    for index in range(2, _BLOCKS + 2):
        x = layers.DepthwiseConv2D(3, padding="same", name=f"depthwise{index}")(x)
        x = bn_relu(x, f"{index}a")
        x = layers.Conv2D(_FILTERS, 1, padding="same", name=f"conv{index}")(x)
        x = bn_relu(x, f"{index}b")
    x = layers.Dropout(0.4, name="dropout2")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = with_head(x, head, outputs=classes, name="dense1")
    return Model(inputs, x, name="ds_cnn")
