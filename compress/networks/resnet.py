"""The residual network of MLPerf Tiny."""

from __future__ import annotations

from typing import Any

from compress.networks.config import NetworkConfig
from compress.networks.heads import Head, with_head
from compress.networks.sample_shape import require_image


class ResNet8(NetworkConfig, frozen=True, tag="resnet_8"):
    """A stem and three residual stacks of 16, 32 and 64 filters.

    Source: Banbury et al. 2021, "MLPerf Tiny Benchmark", section 4.3, and
    ``benchmark/training/image_classification/keras_model.py`` (``resnet_v1_eembc``) of
    mlcommons/tiny. Its L2 penalty is left to training.
    """


def build_resnet_8(
    _network: ResNet8, *, input_shape: tuple[int, ...], classes: int, head: Head = Head()
) -> Any:
    """Return the network as a ``tf_keras.Model``.

    Raises:
        UserError: if the images are smaller than 8 × 8, where the last stack has less than 2 × 2.

    >>> build_resnet_8(ResNet8(), input_shape=(32, 32, 3), classes=10).count_params()
    78666
    """
    shape = require_image("resnet_8", input_shape, least=(8, 8))
    from tf_keras import Model, layers

    def conv_bn(x: Any, filters: int, index: int, *, stride: int = 1) -> Any:
        x = layers.Conv2D(
            filters,
            3,
            strides=stride,
            padding="same",
            kernel_initializer="he_normal",
            name=f"conv{index}",
        )(x)
        return layers.BatchNormalization(name=f"bn{index}")(x)

    inputs = layers.Input(shape, name="input")
    x = layers.ReLU(name="relu1")(conv_bn(inputs, 16, 1))
    for stack, filters in enumerate((16, 32, 64), start=1):
        stride = 1 if stack == 1 else 2
        first, second = 2 * stack, 2 * stack + 1
        y = layers.ReLU(name=f"relu{first}")(conv_bn(x, filters, first, stride=stride))
        y = conv_bn(y, filters, second)
        if stride != 1:
            x = layers.Conv2D(
                filters,
                1,
                strides=stride,
                padding="same",
                kernel_initializer="he_normal",
                name=f"shortcut{stack}",
            )(x)
        x = layers.ReLU(name=f"relu{second}")(layers.Add(name=f"add{stack}")([x, y]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = with_head(x, head, outputs=classes, name="dense1", kernel_initializer="he_normal")
    return Model(inputs, x, name="resnet_8")
