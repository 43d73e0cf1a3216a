"""MobileNetV1."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from compress.networks.config import NetworkConfig
from compress.networks.heads import Head, with_head
from compress.networks.sample_shape import require_image

_BLOCKS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip
"""Filters at width 1 and stride of each depthwise separable block."""


class MobileNetV1(NetworkConfig, frozen=True, tag="mobilenet_v1"):
    """A stem and 13 depthwise separable blocks; by default as thin as in MLPerf Tiny.

    Source: Howard et al. 2017, "MobileNets", table 1 and equation 6 (width multiplier);
    ``benchmark/training/visual_wake_words/vww_model.py`` of mlcommons/tiny (width 0.25 at
    96 × 96, biases kept). Its L2 penalty is left to training.

    The published network divides the sides by 32, which leaves one pixel of a 28 × 28 image.
    Below 64 pixels the stem therefore has stride 1, as is usual on CIFAR-10: 28 and 32 pixels
    end in 2 × 2. The weights are the same either way.
    """

    width: Annotated[float, Meta(gt=0, le=4)] = 0.25
    """Multiplier of every layer's filters, rounded down as published, at least 1."""


def build_mobilenet_v1(
    network: MobileNetV1, *, input_shape: tuple[int, ...], classes: int, head: Head = Head()
) -> Any:
    """Return the network as a ``tf_keras.Model``.

    Raises:
        UserError: if the images are smaller than 16 × 16, which the strides bring down to one pixel.

    >>> build_mobilenet_v1(MobileNetV1(), input_shape=(96, 96, 3), classes=2).count_params()
    221794
    """
    shape = require_image("mobilenet_v1", input_shape, least=(16, 16))
    from tf_keras import Model, layers

    def bn_relu(x: Any, suffix: str) -> Any:
        x = layers.BatchNormalization(name=f"bn{suffix}")(x)
        return layers.ReLU(name=f"relu{suffix}")(x)

    def filters_of(filters: int) -> int:
        return max(1, int(filters * network.width))

    inputs = layers.Input(shape, name="input")
    x = layers.Conv2D(
        filters_of(32),
        3,
        strides=2 if min(shape[:2]) >= 64 else 1,
        padding="same",
        name="conv1",
    )(inputs)
    x = bn_relu(x, "1")
    for index, (filters, stride) in enumerate(_BLOCKS, start=2):
        x = layers.DepthwiseConv2D(3, strides=stride, padding="same", name=f"depthwise{index}")(x)
        x = bn_relu(x, f"{index}a")
        x = layers.Conv2D(filters_of(filters), 1, padding="same", name=f"conv{index}")(x)
        x = bn_relu(x, f"{index}b")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = with_head(x, head, outputs=classes, name="dense1")
    return Model(inputs, x, name="mobilenet_v1")
