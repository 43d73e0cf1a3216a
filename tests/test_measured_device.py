"""The table of docs/device.md says what the scripts it is made from print."""

import importlib.machinery
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from deploy.report.results import read_results

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs/results"


@pytest.fixture(scope="module")
def script():
    """The script as a module: it has no suffix to be imported by."""
    loader = importlib.machinery.SourceFileLoader(
        "measure_device", str(ROOT / "scripts/measure_device")
    )
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_loader("measure_device", loader)
    )
    sys.modules["measure_device"] = module  # dataclasses look there
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    loader.exec_module(module)
    sys.dont_write_bytecode = before
    yield module
    del sys.modules["measure_device"]


def cells(row):
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


CALLS = {
    "session.run": 30.0,
    "I/O binding, copied in and out: over session.run": -3.0,
    "predict_prepared: over session.run": 0.5,
    "predict_prepared, label, probability: over session.run": 10.5,
    "predict (raw sample): over session.run": 12.0,
}


def test_what_is_reached_and_what_is_not_are_told_apart(script):
    seen = {"call_us": CALLS, "first_answer_s": {"deploy.load": 0.36, "bare session": 0.3}}
    rows = [cells(row) for row in script.runtime_rows(seen)]
    assert rows[1][1:] == ["-3.0 µs", "", ""]
    assert rows[2] == ["`predict_prepared` over it", "0.5 µs", "≤ 10 µs", "yes"]
    assert rows[3][1:] == ["10.5 µs", "≤ 10 µs", "no"]
    assert rows[5] == ["import, load and first answer", "0.360 s", "≤ 0.35 s", "no"]


def served(**overload):
    return {
        "batch": 32, "share_of_session.run": 0.71, "server_samples_per_s": 9000, "p50_ms": 1.0,
        "p99_ms": 2.0, "lost": 0, "share_of_capacity_after_it": 1.0,
        "overload": {
            "offered_times_capacity": 2.0, "share_of_capacity": 0.9, "refused": 7, "p99_ms": 9.0,
            **overload,
        },
    }  # fmt: skip


def test_a_server_that_refuses_nobody_at_twice_its_load_has_not_shown_that_it_does(script):
    assert [cells(row)[3] for row in script.serving_rows(served())] == ["yes", "", "yes", ""]
    assert cells(list(script.serving_rows(served(refused=0)))[2])[3] == "no"
    assert cells(list(script.serving_rows({**served(), "lost": 1}))[2])[3] == "no"


def test_a_server_that_was_not_measured_is_no_success(script):
    (row,) = script.serving_rows(None)
    assert cells(row)[1:] == ["not measured: `wrk` is not installed", "≥ 70 %", ""]


def test_every_network_has_a_line_and_its_fastest_good_variant_in_it(script):
    rows = [cells(row) for row in script.speed_rows(RESULTS)]
    assert len(rows) == len(script.PROMISES)
    for promise, row in zip(script.PROMISES, rows, strict=True):
        assert row[0].startswith(promise.network)
        name = row[1].split("`")[1]
        known = {
            variant.name
            for recipe in RESULTS.glob(promise.recipes)
            for variant in read_results(recipe / "seed-0.json").variants
        }
        assert name in known


def test_a_variant_that_is_fast_and_wrong_is_not_the_fastest(script, tmp_path):
    results = read_results(RESULTS / "lenet_5/seed-0.json")
    wrong = msgspec.structs.replace(results.variants[1], name="wrong", score=0.9, speedup=99.0)
    planted = msgspec.structs.replace(results, variants=(results.variants[0], wrong))
    (tmp_path / "lenet_5").mkdir()
    (tmp_path / "lenet_5/seed-0.json").write_bytes(msgspec.json.encode(planted))
    row = cells(next(iter(script.speed_rows(tmp_path))))
    assert row[1].startswith("1.00×")
    assert row[2:] == ["≥ 8×", "no"]


def test_lightship_adds_little_to_numpy_and_onnxruntime():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/measure_bytes"], capture_output=True, text=True, check=True
    )
    seen = json.loads(done.stdout)
    assert seen["added_bytes"] == sum(seen["added"].values()) <= 15_000_000
    assert set(seen["added"]) >= {"click", "msgspec", "lightship"}
    assert not set(seen["added"]) & {"numpy", "onnxruntime", "tensorflow", "protobuf"}


@pytest.mark.slow
def test_a_rough_look_prints_the_whole_table():
    pytest.importorskip("starlette", reason="the extra 'serve' is not installed")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/measure_device", "--quick"],
        capture_output=True, text=True, check=True, timeout=600,
    )  # fmt: skip
    assert "| what | seen | wanted | reached |" in done.stdout
    assert "import, load and first answer" in done.stdout
    assert ("samples/s" in done.stdout) == (shutil.which("wrk") is not None)
