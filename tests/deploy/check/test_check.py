"""The gate: what passes, what fails, and what it refuses to guess."""

import json
import math
from xml.etree import ElementTree as ET

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from deploy.bench import Bench
from deploy.bundle.container import write_whole
from deploy.bundle.make import bundle_model
from deploy.check import formats
from deploy.check.accuracy import Accuracy
from deploy.check.int8 import products
from deploy.check.rules import Checked, Finding, Limits, look, overall, samples_needed
from deploy.check.run import _drop, _Pace, _Repeated, _require_one_task, _until_told, check
from deploy.cli import cli
from deploy.errors import UserError
from deploy.evalset import EvalSet
from deploy.machine import this_environment
from deploy.record import Interval, SessionOptions
from deploy.session import open_model
from tests.deploy import tiny_onnx
from tests.deploy.bundle import tiny

QUICK = Bench(processes=5, sessions_per_process=1, rounds=2, block_ms=0.2)


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A folder with a bundle, its model and its samples."""
    folder = tmp_path_factory.mktemp("check")
    model, data = tiny.write_model(folder)
    bundle_model(model, data, folder / "model.lship")
    return folder


def told(draw, limit, *, seconds=math.inf, systematic=0.0):
    """Let the gate decide on ``exp(draw(n)) <= limit``; each process takes a second."""
    clock = iter(range(100_000))
    rule = _Repeated(
        rule="max-p50-ratio", limit=limit, unit="ratio", values=np.array, show="{:.3f}".format,
        what="it is", systematic=systematic,
    )  # fmt: skip
    pace = _Pace(deadline=seconds, say=lambda _: None, clock=lambda: next(clock))
    (finding,) = _until_told([rule], draw, "time", pace)
    return finding


def noisy(seed, truth, spread=0.05):
    rng = np.random.default_rng(seed)
    return lambda _: rng.normal(math.log(truth), spread)


def test_a_ratio_just_above_the_limit_passes_by_luck_in_5_of_100_builds_or_fewer():
    outcomes = [told(noisy(seed, 0.902), 0.9, seconds=700).outcome for seed in range(150)]
    assert outcomes.count("passed") <= 7


def test_a_ratio_just_below_the_limit_fails_by_luck_in_5_of_100_builds_or_fewer():
    outcomes = [told(noisy(seed, 0.898), 0.9, seconds=700).outcome for seed in range(150)]
    assert outcomes.count("failed") <= 7


def test_a_clear_difference_is_told_at_the_first_look():
    finding = told(noisy(1, 0.5), 0.9)
    assert (finding.outcome, finding.repeats) == ("passed", 6)


def test_a_small_difference_is_measured_again_until_it_is_told():
    finding = told(noisy(2, 0.93), 0.9)
    assert finding.outcome == "failed"
    assert finding.repeats in {12, 24, 48, 96}


def test_a_value_on_the_limit_ends_undecided_when_time_is_up_and_says_so():
    finding = told(noisy(3, 0.9), 0.9, seconds=20)
    assert finding.outcome == "undecided"
    assert "inside the noise" in finding.sentence
    assert finding.repeats < 48


def test_each_further_look_asks_for_more_certainty():
    values = np.random.default_rng(4).normal(size=20)
    widths = [look(values, n).high - look(values, n).low for n in (1, 2, 3)]
    assert widths == sorted(widths)
    assert len(set(widths)) == 3


def test_no_time_at_all_still_gives_an_interval():
    assert told(noisy(5, 0.9), 0.9, seconds=0).repeats == 2


def test_one_failure_fails_and_one_doubt_alone_is_a_doubt():
    def found(outcome):
        return finding(outcome=outcome)

    assert overall([found("passed"), found("undecided"), found("failed")]) == "failed"
    assert overall([found("passed"), found("undecided")]) == "undecided"
    assert overall([found("passed")]) == "passed"


def test_a_value_on_the_limit_needs_no_number_of_samples():
    assert samples_needed(Interval(value=1.0, low=0.0, high=2.0), 1.0, 100) is None


def finding(**changes):
    usual = Finding(
        rule="max-size", outcome="passed", limit=1, seen=Interval(value=1, low=1, high=1),
        unit="bytes", repeats=1, sentence="1 byte",
    )  # fmt: skip
    return msgspec.structs.replace(usual, **changes)


def checked(*findings, path="m.lship"):
    return Checked(
        outcome=overall(findings), path=path, sha256="ab" * 32, bundle=None, baseline=None,
        findings=findings, session=SessionOptions(), environment=this_environment(),
        elapsed_s=1.5, checked_at="2026-01-01T00:00:00+00:00",
    )  # fmt: skip


def test_junit_counts_a_broken_limit_as_failure_and_a_doubt_as_error():
    text = formats.to_junit(
        checked(
            finding(), finding(outcome="failed", sentence="<&\x00"), finding(outcome="undecided")
        )
    )
    suites = ET.fromstring(text)  # noqa: S314  # our own
    suite = suites[0]
    assert [suite.get(name) for name in ("tests", "failures", "errors")] == ["3", "1", "1"]
    assert [case[0].tag for case in suite] == ["system-out", "failure", "error"]
    assert suite[1][0].get("message") == "<&�"


def test_markdown_keeps_a_strange_path_in_its_cell():
    text = formats.to_markdown(checked(finding(sentence="a|b\n<c>"), path="`x|y`.lship"))
    assert r"a\|b \<c\>" in text
    assert r"\`x\|y\`.lship" in text


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "no").write_text("a file, not a folder")
    with pytest.raises(UserError, match="cannot be written"):
        write_whole(tmp_path / "no" / "file.xml", b"")


def invoke(*words, **env):
    return CliRunner().invoke(cli, ["check", *map(str, words)], env=env)


def test_kept_limits_end_with_0_and_leave_a_summary_for_the_ci(ready, tmp_path):
    model, data, summary = ready / "model.lship", ready / "test.npz", tmp_path / "summary.md"
    summary.write_text("before\n")
    words = ["--max-size", "1MB", "--data", data, "--baseline", ready / "model.onnx"]
    words += ["--min-accuracy", 0.5, "--max-drop-points", 50, "--junit", tmp_path / "j.xml"]
    words += ["--markdown", tmp_path / "m.md", "--json"]
    result = invoke(model, *words, GITHUB_STEP_SUMMARY=str(summary))
    assert result.exit_code == 0, result.output
    seen = msgspec.json.decode(result.stdout, type=Checked)
    assert [f.rule for f in seen.findings] == ["max-size", "max-drop-points", "min-accuracy"]
    assert seen.bundle.name == ready.name
    assert ET.parse(tmp_path / "j.xml").getroot().get("failures") == "0"  # noqa: S314  # our own
    assert summary.read_text() == "before\n" + (tmp_path / "m.md").read_text() + "\n"


def test_a_summary_that_cannot_be_written_is_one_line(ready, tmp_path):
    result = invoke(
        ready / "model.lship", "--max-size", "1MB", GITHUB_STEP_SUMMARY=str(tmp_path / "no" / "s")
    )
    assert result.exit_code == 2
    assert "GITHUB_STEP_SUMMARY" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("limit", "code"),
    [(("--max-size", "10B"), 3), (("--require-int8",), 3), (("--min-accuracy", "0.97"), 4)],
)
def test_a_broken_limit_ends_with_3_and_a_doubt_with_4(ready, limit, code):
    result = invoke(ready / "model.lship", "--data", ready / "test.npz", *limit)
    assert result.exit_code == code, result.output
    assert ("about" in result.stdout and "would be needed" in result.stdout) == (code == 4)


def test_time_and_memory_are_measured_in_processes_of_their_own(ready):
    limits = Limits(max_p50_ratio=1e6, max_p50_ms=1e-9, max_peak_memory_bytes=10**12)
    seen = check(ready / "model.lship", limits, baseline=ready / "model.onnx", bench=QUICK)
    outcomes = {f.rule: (f.outcome, f.repeats) for f in seen.findings}
    assert outcomes["max-peak-memory"] == ("passed", 6)
    assert outcomes["max-p50-ratio"] == ("passed", 6)
    assert outcomes["max-p50-ms"][0] == "failed"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "nothing is asked"),
        (("--max-p50-ratio", 1), "name it with --baseline"),
        (("--max-drop-points", 1, "--data", "test.npz"), "name it with --baseline"),
        (("--max-drop-points", 1, "--baseline", "model.onnx"), "give --data"),
        (("--min-accuracy", 0.5), "says nothing of its accuracy"),
        (("--min-accuracy", 1.5), "1.5 is not in the range 0<=x<=1"),
        (("--max-drop-points", -1), "-1.0 is not in the range x>=0"),
        (("--max-size", "big"), "--max-size: needs a size such as 100kB"),
    ],
)
def test_a_limit_that_cannot_be_answered_is_one_line(ready, monkeypatch, words, line):
    monkeypatch.chdir(ready)
    result = invoke("model.lship", *words)
    assert result.exit_code == 2
    assert line in result.stderr.splitlines()[-1]


def test_a_model_that_takes_one_sample_at_a_time_is_timed_too(tmp_path):
    model, data = tiny.write_model(tmp_path, tiny.model(batch=1))
    bundle_model(model, data, tmp_path / "one.lship")
    for path in (model, tmp_path / "one.lship"):
        assert check(path, Limits(max_p50_ms=1e6), bench=QUICK).outcome == "passed"


def test_a_baseline_of_another_task_is_no_baseline(ready):
    ours = open_model(ready / "model.onnx").metadata
    ours = msgspec.structs.replace(ours, labels=("cat", "dog"))
    with pytest.raises(UserError, match="--baseline: answers shirt, shoe …, the model cat, dog …"):
        _require_one_task(ours, msgspec.structs.replace(ours, labels=("shirt", "shoe")))
    _require_one_task(ours, ours)
    _require_one_task(ours, msgspec.structs.replace(ours, labels=()))


@pytest.mark.parametrize("option", ["--junit", "--markdown"])
def test_what_is_read_is_never_written_over(ready, option):
    bundle = ready / "model.lship"
    before = bundle.read_bytes()
    result = invoke(bundle, "--max-size", "1MB", option, bundle)
    assert (result.exit_code, bundle.read_bytes()) == (2, before)
    assert f"{option}: {bundle} is taken" in result.stderr.splitlines()[-1]
    both = ("--junit", ready / "both", "--markdown", ready / "both")
    assert "--markdown" in invoke(bundle, "--max-size", "1MB", *both).stderr.splitlines()[-1]
    assert not (ready / "both").exists()
    (ready / "folder").mkdir(exist_ok=True)
    inside = invoke(ready / "folder", "--max-size", "1MB", option, ready / "folder/manifest.json")
    assert f"{option}: " in inside.stderr.splitlines()[-1]
    assert not (ready / "folder/manifest.json").exists()


def test_a_bundle_of_a_run_is_believed_what_its_run_measured(tmp_path):
    from deploy.bundle.make import bundle_run

    tiny.write_run(tmp_path / "run")
    bundle_run(tmp_path / "run", tmp_path / "b.lship", variant="pruned-int8")
    result = invoke(tmp_path / "b.lship", "--max-drop-points", 99, "--json")
    assert result.exit_code == 0, result.output
    assert "as its run measured" in json.loads(result.stdout)["findings"][0]["sentence"]


def test_a_loss_in_a_small_unit_keeps_its_digits(tmp_path):
    bundle = tiny.bundle_of("regression", tmp_path)
    words = ("--data", tmp_path / "test.npz", "--baseline", tmp_path / "model.onnx")
    result = invoke(bundle, *words, "--max-drop-points", 0.001)
    assert result.exit_code == 0, result.output
    assert "mean absolute error got worse by 0.00 [0.00, 0.00] lux, 0.001 are" in result.stdout
    worse = Interval(value=0.00123, low=0.00111, high=0.00142)
    goal = tiny.GOALS["regression"]
    known = Accuracy(goal=goal, samples=9, score=worse, delta=worse, source="here")
    assert _drop(known, 0.001).sentence.startswith(
        "mean absolute error got worse by +0.00123 [+0.00111, +0.00142] lux, 0.001 are allowed"
    )


def test_a_fraction_is_refused_for_an_error_before_anything_is_measured(tmp_path):
    bundle = tiny.bundle_of("regression", tmp_path)
    result = invoke(bundle, "--min-accuracy", 0.9, "--max-peak-memory", "1GB", "--data", "none.npz")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "--min-accuracy: is a fraction" in line
    assert "judged by its mean absolute error; use --max-drop-points" in line


def test_an_int8_kernel_is_told_from_a_float_one_by_what_ran():
    integer = tiny_onnx.model(
        [("MatMulInteger", ["x", "w"], ["y"])],
        inputs={"x": ("uint8", ("n", 4))},
        outputs={"y": ("int32", ("n", 2))},
        initializers={"w": np.ones((4, 2), np.int8)},
    )
    assert len(products(integer, np.ones((1, 4), np.uint8)).int8) == 1
    floating = products(tiny_onnx.linear(np.eye(3)), np.ones((1, 3), np.float32))
    assert (len(floating.int8), len(floating.floating)) == (0, 1)


def test_labelled_samples_that_do_not_fit_are_refused(ready, tmp_path):
    EvalSet(x=np.zeros((2, 5)), y=np.array([0, 1])).save(tmp_path / "far.npz")
    result = invoke(ready / "model.lship", "--min-accuracy", 0.5, "--data", tmp_path / "far.npz")
    assert result.exit_code == 2
