"""Fully connected networks."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from compress.networks.config import NetworkConfig
from compress.networks.heads import Head, as_sample, with_head

Width = Annotated[int, Meta(gt=0)]


class Mlp(NetworkConfig, frozen=True, tag="mlp"):
    """Dense ReLU layers, then the classes; by default Keras' MNIST example, 784-128-10.

    Source: "TensorFlow 2 quickstart for beginners", tensorflow.org/tutorials/quickstart/beginner,
    less its Dropout, as in tensorflow.org/datasets/keras_example.
    """

    hidden: tuple[Width, ...] = (128,)
    """Units of each hidden layer, from the input on; none at all is logistic regression."""


def build_mlp(
    network: Mlp, *, input_shape: tuple[int, ...], classes: int, head: Head = Head()
) -> Any:
    """Return the network as a ``tf_keras.Model``; samples of several axes are flattened.

    >>> build_mlp(Mlp(), input_shape=(28, 28), classes=10).count_params()
    101770
    """
    return dense_stack("mlp", network.hidden, input_shape=input_shape, classes=classes, head=head)


def dense_stack(
    name: str, hidden: tuple[int, ...], *, input_shape: tuple[int, ...], classes: int, head: Head
) -> Any:
    """Return Dense ReLU layers ``dense1``, ``dense2``, …, the last with what the task wants."""
    from tf_keras import Model, layers

    x = inputs = layers.Input(input_shape, name="input")
    if len(input_shape) > 1:
        x = layers.Flatten(name="flatten")(x)
    for index, units in enumerate(hidden, start=1):
        x = layers.Dense(units, activation="relu", name=f"dense{index}")(x)
    last = f"dense{len(hidden) + 1}"
    if head.task == "reconstruction":
        x = as_sample(x, input_shape=input_shape, name=last)
    else:
        x = with_head(x, head, outputs=classes, name=last)
    return Model(inputs, x, name=name)
