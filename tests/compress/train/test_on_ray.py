"""Trials on a real Ray cluster of processes on this machine."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compress.train.on_ray import OnRay
from compress.train.tune import SuccessiveHalving, Tune, search
from deploy.errors import UserError
from tests.compress.train import trials

pytest.importorskip("ray", reason="the extra cluster is not installed")
pytest.importorskip("optuna", reason="the extra tune is not installed")

RAY = Path(sys.executable).parent / "ray"
# Ray's own sockets and files are closed by its processes, not by its driver.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning",
                                        "ignore::ResourceWarning", "ignore::FutureWarning")  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head with two cores; nothing leaves this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), *filter(None, sys.path)]),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    words = ["start", "--head", "--node-ip-address", "127.0.0.1", "--port", address.split(":")[1],
             "--num-cpus", "2", "--include-dashboard", "false",
             "--object-store-memory", "100000000", "--block"]  # fmt: skip
    log = tmp_path_factory.mktemp("ray") / "log"
    with log.open("wb") as said:
        # Not `ray stop`, which would end every cluster of this machine.
        head = subprocess.Popen([RAY, *words], env=environment, stdout=said, stderr=said)
        deadline = time.monotonic() + 60
        while "Ray runtime started" not in log.read_text():
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield address
        head.terminate()
        head.wait(30)


def run(folder, address, objective, tune, tables):
    workers = OnRay(objective, address=address)
    return search("s", tables, tune, metric="val_accuracy", seed=0, folder=folder, workers=workers)


@pytest.mark.slow
def test_trials_run_in_the_processes_of_a_cluster(cluster, tmp_path):
    tables = {"x": {"int": [0, 9]}}
    found = run(tmp_path / "search", cluster, trials.Slow(tmp_path), Tune(method="grid"), tables)
    processes = {path.name for path in tmp_path.iterdir() if path.name.isdigit()}
    assert len(processes) >= 2
    assert str(os.getpid()) not in processes
    assert found.best_trial.values == {"x": 9}
    assert [trial.values["x"] for trial in found.trials] == list(range(10))


@pytest.mark.slow
def test_a_killed_process_of_a_cluster_costs_its_trial_and_nothing_else(cluster, tmp_path):
    tables = {"x": {"int": [0, 5]}}
    found = run(tmp_path, cluster, trials.dies_at_2, Tune(method="grid"), tables)
    assert [trial.values["x"] for trial in found.trials if trial.state == "failed"] == [2]
    assert found.best_trial.values == {"x": 3}


@pytest.mark.slow
def test_pruning_reaches_into_a_cluster(cluster, tmp_path):
    tune = Tune(method="random", trials=12, halving=SuccessiveHalving())
    found = run(tmp_path, cluster, trials.peak, tune, {"x": {"uniform": [0, 9]}})
    assert any(trial.state == "pruned" and len(trial.epochs) < 4 for trial in found.trials)
    assert found.best_trial is not None


@pytest.mark.parametrize("address", ["127.0.0.1:1", "somewhere"])
def test_no_cluster_at_the_address_is_one_line(address, tmp_path):
    with pytest.raises(UserError, match=rf"--ray {address}: no Ray cluster answers") as caught:
        run(tmp_path, address, trials.peak, Tune(method="grid"), {"x": {"int": [0, 1]}})
    assert "\n" not in str(caught.value)
