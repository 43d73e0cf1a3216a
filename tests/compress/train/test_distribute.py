"""Several processes train as one would: they meet, share each batch, and survive the loss of one."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tf_keras
from hypothesis import given
from hypothesis import strategies as st

from compress.train.distribute import Cluster, Worker, _free_ports, meet, read_tf_config
from deploy.errors import UserError

ROOT = Path(__file__).parents[3]
COMMON = ["--data", "mnist-sample", "--network", "lenet_300_100", "--batch-size", "64"]
CHANGES = '[{"kind": "shift"}, {"kind": "mixup"}]'
DRAWS = ["--augment", CHANGES, "--set", "regularise.dropout=0.2"]
TRAIN = [*COMMON, *DRAWS, "--train-samples", "601", "--epochs", "3"]
PATIENCE_SECONDS = 400
"""For one training, on a machine that is busy with others."""


def start(*words, out, tf_config=None):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TF_CONFIG", None)
    if tf_config is not None:
        environment["TF_CONFIG"] = json.dumps(tf_config)
    run = "from compress.cli import main; main()"
    command = [sys.executable, "-c", run, "train", *map(str, words), "--out", str(out)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(process):
    said, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, errors
    return said


def curves(out):
    with out.with_suffix(".epochs.csv").open() as file:
        return [
            [float(value) for name, value in row.items() if name != "seconds"]
            for row in csv.DictReader(file)
        ]


def weights(out):
    return tf_keras.models.load_model(out, compile=False).get_weights()


def addresses(count):
    return tuple(f"127.0.0.1:{port}" for port in _free_ports(count))


def same_result(got, expected):
    np.testing.assert_allclose(curves(got), curves(expected), rtol=1e-5)
    for one, other in zip(weights(got), weights(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_two_workers_learn_what_one_learns_from_the_same_batches(tmp_path):
    one, two = tmp_path / "one.keras", tmp_path / "two.keras"
    finished(start(*TRAIN, out=one))
    finished(start(*TRAIN, "--local-workers", 2, out=two))
    same_result(two, one)
    assert '"workers": 2' in two.with_name("two.keras.json").read_text()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("two")) == [
        "two.epochs.csv",
        "two.keras",
        "two.keras.json",
    ]


@pytest.mark.slow
def test_two_workers_answer_in_the_unit_of_a_regressions_target(tmp_path):
    one, two = tmp_path / "one.keras", tmp_path / "two.keras"
    words = ["--data", "diabetes", "--task", "regression", "--network", "mlp", "--batch-size", "32"]
    finished(start(*words, "--epochs", 2, out=one))
    finished(start(*words, "--epochs", 2, "--local-workers", 2, out=two))
    sample = np.zeros((1, 10), np.float32)
    got, expected = (
        tf_keras.models.load_model(path, compile=False)(sample).numpy() for path in (two, one)
    )
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    assert expected.item() > 50


@pytest.mark.slow
def test_tf_config_alone_brings_two_workers_together(tmp_path):
    one, two = tmp_path / "one.keras", tmp_path / "two.keras"
    finished(start(*TRAIN, out=one))
    cluster = {"worker": addresses(2)}
    started = [
        start(*TRAIN, out=two, tf_config={"cluster": cluster, "task": task})
        for task in ({"type": "worker", "index": 0}, {"type": "worker", "index": 1})
    ]
    for process in started:
        finished(process)
    same_result(two, one)
    assert '"workers": 2' in two.with_name("two.keras.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_worker_killed_and_started_again_ends_with_the_result_of_one_that_was_not(
    tmp_path, killed
):
    words = [*COMMON, *DRAWS, "--train-samples", 601, "--epochs", 120]
    whole, cut = tmp_path / "whole.keras", tmp_path / "cut.keras"
    finished(start(*words, "--local-workers", 2, out=whole))
    together = [*words, "--workers", ",".join(addresses(2)), "--index"]
    workers = [start(*together, index, out=cut) for index in (0, 1)]
    checkpoint = cut.with_name("cut.keras.unfinished")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    workers[killed].send_signal(signal.SIGKILL)
    workers[killed].communicate()
    assert workers[1 - killed].poll() is None
    workers[killed] = start(*together, killed, out=cut)
    for worker in workers:
        finished(worker)
    same_result(cut, whole)


@pytest.mark.parametrize("index", [0, 1])
def test_a_worker_that_does_not_come_is_named_after_the_time_limit(index):
    cluster = Cluster(workers=addresses(2), index=index)
    missing = cluster.workers[1 - index]
    with pytest.raises(UserError, match=rf"{1 - index} \({missing}\) did not come within 0.3 s"):
        meet(cluster, about="", timeout_seconds=0.3)


def test_an_address_in_use_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        workers = (f"127.0.0.1:{taken.getsockname()[1]}", "127.0.0.1:9")
        with pytest.raises(UserError, match="cannot be used for worker 0"):
            meet(Cluster(workers=workers, index=0), about="", timeout_seconds=5)


def met(abouts, strangers=0):
    """Let workers meet, each about to do something; return what each was told."""
    workers, told = addresses(len(abouts)), {}

    def one(index):
        try:
            meet(Cluster(workers=workers, index=index), about=abouts[index], timeout_seconds=10)
            told[index] = None
        except UserError as error:
            told[index] = str(error)

    threads = [threading.Thread(target=one, args=(at,)) for at in range(len(abouts))]
    threads[0].start()
    time.sleep(0.2)
    for _ in range(strangers):
        with socket.create_connection(
            ("127.0.0.1", int(workers[0].rpartition(":")[2]))
        ) as stranger:
            stranger.sendall(b"PRI * HTTP/2.0\n")
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def test_workers_meet_and_pass_over_who_is_none_of_them():
    assert met(["same", "same", "same"], strangers=2) == {0: None, 1: None, 2: None}


def test_workers_of_different_trainings_are_told_so_on_both_sides():
    told = met(["one", "another"])
    assert all("not started for the same training" in told[index] for index in (0, 1))


@given(samples=st.integers(0, 300), count=st.integers(1, 4), each=st.integers(1, 3))
def test_workers_parts_are_the_batch_and_nearly_equal(samples, count, each):
    workers = [Worker(index=at, count=count, accelerators=count * each) for at in range(count)]
    parts = [worker.part(np.arange(samples)) for worker in workers]
    assert np.concatenate(parts).tolist() == list(range(samples))
    assert max(map(len, parts)) - min(map(len, parts)) <= each


@pytest.mark.parametrize(
    ("batch_size", "samples", "why"),
    [(1, 10, "less than a sample"), (4, 9, "leaves 1 of 9 samples"), (4, 10, None), (3, 9, None)],
)
def test_a_batch_too_small_for_all_workers_is_refused(batch_size, samples, why):
    got = Worker(count=2, accelerators=2).why_not_shared(batch_size=batch_size, samples=samples)
    assert got is None if why is None else why in (got or "")


@pytest.mark.parametrize(
    ("workers", "index", "why"),
    [
        (("a:1", "b"), 0, "HOST:PORT, got 'b'"),
        (("a:1", "b:70000"), 0, "HOST:PORT"),
        (("a:1", "a:1"), 0, "an address of its own"),
        (("a:1", "b:1"), 2, "index: 2 is none of 2 workers"),
    ],
)
def test_workers_that_cannot_be_are_refused(workers, index, why):
    with pytest.raises(UserError, match=why):
        Cluster(workers=workers, index=index)


def test_the_chief_of_tf_config_is_the_first_worker():
    text = '{"cluster": {"chief": ["c:1"], "worker": ["a:1", "b:1"]}, "task": {"type": "%s", "index": %d}}'
    assert read_tf_config(text % ("chief", 0)) == Cluster(workers=("c:1", "a:1", "b:1"), index=0)
    assert read_tf_config(text % ("worker", 1)) == Cluster(workers=("c:1", "a:1", "b:1"), index=2)


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        "{}",
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}',
        '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "worker", "index": 0}}',
    ],
)
def test_a_tf_config_of_another_form_is_refused(text):
    with pytest.raises(UserError, match="TF_CONFIG"):
        read_tf_config(text)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What trainings came to on one processor and on two, as ``two_accelerators`` names them."""
    out = tmp_path_factory.mktemp("shared") / "trained.npz"
    subprocess.run(
        [sys.executable, "-m", "tests.compress.train.two_accelerators", str(out)],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
    )
    with np.load(out) as found:
        return dict(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "training", ["noise and dropout", "full batch and dropout", "augmentation", "mixup"]
)
def test_what_is_drawn_does_not_depend_on_how_many_share_a_batch(shared, training):
    for what in ("curves", "weights"):
        one, two = (shared[f"{training}, {what}, {count}"] for count in (1, 2))
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_batch_normalisation_over_two_stays_near_that_of_one(shared):
    # One divides the variance that it remembers by n - 1, several by n; n is 756 here.
    curves, weights = (
        [shared[f"batch normalisation, {what}, {count}"] for count in (1, 2)]
        for what in ("curves", "weights")
    )
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-4)
    np.testing.assert_allclose(weights[1], weights[0], atol=1e-3)
