"""The device's commands given what no command can do: one line, exit code 2."""

import numpy as np
import pytest
from click.testing import CliRunner

from deploy.cli import cli
from deploy.machine import usable_cores
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


@pytest.mark.parametrize(
    "command", [("bench", "m.onnx"), ("evaluate", "m.onnx", "--data", "set.npz")]
)
def test_more_threads_than_a_machine_can_use_are_refused(folder, command):
    line = refusal(*command, "--threads", 100_000_000)
    assert line.startswith(f"threads: must be at most {4 * usable_cores()} on this machine")
    assert line.endswith("got 100000000; use fewer")
