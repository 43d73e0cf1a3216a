import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from deploy import bench as bench_module
from deploy.bench import Bench, Children, bench, race, speedup
from deploy.bench_child import (
    Conditions,
    Opened,
    OpenJob,
    SessionTimes,
    Timed,
    TimeJob,
    random_inputs,
)
from deploy.errors import UserError
from deploy.intervals import bootstrap_mean, student_quantile
from deploy.machine import this_environment
from deploy.record import Interval, Measurement, SessionOptions
from deploy.session import open_model, ort_options
from tests.deploy import tiny_onnx

QUICK = Bench(processes=5, sessions_per_process=1, rounds=2, block_ms=0.2, batch=4)


def write(path, content):
    path.write_bytes(content)
    return path


@pytest.fixture
def tiny(tmp_path):
    return write(tmp_path / "tiny.onnx", tiny_onnx.linear(np.eye(4)))


RUN = subprocess.run


def children():
    """The commands of this process's children, but for the `ps` that lists them."""
    listed = RUN(["ps", "-eo", "ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 1) for line in listed.splitlines()]
    return [row[1] for row in rows if row[0] == str(os.getpid()) and "ps -eo" not in row[1]]


def conditions(folder, **changes):
    usual = {"session": SessionOptions(), "batch": 2, "seed": 0, "inputs": None}
    return Conditions(**{**usual, "trace": str(folder / "trace"), **changes})


def time_job(folder, *models, sessions=1):
    return TimeJob(
        models=tuple(map(str, models)),
        conditions=conditions(folder),
        process=0,
        sessions=sessions,
        rounds=2,
        block_ms=0.1,
    )


# The statistics, on drawn medians: what the bench would see on machines of a known kind.


def drawn(rng, *, processes=10, sessions=2, trials=1000, model_spread=0.0, faster=1.0):
    """Medians of two models, whose spread has three sources.

    A process slows both models, a process may slow one model (``model_spread``), and every session
    has its own luck.
    """
    for _ in range(trials):
        process = rng.normal(0, 0.1, (processes, 1))
        model = rng.normal(0, model_spread, (2, processes, 1))
        first, second = np.exp(process + model + rng.normal(0, 0.05, (2, processes, sessions)))
        yield first, second / faster


@pytest.mark.parametrize("processes", [5, 10])
def test_two_equal_models_are_called_different_in_5_of_100_trials_or_fewer(processes):
    rng = np.random.default_rng(5)
    trials = drawn(rng, processes=processes)
    called = sum(speedup(first, second, rng).excludes(1) for first, second in trials)
    assert called <= 64  # 5 % of 1000, and 2 standard errors of the simulation


def test_the_bootstrap_alone_holds_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(6)
    values = rng.normal(3, 1, (1000, 10))
    missed = sum(bootstrap_mean(sample, rng).excludes(3) for sample in values)
    assert 30 <= missed <= 70


def test_sessions_of_one_process_are_not_taken_for_independent_ones():
    rng = np.random.default_rng(10)
    trials = drawn(rng, sessions=8, trials=500, model_spread=0.1)
    called = sum(speedup(first, second, rng).excludes(1) for first, second in trials)
    assert called <= 35  # 5 % of 500, and 2 standard errors of the simulation


def test_sessions_that_all_differ_count_as_noise_however_many_calls_each_made():
    # A session runs at 1.4 or 1.0, as seen on real machines.
    rng = np.random.default_rng(8)
    called = 0
    for _ in range(500):
        first, second = np.where(rng.random((2, 10, 2)) < 0.3, 1.4, 1.0)
        called += speedup(first, second, rng).excludes(1)
    assert called <= 35


@pytest.mark.parametrize("faster", [1.1, 1 / 1.1])
def test_a_tenth_faster_or_slower_is_found_most_of_the_time(faster):
    rng = np.random.default_rng(9)
    trials = drawn(rng, trials=200, faster=faster)
    found = [speedup(first, second, rng) for first, second in trials]
    right = sum(i.low > 1 if faster > 1 else i.high < 1 for i in found)
    assert right >= 180


def test_a_speedup_is_the_ratio_of_the_times_and_a_whole_process_slowing_down_cancels():
    slow_machine = np.array([[1.0], [9.0], [1.0], [4.0], [1.0], [2.0]])
    ratio = speedup(2 * slow_machine, slow_machine, np.random.default_rng(0))
    assert ratio.value == pytest.approx(2)
    # Nothing varies but the machine: what is left is the systematic part.
    assert (ratio.low, ratio.high) == pytest.approx((2 / 1.01, 2 * 1.01))


@pytest.mark.parametrize(
    ("probability", "freedom", "quantile"),
    [(0.975, 1, 12.7062), (0.975, 2, 4.3027), (0.95, 7, 1.8946), (0.975, 30, 2.0423)],
)
def test_students_quantile_is_that_of_the_tables(probability, freedom, quantile):
    assert student_quantile(probability, freedom) == pytest.approx(quantile, abs=5e-5)


# The bench itself, on models that take microseconds.


def test_a_measurement_has_a_latency_per_model_in_the_order_given(tmp_path, tiny):
    large = write(tmp_path / "large.onnx", tiny_onnx.linear(np.zeros((4, 200_000))))
    seen = []
    measured = bench(
        [tiny, large], QUICK, seed=3, on_progress=lambda done, total: seen.append((done, total))
    )
    first, second = measured.latencies
    assert seen == [(done, 11) for done in range(1, 12)]
    assert (measured.processes, measured.sessions_per_process) == (5, 1)
    assert measured.session == SessionOptions()
    assert (first.speedup.low, first.speedup.value, first.speedup.high) == (1, 1, 1)
    assert second.speedup.high < 1
    assert second.speedup.value == pytest.approx(first.p50_ms.value / second.p50_ms.value)
    for latency in measured.latencies:
        assert latency.p50_ms.low <= latency.p50_ms.value <= latency.p50_ms.high
        assert 0 < latency.p50_ms.value <= latency.p90_ms <= latency.p99_ms
        assert latency.load_ms > 0
        assert latency.throughput_per_s > 0
        assert latency.batch == 4
    # 4 × 200,000 floats, at least, and neither number that of the parent.
    assert second.peak_rss_bytes > first.peak_rss_bytes + 3_000_000
    assert msgspec.json.decode(msgspec.json.encode(measured), type=Measurement) == measured


def test_a_child_times_every_session_of_every_model_with_the_options_that_ship(tiny, tmp_path):
    other = write(tmp_path / "other.onnx", tiny_onnx.linear(np.eye(3), batch="n"))
    timed = bench_module._run_child(time_job(tmp_path, tiny, other, sessions=3), Timed, 60)
    assert [len(sessions) for sessions in timed.models] == [3, 3]
    assert 0 <= timed.waited <= 1
    assert Bench(threads=2).session == SessionOptions(threads=2)
    assert ort_options(Bench(threads=2).session).intra_op_num_threads == 2


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int8", "int64"])
def test_random_inputs_have_the_models_type_and_come_from_the_seed(dtype):
    cast = tiny_onnx.model(
        [("Cast", ["x"], ["y"], {"to": 1})],
        inputs={"x": (dtype, ("n", 2, 3))},
        outputs={"y": ("float32", ("n", 2, 3))},
    )
    model = open_model(cast)
    inputs = random_inputs(model, 50, seed=1)
    assert (inputs.shape, inputs.dtype) == ((50, 2, 3), dtype)
    assert len(np.unique(inputs)) > 1
    assert np.array_equal(inputs, random_inputs(model, 50, seed=1))
    assert model.run(inputs).shape == (50, 2, 3)


def only_zeros_pass():
    """Looks its input up in a table of one row: any code but 0 is an error at run time."""
    return tiny_onnx.model(
        [("Gather", ["table", "x"], ["y"])],
        inputs={"x": ("int64", ("n", 2))},
        outputs={"y": ("float32", ("n", 2))},
        initializers={"table": np.float32([7])},
    )


def test_inputs_that_are_given_are_used(tmp_path):
    path = write(tmp_path / "zeros.onnx", only_zeros_pass())
    given = tmp_path / "given.npy"
    np.save(given, np.zeros((2, 2)))
    job = OpenJob(
        models=(str(path),),
        conditions=conditions(tmp_path, inputs=str(given), batch=5),
    )
    assert bench_module._run_child(job, Opened, 60).load_ms > 0


def test_a_model_that_fails_while_running_is_named_with_the_reason(tmp_path):
    path = write(tmp_path / "zeros.onnx", only_zeros_pass())
    with pytest.raises(UserError, match=r"zeros\.onnx: the process that ran it failed.*Gather"):
        bench([path], QUICK, seed=0)


def test_given_inputs_that_do_not_fit_are_refused(tiny):
    with pytest.raises(UserError, match=r"tiny\.onnx: inputs of shape \(3, 9\).*\(n, 4\)"):
        bench([tiny], QUICK, seed=0, inputs=np.zeros((3, 9)))


def test_a_model_of_one_sample_a_call_cannot_be_timed_in_batches(tmp_path):
    path = write(tmp_path / "single.onnx", tiny_onnx.linear(np.eye(2), batch=1))
    with pytest.raises(UserError, match=r"single\.onnx: takes one sample at a time.*batch of 4"):
        bench([path], QUICK, seed=0)


def test_a_missing_model_is_named(tiny):
    missing = tiny.with_name("missing.onnx")
    with pytest.raises(UserError, match=r"missing\.onnx: no such file"):
        bench([missing], QUICK, seed=0)


def test_no_models_are_refused():
    with pytest.raises(UserError, match="one model or more, got none"):
        bench([], QUICK, seed=0)


@pytest.mark.parametrize(
    ("field", "value"), [("processes", 4), ("threads", 0), ("batch", 0), ("block_ms", 0.0)]
)
def test_a_setting_out_of_range_names_its_field(field, value):
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.convert({field: value}, Bench)


# What ends a child.


@pytest.fixture
def dying(monkeypatch):
    """Make children run a Python text in place of the bench."""

    def replace(text):
        monkeypatch.setattr(
            subprocess, "run", lambda command, **how: RUN([command[0], "-c", text], **how)
        )

    return replace


IN_THE_SECOND_MODEL = """
import os, signal
from deploy import bench_child
opened = bench_child.open_model
def open_model(path, options):
    if path.name == "second.onnx":
        {what}
    return opened(path, options)
bench_child.open_model = open_model
bench_child.main()
"""


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL; is memory short"),
        ("os.abort()", "was killed by SIGABRT"),
        ("os._exit(3)", "failed with exit code 3: it said nothing"),
        ("raise ValueError('no such kernel')", "failed with exit code 1: ValueError: no such ke"),
    ],
)
def test_a_child_that_dies_names_the_model_it_was_at_and_the_reason(
    tiny, tmp_path, dying, what, reason
):
    second = write(tiny.with_name("second.onnx"), tiny.read_bytes())
    dying(IN_THE_SECOND_MODEL.format(what=what))
    with pytest.raises(UserError, match=rf"second\.onnx: the process that ran it {reason}"):
        bench_module._run_child(time_job(tmp_path, tiny, second), Timed, 60)


def test_a_child_that_dies_before_it_is_at_any_model_names_them_all(tiny, tmp_path, dying):
    second = write(tiny.with_name("second.onnx"), tiny.read_bytes())
    dying("import sys; sys.exit('no room left')")
    job = time_job(tmp_path, tiny, second)
    Path(job.conditions.trace).write_bytes(b"\1\0\0\0")  # where the child before this one was
    with pytest.raises(UserError, match=r"tiny\.onnx .*second\.onnx: .*: no room left"):
        bench_module._run_child(job, Timed, 60)


def test_a_child_that_takes_too_long_is_ended_and_named(tiny, dying):
    dying("import time; time.sleep(100)")
    hasty = msgspec.structs.replace(QUICK, time_limit_s=0.2)
    before = children()  # other tests keep servers
    with pytest.raises(UserError, match=r"tiny\.onnx: .* took more than the time limit of 0\.2 s"):
        bench([tiny], hasty, seed=0)
    assert set(children()) <= set(before)


def test_an_interrupt_leaves_no_child_behind(tmp_path, tiny):
    text = (
        # A suite that runs in the background hands down an ignored SIGINT.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys; from pathlib import Path; from deploy.bench import Bench, bench\n"
        "print('begun', flush=True)\n"
        f"bench([Path({str(tiny)!r})], Bench(rounds=100000), seed=0,"
        " on_progress=lambda done, _: print(done, flush=True))"
    )
    root = Path(bench_module.__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", text], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as parent:
        while parent.stdout.readline() != b"3\n":  # the openings are over, the long child begins
            assert parent.poll() is None
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        if not children.exists():
            parent.kill()
            pytest.skip("this system does not list a process's children")
        while not (child := children.read_text().split()):
            time.sleep(0.01)
        parent.send_signal(signal.SIGINT)
        parent.communicate(timeout=30)
    assert parent.returncode != 0
    # Caught while it was being started, a child ends by itself: it was never told its job.
    for _ in range(500):
        if not Path(f"/proc/{child[0]}").exists():
            return
        time.sleep(0.02)
    pytest.fail(f"process {child[0]} goes on")


# What is said of a noisy machine.

CALM = msgspec.structs.replace(this_environment(), load_average=0.1, cores=2, governor=None)


def warned(*, environment=CALM, settings=QUICK, waited=0.0, steady=True, spread=0.0, pace=1.0):
    """Return what is said of two models in five processes, the last of which took ``pace`` times as long.

    By ``spread`` one model is faster and the other slower, so that it says nothing of the machine.
    """
    rng = np.random.default_rng(0)

    def session(p50):
        return SessionTimes(
            p50_ms=p50, p90_ms=2 * p50, p99_ms=3 * p50, batch_p50_ms=p50, steady=steady
        )

    def process(pace):
        apart = float(np.exp(rng.normal(0, spread)))
        return Timed(models=((session(pace * apart),), (session(pace / apart),)), waited=waited)

    timed = [process(1.0), process(1.0), process(1.0), process(1.0), process(pace)]
    opened = [Opened(load_ms=1.0, empty_rss_bytes=1, peak_rss_bytes=2, batch_peak_rss_bytes=3)]
    latencies = [bench_module._latency(i, timed, opened, 1, rng) for i in range(2)]
    return bench_module._warnings(["a.onnx", "b.onnx"], environment, settings, timed, latencies)


def test_a_calm_machine_gives_no_warning():
    assert warned() == ()
    assert warned(pace=1.1) == ()
    assert warned(environment=msgspec.structs.replace(CALM, governor="performance")) == ()
    assert warned(environment=msgspec.structs.replace(CALM, load_average=None)) == ()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (
            {"environment": msgspec.structs.replace(CALM, load_average=2.5)},
            "the load average was 2.5 on 2 cores when the bench began",
        ),
        (
            {"environment": msgspec.structs.replace(CALM, governor="powersave")},
            "the CPU governor is 'powersave', not 'performance'",
        ),
        ({"waited": 0.3}, "the bench waited 30% of its time for a processor that others held"),
        ({"steady": False}, "10 of 10 sessions never settled to within 5% while warming up"),
        ({"spread": 0.3}, "the speed-up of b.onnx is known to ±"),
        (
            {"pace": 1.4},
            "this machine changed its pace: the models took 1.4 times as long in one process as in",
        ),
    ],
)
def test_each_kind_of_noise_is_said(what, said):
    (warning,) = warned(**what)
    assert warning.startswith(said)


def test_with_several_threads_a_resting_first_thread_is_no_noise():
    assert warned(settings=msgspec.structs.replace(QUICK, threads=2), waited=0.3) == ()


def test_a_race_opens_no_model_by_itself_and_says_how_much_faster_each_is(tiny, monkeypatch):
    def refuse(*_):
        raise AssertionError("a race measures no memory")

    monkeypatch.setattr(Children, "opened", refuse)
    heard = []
    first, second = race([tiny, tiny], QUICK, seed=0, on_progress=lambda *at: heard.append(at))
    assert first == Interval(value=1.0, low=1.0, high=1.0)
    assert second.low < second.value < second.high
    assert heard[-1] == (QUICK.processes, QUICK.processes)
