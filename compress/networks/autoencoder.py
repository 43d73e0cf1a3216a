"""The autoencoder of MLPerf Tiny."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from compress.networks.config import NetworkConfig
from compress.networks.heads import Head, as_sample
from deploy.errors import UserError

Width = Annotated[int, Meta(gt=0)]


class Autoencoder(NetworkConfig, frozen=True, tag="autoencoder"):
    """Dense layers that squeeze a sample through a bottleneck and give it anew.

    Source: Banbury et al. 2021, "MLPerf Tiny Benchmark", section 4.4, and
    ``benchmark/training/anomaly_detection/keras_model.py`` of mlcommons/tiny: 640 inputs, four
    layers of 128, 8, four of 128; each with batch normalisation and ReLU.
    """

    hidden: tuple[Width, ...] = (128, 128, 128, 128)
    """Units of the layers before the bottleneck; those behind it are the same the other way round."""
    bottleneck: Width = 8


def build_autoencoder(network: Autoencoder, *, input_shape: tuple[int, ...], head: Head) -> Any:
    """Return the network as a ``tf_keras.Model``; samples of several axes are flattened and back.

    Raises:
        UserError: if the task is no reconstruction.

    >>> head = Head(task="reconstruction")
    >>> build_autoencoder(Autoencoder(), input_shape=(640,), head=head).count_params()
    269992
    """
    if head.task != "reconstruction":
        raise UserError(
            f"autoencoder: gives a sample anew, which is no {head.task.replace('_', '-')}; "
            f'set data.task = "reconstruction" or take another network'
        )
    from tf_keras import Model, layers

    x = inputs = layers.Input(input_shape, name="input")
    if len(input_shape) > 1:
        x = layers.Flatten(name="flatten")(x)
    widths = (*network.hidden, network.bottleneck, *reversed(network.hidden))
    for index, units in enumerate(widths, start=1):
        x = layers.Dense(units, name=f"dense{index}")(x)
        x = layers.BatchNormalization(name=f"bn{index}")(x)
        x = layers.ReLU(name=f"relu{index}")(x)
    x = as_sample(x, input_shape=input_shape, name=f"dense{len(widths) + 1}")
    return Model(inputs, x, name="autoencoder")
