"""Trains in a process of its own, with one processor and with it split in two; writes what came out."""

import contextlib
import dataclasses
import sys

import msgspec
import numpy as np
import tensorflow as tf
import tf_keras

from compress.data.augment import Crop, Cutout, Flip, Mixup, Rotation, Shift, Zoom
from compress.data.task import Split
from compress.train.distribute import Worker
from compress.train.fit import Fit, fit
from compress.train.optimizers import GradientDescent, Sgd
from compress.train.regularise import Regularise
from tests.compress.train.tiny import numbers

layers = tf_keras.layers
# Plain descent: what the order of summation changes is not made larger, as Adam does near 0.
PLAIN = Fit(epochs=3, batch_size=21, optimizer=Sgd(learning_rate=0.05, momentum=0.0))


def noisy():
    return [
        layers.Input((6,)),
        layers.GaussianNoise(0.1),
        layers.Dense(8, activation="relu"),
        layers.Dropout(0.3),
        layers.Reshape((4, 2)),
        layers.LSTM(4, dropout=0.3, return_sequences=True),
        layers.SpatialDropout1D(0.3),
        layers.TimeDistributed(layers.Dropout(0.3)),
        layers.Flatten(),
        layers.Dense(3, activation="softmax"),
    ]


def normalised():
    return [
        layers.Input((8, 8, 1)),
        layers.Conv2D(4, 3),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.Flatten(),
        layers.Dense(3, activation="softmax"),
    ]


def images(*augment):
    """As ``numbers``, with images of noise around their class."""
    task = numbers()
    draw = np.random.default_rng(0).normal

    def part(split):
        x = draw(size=(len(split), 8, 8, 1)).astype(np.float32) + split.y[:, None, None, None]
        return Split(raw=x, x=x, y=split.y)

    changed = {name: part(getattr(task, name)) for name in ("train", "calibration", "validation")}
    return dataclasses.replace(task, augment=augment, test=part(task.test), **changed)


def plain():
    return [layers.Input((8, 8, 1)), layers.Flatten(), layers.Dense(3, activation="softmax")]


DROPPED = msgspec.structs.replace(PLAIN, regularise=Regularise(dropout=0.3))
FULL = msgspec.structs.replace(DROPPED, optimizer=GradientDescent(learning_rate=0.05))
TRAININGS = {
    "noise and dropout": (noisy, numbers(), DROPPED),
    "full batch and dropout": (noisy, numbers(), FULL),
    "augmentation": (plain, images(Shift(), Flip(), Rotation(), Zoom(), Crop(), Cutout()), PLAIN),
    "mixup": (plain, images(Flip(), Mixup(alpha=1.0)), PLAIN),
    "batch normalisation": (normalised, images(), PLAIN),
}


def main(out):
    halves = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], halves)
    both = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    found = {}
    for name, (network, task, config) in TRAININGS.items():
        for accelerators in (1, 2):
            with both.scope() if accelerators == 2 else contextlib.nullcontext():
                tf_keras.utils.set_random_seed(7)
                model = tf_keras.Sequential(network())
                worker = Worker(accelerators=accelerators)
                history = fit(model, task, config, seed=3, worker=worker)
            curves = [list(epoch.values()) for epoch in history.epochs]
            weights = np.concatenate([weight.ravel() for weight in model.get_weights()])
            found[f"{name}, curves, {accelerators}"] = curves
            found[f"{name}, weights, {accelerators}"] = weights
    np.savez(out, **found)


if __name__ == "__main__":
    main(sys.argv[1])
