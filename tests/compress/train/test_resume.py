"""A training that is stopped and goes on ends with the bits of one that is not."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tf_keras

from compress.prune.magnitude import MagnitudePrune, magnitude_prune
from compress.train.checkpoint import Standing, read_checkpoint, write_checkpoint
from compress.train.fit import Fit, TrainingFiles, fit
from compress.train.optimizers import GradientDescent, Sgd
from compress.train.schedules import OneCycle
from deploy.errors import UserError
from tests.compress.train.tiny import EVERYTHING, everything, numbers

ROOT = Path(__file__).parents[3]


class StopError(Exception):
    """What stops a training from outside."""


def stopping(after, error=StopError):
    left = [after]

    def count(_batch, logs):
        left[0] -= 1
        if not left[0]:
            raise error

    return tf_keras.callbacks.LambdaCallback(on_batch_end=count)


def child(*words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "tests.compress.train.tiny", *map(str, words)]
    return subprocess.run(
        command, check=False, env=environment, cwd=ROOT, capture_output=True, text=True
    )


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_process_killed_in_the_middle_of_an_epoch_goes_on_to_the_same_bits(tmp_path):
    checkpoint, result = tmp_path / "standing.npz", tmp_path / "weights.npz"
    killed = child("kill", 13, checkpoint)  # the third of five steps of the third epoch
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = child("finish", checkpoint, result)
    assert resumed.returncode == 0, resumed.stderr
    model = everything()
    history = fit(model, numbers(), EVERYTHING, seed=3)
    with np.load(result) as got:
        assert list(got["began"]) == [2, 3, 4, 5]
        assert list(got["losses"]) == [epoch["val_loss"] for epoch in history.epochs]
        assert int(got["kept"]) == history.kept_epoch
        assert same([got[str(at)] for at in range(len(model.weights))], model.get_weights())


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": Sgd(), "schedule": OneCycle(momentum=(0.8, 0.9))},
        {"optimizer": GradientDescent(learning_rate=0.5)},
    ],
    ids=["one-cycle", "full-batch"],
)
def test_an_interrupt_is_written_down_at_once_and_gone_on_from(tmp_path, changes):
    config = msgspec.structs.replace(EVERYTHING, **changes)
    whole, model = everything(), everything()
    fit(whole, numbers(), config, seed=3)
    files = TrainingFiles(checkpoint=tmp_path / "standing.npz", every_seconds=1e9)
    callbacks = [stopping(4, KeyboardInterrupt)]
    with pytest.raises(KeyboardInterrupt):
        fit(model, numbers(), config, seed=3, files=files, callbacks=callbacks)
    seen = []
    resumed = everything()
    fit(resumed, numbers(), config, seed=3, files=files, on_epoch=seen.append)
    assert len(seen) == (6 if changes["optimizer"] != GradientDescent(learning_rate=0.5) else 3)
    assert same(resumed.get_weights(), whole.get_weights())


def test_pruning_goes_on_with_its_masks_and_its_count_of_steps(tmp_path):
    step = MagnitudePrune(
        final_sparsity=0.8, fine_tune=Fit(epochs=4, batch_size=20), updates_per_epoch=3
    )
    files = TrainingFiles(checkpoint=tmp_path / "standing.npz", every_seconds=0)

    def stop(end):
        if end.epoch == 2:
            raise StopError

    def pruned(**settings):
        return magnitude_prune(everything(), step, numbers(), seed=0, **settings)[0].get_weights()

    with pytest.raises(StopError):
        pruned(files=files, on_epoch=stop)
    seen = []
    resumed = pruned(files=files, on_epoch=seen.append)
    assert [end.epoch for end in seen] == [2, 3, 4]  # the last step of epoch 2 was written down
    assert same(resumed, pruned())


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 4},
        {"config": msgspec.structs.replace(EVERYTHING, epochs=7)},
        {"task": dataclasses.replace(numbers(), digest="others")},
        {"key": "another step"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_checkpoint_of_another_training_is_not_gone_on_from(tmp_path, other):
    path = tmp_path / "standing.npz"
    asked = {"seed": 3, "config": EVERYTHING, "task": numbers(), "key": ""}

    def train(seed, config, task, key, **more):
        files = TrainingFiles(checkpoint=path, key=key, every_seconds=0)
        fit(everything(), task, config, seed=seed, files=files, **more)

    with pytest.raises(StopError):
        train(**asked, callbacks=[stopping(12)])
    seen = []
    watch = tf_keras.callbacks.LambdaCallback(on_epoch_begin=lambda at, _: seen.append(at))
    with pytest.raises(StopError):
        train(**{**asked, **other}, callbacks=[watch, stopping(1)])
    assert seen == [0]


def test_a_checkpoint_is_what_was_written_and_a_damaged_one_is_none(tmp_path):
    path = tmp_path / "folder" / "standing.npz"
    standing = Standing(fingerprint="f", epochs=(), best_epoch=2)
    write_checkpoint(path, standing, {"a": np.arange(100)})
    found, arrays = read_checkpoint(path, fingerprint="f")
    assert found == standing
    assert np.array_equal(arrays["a"], np.arange(100))
    assert read_checkpoint(path, fingerprint="g") is None
    assert list(path.parent.iterdir()) == [path]
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert read_checkpoint(path, fingerprint="f") is None
    path.write_bytes(bytes(byte ^ 1 if at == 300 else byte for at, byte in enumerate(data)))
    assert read_checkpoint(path, fingerprint="f") is None


def test_a_checkpoint_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    path, standing = (
        tmp_path / "file" / "standing.npz",
        Standing(fingerprint="", epochs=(), best_epoch=None),
    )
    with pytest.raises(UserError, match="cannot keep a checkpoint"):
        write_checkpoint(path, standing, {})
