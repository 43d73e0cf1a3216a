"""A network with everything that draws, counts or remembers while it trains."""

import dataclasses
import os
import signal
import sys
from pathlib import Path

import numpy as np
import tf_keras

from compress.data.task import Split, Task
from compress.train.fit import EarlyStopping, Fit, TrainingFiles, fit
from compress.train.optimizers import Adam, Optimizer
from compress.train.regularise import Regularise
from compress.train.schedules import Plateau
from deploy.preprocess import Cast

EVERYTHING = Fit(
    epochs=6,
    batch_size=20,
    optimizer=Adam(learning_rate=1e-2),
    schedule=Plateau(patience=1, metric="loss", min_delta=0.3),
    regularise=Regularise(l1=1e-3, l2=1e-3, dropout=0.2, max_norm=1.0, clip_global_norm=1.0),
    early_stopping=EarlyStopping(patience=9),
)


def everything():
    tf_keras.utils.set_random_seed(7)
    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            layers.Input((6,)),
            layers.GaussianNoise(0.1),
            layers.Dense(8, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Dense(3, activation="softmax"),
        ]
    )


def numbers(samples=90):
    """Three classes of six numbers each, in noise."""
    rng = np.random.default_rng(0)

    def part(count):
        y = np.arange(count) % 3
        x = rng.normal(size=(count, 6)).astype(np.float32) + np.eye(6, dtype=np.float32)[y]
        return Split(raw=x, x=x, y=y)

    return Task(
        name="numbers",
        digest="numbers",
        licence="none",
        labels=("a", "b", "c"),
        preprocess=(Cast(),),
        train=part(samples),
        calibration=part(3),
        validation=part(30),
        test=part(3),
    )


def line(seed=0, samples=60, features=5):
    """A regression of one number on some correlated ones, as a task whose targets are ``y`` itself."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, features)) @ (np.eye(features) + 0.3)
    y = x @ [2.0, -1.0, 0.05, 0.0, 0.02] + 0.5 + rng.normal(0, 0.1, samples)
    split = Split(raw=x, x=x.astype(np.float32), y=y.astype(np.float32)[:, None])
    nothing = Split(raw=x[:0], x=split.x[:0], y=split.y[:0])
    return dataclasses.replace(numbers(), train=split, validation=nothing)


def fitted_line(task, optimizer: Optimizer, regularise, *, epochs, monkeypatch, batch_size=999):
    """Return weights and intercept of a linear model, trained by the loop on the squared error."""
    loop = sys.modules["compress.train.fit"]
    monkeypatch.setattr(loop, "why_not_trained", lambda *_: None)
    monkeypatch.setattr(loop, "keras_loss", lambda *_: "mean_squared_error")
    monkeypatch.setattr("compress.train.batches.targets", lambda _, y: y)
    model = tf_keras.Sequential([tf_keras.layers.Dense(1, input_shape=task.input_shape)])
    config = Fit(epochs=epochs, batch_size=batch_size, optimizer=optimizer, regularise=regularise)
    history = fit(model, task, config, seed=0)
    kernel, bias = model.get_weights()
    return kernel[:, 0], float(bias[0]), history


class Killer(tf_keras.callbacks.Callback):
    """Kills its own process in the middle of an epoch, with no chance to tidy up."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Train in a process of its own: ``kill AFTER CHECKPOINT`` or ``finish CHECKPOINT WEIGHTS``."""
    what, *words = sys.argv[1:]
    model = everything()
    if what == "kill":
        files = TrainingFiles(checkpoint=Path(words[1]), every_seconds=0)
        killer = Killer(after=int(words[0]))
        fit(model, numbers(), EVERYTHING, seed=3, files=files, callbacks=[killer])
    files = TrainingFiles(checkpoint=Path(words[0]))
    began = []
    spy = tf_keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, _: began.append(epoch))
    history = fit(model, numbers(), EVERYTHING, seed=3, files=files, callbacks=[spy])
    weights = {str(at): weight for at, weight in enumerate(model.get_weights())}
    losses = [epoch["val_loss"] for epoch in history.epochs]
    np.savez(words[1], began=began, losses=losses, kept=history.kept_epoch, **weights)


if __name__ == "__main__":
    main()
