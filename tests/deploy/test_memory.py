"""Limits of memory, in processes of their own: a limit that binds is no guest in the test's."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import deploy
from deploy import session
from deploy.bench import Bench, children
from deploy.bundle.make import bundle_model
from deploy.errors import UserError
from deploy.memory import DoesNotFitError, limited_memory, peak_rss_bytes
from deploy.record import SessionOptions
from deploy.session import open_model, ort_options
from tests.deploy import tiny_onnx
from tests.deploy.bundle import tiny

ROOT = Path(deploy.__file__).resolve().parents[1]
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to a limit")
QUICK = Bench(processes=5, sessions_per_process=1, rounds=2, block_ms=0.2, batch=4)


@pytest.fixture
def large(tmp_path):
    """A model of 32 MB."""
    path = tmp_path / "large.onnx"
    path.write_bytes(tiny_onnx.linear(np.zeros((4, 2_000_000))))
    return path


def lightship(*words):
    return subprocess.run(
        [sys.executable, "-m", "deploy", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


@linux
def test_a_model_that_does_not_fit_says_what_it_needed_and_one_that_does_runs(large):
    with children([large], QUICK, seed=0) as run:
        free = run.opened(0)
        assert free.empty_rss_bytes + 32_000_000 < free.peak_rss_bytes <= free.batch_peak_rss_bytes
        with pytest.raises(DoesNotFitError, match=r"does not fit into .*one sample needed .* MB"):
            run.opened(0, free.empty_rss_bytes + 20_000_000)
        run.opened(0, free.batch_peak_rss_bytes + 100_000_000)


@linux
def test_models_that_fit_one_by_one_are_timed_together_within_the_same_limit(large):
    with children([large, large], QUICK, seed=0) as run:
        limit = run.opened(0).batch_peak_rss_bytes + 20_000_000
        assert len(run.timed(0, limit).models) == 2


LEAKING = """
import numpy as np
from deploy import bench_child
opened = bench_child.open_model
kept = []
def open_model(path, options):
    model = opened(path, options)
    run = model.run
    def leak(inputs):
        kept.append(np.ones(1 << 20))
        return run(inputs)
    model.run = leak
    return model
bench_child.open_model = open_model
bench_child.main()
"""


@linux
def test_a_model_that_takes_more_with_every_run_is_ended_while_it_is_timed(large, monkeypatch):
    run_process = subprocess.run
    monkeypatch.setattr(
        subprocess, "run", lambda words, **how: run_process([words[0], "-c", LEAKING], **how)
    )
    with children([large], QUICK, seed=0) as run:
        limit = run.opened(0).batch_peak_rss_bytes + 50_000_000
        with pytest.raises(DoesNotFitError, match=r"large\.onnx: does not fit into .* while it is"):
            run.timed(0, limit)


@linux
def test_bench_refuses_a_model_that_does_not_fit_in_one_line(large):
    refused = lightship("bench", large, "--trust-model", "--memory-limit", "5MB")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("error: ")
    assert "does not fit into 5 MB: one sample needed" in refused.stderr


@linux
def test_selftest_and_predict_hold_to_the_limit(tmp_path):
    model, data = tiny.write_model(tmp_path)
    bundle_model(model, data, tmp_path / "m.lship")
    np.save(tmp_path / "x.npy", tiny.samples(2).x)
    words = [tmp_path / "m.lship", "--memory-limit"]
    assert lightship("selftest", *words, "2GB").returncode == 0
    assert lightship("predict", tmp_path / "m.lship", tmp_path / "x.npy").returncode == 0
    for command in (
        ["selftest", *words, "5MB"],
        ["predict", tmp_path / "x.npy", *words[1:], "5MB"],
    ):
        if command[0] == "predict":
            command.insert(1, tmp_path / "m.lship")
        refused = lightship(*command)
        assert refused.returncode == 2
        (line,) = refused.stderr.splitlines()
        assert "does not fit into 5 MB" in line
        assert "it needed" in line


@linux
def test_the_limit_is_lifted_when_the_block_ends():
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(DoesNotFitError), limited_memory(peak_rss_bytes() + 50_000_000):
        np.ones(10**9)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    with pytest.raises(ZeroDivisionError), limited_memory(peak_rss_bytes() + 50_000_000):
        raise ZeroDivisionError


def test_inputs_that_are_not_run_are_no_part_of_the_peak(tmp_path):
    path = tmp_path / "wide.onnx"
    path.write_bytes(tiny_onnx.linear(np.zeros((100_000, 2))))
    settings = Bench(processes=5, batch=64)
    with children([path], settings, seed=0) as run:
        seen = run.opened(0)
    assert seen.peak_rss_bytes + 20_000_000 < seen.batch_peak_rss_bytes  # 25.6 MB of inputs


def test_the_arena_is_what_the_options_say():
    assert ort_options(SessionOptions()).enable_cpu_mem_arena
    assert not ort_options(SessionOptions(arena=False)).enable_cpu_mem_arena
    assert Bench(arena=False).session == SessionOptions(arena=False)


def test_an_onnx_file_is_not_mapped_and_the_line_says_why(large, monkeypatch):
    with pytest.raises(UserError, match=r"mmap: ONNX Runtime maps only files in ORT format"):
        open_model(large, SessionOptions(mmap=True))
    monkeypatch.setattr(session.ort, "__version__", "1.25.1")
    assert (
        session.why_not_mapped(Path("m.ort")) == "needs ONNX Runtime 1.26 or newer, this is 1.25.1"
    )


@linux
@pytest.mark.skipif(session.why_not_mapped(Path("m.ort")) is not None, reason="too old to map")
def test_a_mapped_model_holds_its_weights_in_the_pages_of_its_file(tmp_path):
    # Weights of matrix products would be packed anew in any case; these are not.
    wide = (8_000_000,)
    large = tmp_path / "added.onnx"
    large.write_bytes(
        tiny_onnx.model(
            [("Add", ["x", "w"], ["y"])],
            inputs={"x": ("float32", ("n", *wide))},
            outputs={"y": ("float32", ("n", *wide))},
            initializers={"w": np.ones(wide, np.float32)},
        )
    )
    script = (
        "import sys, re\nimport numpy as np, onnxruntime as ort\nfrom pathlib import Path\n"
        "from deploy.session import open_model, ort_options\nfrom deploy.record import SessionOptions\n"
        "options = SessionOptions(mmap=sys.argv[2] == 'True')\n"
        "model = open_model(Path(sys.argv[1]), options)\n"
        "print(re.search(r'RssAnon:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])\n"
    )
    import onnxruntime as ort

    settings = ort_options(SessionOptions())
    settings.optimized_model_filepath = str(large.with_suffix(".ort"))
    settings.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(str(large), settings, providers=["CPUExecutionProvider"])
    held = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", script, large.with_suffix(".ort"), str(mmap)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
            ).stdout
        )
        for mmap in (False, True)
    ]
    assert held[1] + 25_000 < held[0]  # kB, of 32 MB of weights
