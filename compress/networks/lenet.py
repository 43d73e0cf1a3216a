"""The two LeNets on which pruning papers report."""

from __future__ import annotations

from typing import Any

from compress.networks.config import NetworkConfig
from compress.networks.heads import Head, with_head
from compress.networks.mlp import dense_stack
from compress.networks.sample_shape import require_image


class LeNet300100(NetworkConfig, frozen=True, tag="lenet_300_100"):
    """Two hidden layers of 300 and 100 units.

    Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition",
    section III.C.4; ReLU instead of tanh as in Han et al. 2015, "Learning both weights and
    connections for efficient neural networks", table 1 (267K parameters).
    """


class LeNet5(NetworkConfig, frozen=True, tag="lenet_5"):
    """Two convolutions and two dense layers, in the form that Caffe made standard.

    Source: ``examples/mnist/lenet_train_test.prototxt`` of BVLC/caffe, which puts its one ReLU
    behind the first dense layer and none behind the convolutions; Han et al. 2015 (above),
    table 1 (431K parameters).
    """


def build_lenet_300_100(
    _network: LeNet300100, *, input_shape: tuple[int, ...], classes: int, head: Head = Head()
) -> Any:
    """Return the network as a ``tf_keras.Model``; samples of several axes are flattened.

    >>> build_lenet_300_100(LeNet300100(), input_shape=(28, 28, 1), classes=10).count_params()
    266610
    """
    return dense_stack(
        "lenet_300_100", (300, 100), input_shape=input_shape, classes=classes, head=head
    )


def build_lenet_5(
    _network: LeNet5, *, input_shape: tuple[int, ...], classes: int, head: Head = Head()
) -> Any:
    """Return the network as a ``tf_keras.Model``.

    Raises:
        UserError: if the images are smaller than 16 × 16, where the second pooling has no pixel left.

    >>> build_lenet_5(LeNet5(), input_shape=(28, 28, 1), classes=10).count_params()
    431080
    """
    shape = require_image("lenet_5", input_shape, least=(16, 16))
    from tf_keras import Model, layers

    inputs = layers.Input(shape, name="input")
    x = layers.Conv2D(20, 5, name="conv1")(inputs)
    x = layers.MaxPooling2D(2, name="pool1")(x)
    x = layers.Conv2D(50, 5, name="conv2")(x)
    x = layers.MaxPooling2D(2, name="pool2")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(500, activation="relu", name="dense1")(x)
    x = with_head(x, head, outputs=classes, name="dense2")
    return Model(inputs, x, name="lenet_5")
