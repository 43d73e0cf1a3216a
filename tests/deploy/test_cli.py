"""The device's commands given what no command can do: one line, exit code 2."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from deploy.cli import cli
from deploy.cli.options import require_place
from deploy.errors import UserError
from deploy.machine import this_environment, usable_cores
from deploy.record import Interval, Latency, Measurement, SessionOptions
from tests.deploy import tiny_onnx


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a model ``m.onnx`` of two classes and samples ``set.npz``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.onnx").write_bytes(tiny_onnx.linear(np.eye(2)))
    np.savez(tmp_path / "set.npz", x=np.eye(2, dtype=np.float32), y=[0, 1])
    return tmp_path


def invoke(*words):
    return CliRunner().invoke(cli, [str(word) for word in words], prog_name="lightship")


def refusal(*words):
    """Return the one line in which a command refuses, having checked that it is one."""
    result = invoke(*words)
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line.removeprefix("error: ")


@pytest.mark.parametrize(
    ("option", "value"), [("--processes", 3), ("--seed", -1), ("--batch", 0), ("--threads", 0)]
)
def test_bench_names_the_option_that_is_out_of_range(folder, option, value):
    assert option in invoke("bench", "m.onnx", option, value).stderr
    assert invoke("bench", "m.onnx", option, value).exit_code == 2


def test_the_times_of_a_model_are_never_written_over_it(folder):
    before = (folder / "m.onnx").read_bytes()
    line = refusal("bench", "m.onnx", "--out", "m.onnx")
    assert line.startswith("--out: m.onnx is taken: it is what is read")
    assert (folder / "m.onnx").read_bytes() == before


def test_an_interrupted_bench_keeps_nothing_and_does_not_say_it_does(folder, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("deploy.bench.bench", interrupted)
    result = invoke("bench", "m.onnx", "--out", "times.json")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "stopped"
    assert not (folder / "times.json").exists()


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("a.txt", "must end in .onnx, .ort, got a.txt"),
        ("m.onnx", "m.onnx is taken"),
        ("link.onnx", "link.onnx is taken"),
        ("bundle/a.onnx", "bundle/a.onnx is taken"),
        ("folder.onnx", "folder.onnx is a folder; name a file"),
        ("set.npz/a.onnx", "set.npz takes no file (Not a directory)"),
    ],
)
def test_a_place_that_no_result_can_go_to_is_refused_with_the_reason(folder, place, says):
    (folder / "link.onnx").symlink_to("m.onnx")
    for name in ("bundle", "folder.onnx"):
        (folder / name).mkdir()
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=re.escape(says)):
        require_place(
            "--out", Path(place), Path("m.onnx"), None, Path("bundle"), suffixes=[".onnx", ".ort"]
        )
    require_place("--out", Path("new/folder/a.onnx"), Path("m.onnx"), suffixes=[".onnx", ".ort"])
    require_place("--out", None, Path("m.onnx"), suffixes=[".onnx"])
    assert sorted(folder.rglob("*")) == before


def test_a_place_that_the_system_cannot_even_look_at_is_refused_in_one_line(folder):
    Path("a").symlink_to("b")
    Path("b").symlink_to("a")
    for place in (Path("x" * 300 + ".onnx"), Path("a/m.onnx"), Path("a\0.onnx")):
        with pytest.raises(UserError, match="cannot be written"):
            require_place("--out", place, Path("m.onnx"))


def test_the_record_of_a_model_is_as_taken_as_the_model(folder):
    with pytest.raises(UserError, match=r"m\.onnx\.json is taken"):
        require_place("--out", Path("m.onnx.json"), Path("m.onnx"))


def test_a_place_where_the_system_lets_nobody_write_is_refused(folder, monkeypatch):
    def refused(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    with pytest.raises(
        UserError, match=r"a\.json cannot be written: .* takes no file \(Permission denied\); name"
    ):
        require_place("--out", Path("a.json"))


def test_a_conversion_is_never_written_over_its_model(folder):
    Path("m.onnx").rename("m.ort")
    assert refusal("convert", "m.ort", "-o", "m.ort").startswith("--out: m.ort is taken")


def test_where_a_table_of_widths_goes_is_looked_at_before_it_is_measured(folder):
    assert refusal("widths", "--out", "m.onnx/t.json").startswith("--out: m.onnx/t.json cannot be")
    line = refusal("widths", "--from", "t.json", "--plot", "m.onnx/t.svg")
    assert line.startswith("--plot: m.onnx/t.svg cannot be")


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("more", [["--json"], []])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_an_output_that_is_full_is_one_line(folder, more, buffered):
    command = [sys.executable, "-m", "deploy", "evaluate", "m.onnx", "--data", "set.npz", *more]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    env["PYTHONUNBUFFERED"] = "" if buffered else "1"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, check=False, stdout=full, stderr=subprocess.PIPE, env=env)
    assert done.returncode == 2
    said = b"what is printed, or a temporary file, cannot be written: no space is left"
    assert done.stderr == b"error: " + said + b"\n"


@pytest.mark.parametrize(
    "command", [("bench", "m.onnx"), ("evaluate", "m.onnx", "--data", "set.npz")]
)
def test_more_threads_than_a_machine_can_use_are_refused(folder, command):
    line = refusal(*command, "--threads", 100_000_000)
    assert line.startswith(f"threads: must be at most {4 * usable_cores()} on this machine")
    assert line.endswith("got 100000000; use fewer")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("bench",), "Missing argument 'MODELS...'; see lightship bench --help"),
        (
            ("evalute", "m.onnx"),
            "no command 'evalute', did you mean evaluate?; see lightship --help",
        ),
        (("fly",), "No such command 'fly'; see lightship --help"),
        (("--fast", "doctor"), "No such option '--fast'; see lightship --help"),
        (
            ("bench", "m.onnx", "--processes", 3),
            "Invalid value for '--processes': 3 is not in the range x>=5; see lightship bench --help",
        ),
    ],
)
def test_words_that_no_command_takes_are_one_line_that_names_the_help(folder, words, line):
    assert refusal(*words).replace("option: --fast", "option '--fast'") == line


def test_no_word_at_all_prints_the_help():
    assert "Commands:" in invoke().output


def test_a_label_that_the_model_has_no_score_for_is_refused_however_large(folder):
    np.savez(folder / "far.npz", x=np.eye(2, dtype=np.float32), y=[0, 2**40])
    assert refusal("evaluate", "m.onnx", "--data", "far.npz") == (
        "far.npz: m.onnx tells classes 0 to 1, got 1099511627776 at index 1 of y; "
        "give the data of its own task"
    )


def test_evaluate_prints_a_difference_once_and_with_one_kind_of_minus(folder):
    text = invoke("evaluate", "m.onnx", "--data", "set.npz", "--against", "m.onnx").stdout
    assert text.count(" 0.00 points") == 1
    assert "m.onnx: no detectable difference: 0.00 points [−" in text
    assert "[-" not in text


def test_the_table_of_a_bench_fits_80_columns(folder, monkeypatch):
    def interval(value):
        return Interval(value=value, low=value, high=value)

    def seen(slow):
        return Latency(
            p50_ms=interval(0.01 * slow), p90_ms=0.02 * slow, p99_ms=0.03 * slow,
            speedup=interval(15.25), throughput_per_s=1e8 / slow, batch=32,
            load_ms=900.0, peak_rss_bytes=4 * 10**9,
        )  # fmt: skip

    measurement = Measurement(
        environment=this_environment(), session=SessionOptions(), processes=5,
        sessions_per_process=1, latencies=(seen(1), seen(10**6)),
    )  # fmt: skip
    monkeypatch.setattr("deploy.bench.bench", lambda *_, **__: measurement)
    lines = invoke("bench", "m.onnx", "m.onnx").stdout.splitlines()
    assert len(lines) == 5
    assert max(map(len, lines)) <= 80
    assert lines[2].split()[:5] == ["0.0100", "0.0200", "0.0300", "15.25×", "[15.25,"]


def test_fractions_do_not_vanish_in_a_model_of_bytes(folder):
    content = tiny_onnx.model(
        [("Cast", ["x"], ["y"], {"to": 1})],
        inputs={"x": ("uint8", ("n", 2))},
        outputs={"y": ("float32", ("n", 2))},
    )
    (folder / "bytes.onnx").write_bytes(content)
    np.savez(folder / "unit.npz", x=np.float32([[0, 1], [0.25, 0]]), y=[1, 0])
    assert refusal("evaluate", "bytes.onnx", "--data", "unit.npz") == (
        "bytes.onnx: the input 'x' takes uint8, which cannot hold 0.25 of sample 1 (float32 after "
        "preprocessing); give samples in the form that the model was made for"
    )
