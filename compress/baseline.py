"""The network that everything is compared with: built, trained, told apart from others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from compress.data.task import Task
from compress.networks import KerasFile, Network, PythonFunction
from compress.train.distribute import Worker
from compress.train.fit import Fit, History, OnEpoch, TrainingFiles, fit
from compress.train.trainable import network_for
from deploy.errors import UserError, needs_extra
from deploy.record import sha256_of


def baseline(
    network: Network,
    train: Fit | None,
    task: Task,
    *,
    seed: int,
    on_epoch: OnEpoch | None = None,
    files: TrainingFiles | None = None,
    worker: Worker | None = None,
) -> tuple[Any, History | None]:
    """Return the network as a tf-keras model, and how its training went.

    It is left untrained, and the history None, if ``train`` is None. For ``worker`` see ``fit``.
    """
    model = network_for(task, network, seed=seed, in_unit=train is not None)
    if train is None:
        return model, None
    history = fit(model, task, train, seed=seed, on_epoch=on_epoch, files=files, worker=worker)
    return model, history


def with_weights(network: Network, task: Task, weights: Sequence[Any], *, seed: int) -> Any:
    """Return the network that ``baseline`` trains, mirrored nowhere, with weights that it learned."""
    model = network_for(task, network, seed=seed)
    model.set_weights(weights)
    return model


def baseline_step(network: Network, train: Fit | None) -> dict[str, object]:
    """Return what made a baseline, as data."""
    made = {"kind": "train", "network": network, "train": train}
    return dict(msgspec.to_builtins(made))


def digest_of_what_the_user_brings(network: Network, task: Task, *, seed: int) -> str | None:
    """Return a digest of the network that the user's file or code gives; None for our own.

    Code may import other code, so it is what it builds that counts: layers, settings and weights.

    Raises:
        UserError: if there is no such file, or the code does not build a network for the task.
    """
    if isinstance(network, KerasFile):
        if not Path(network.path).is_file():
            raise UserError(f"network: {network.path}: no such file; give a .keras or .h5 file")
        return sha256_of(Path(network.path))
    if isinstance(network, PythonFunction):
        with needs_extra("compress"):
            import tf_keras
        tf_keras.backend.clear_session()  # Keras numbers the names it makes up, from here on
        model, _ = baseline(network, None, task, seed=seed)
        digest = hashlib.sha256(model.to_json().encode())
        for weight in model.get_weights():
            digest.update(weight.tobytes())
        return digest.hexdigest()
    return None
