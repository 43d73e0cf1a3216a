import ast
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import deploy
from deploy import isolation
from deploy.cli import cli
from deploy.errors import UserError
from deploy.isolation import require_harmless
from deploy.session import open_model
from tests.deploy import hostile, tiny_onnx

pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits are POSIX")


@pytest.fixture
def placed(tmp_path, monkeypatch):
    """Write a model and return its path, seen for the first time."""
    monkeypatch.setattr(isolation, "_harmless", set())

    def place(content: bytes) -> Path:
        (tmp_path / "m.onnx").write_bytes(content)
        return tmp_path / "m.onnx"

    return place


def refusal(path, **limits):
    with pytest.raises(UserError) as caught:
        require_harmless(path, **limits)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_honest_model_is_tried_once(placed, monkeypatch):
    path = placed(tiny_onnx.linear(np.eye(2)))
    require_harmless(path)
    monkeypatch.setattr("subprocess.run", None)
    require_harmless(path)
    path.write_bytes(tiny_onnx.linear(np.eye(3)))
    with pytest.raises(TypeError):  # other bytes are tried anew
        require_harmless(path)


def test_a_loop_that_never_ends_is_ended(placed):
    content = hostile.endless()
    assert len(content) < 400
    open_model(content)  # opening it looks harmless
    start = time.monotonic()
    said = refusal(placed(content), seconds=2)
    assert "gave no answer" in said or "ended the process" in said
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("model", [hostile.greedy(), hostile.greedy_at_once()])
def test_a_graph_that_asks_for_terabytes_is_refused(placed, model):
    assert len(model) < 600
    assert "takes more than the 1.0 GB" in refusal(placed(model), memory_bytes=10**9)


def test_a_graph_that_asks_for_more_than_is_allowed_is_refused_though_the_machine_has_it(placed):
    model = hostile.greedy_at_once(terabytes=1)
    six_gigabytes = model.replace(
        np.int64([1 << 38]).tobytes(), np.int64([(6 << 30) // 4]).tobytes()
    )
    assert six_gigabytes != model
    assert "takes more than the 1.0 GB" in refusal(placed(six_gigabytes), memory_bytes=10**9)


def test_a_crash_ends_the_child_alone(placed, monkeypatch):
    monkeypatch.setattr(isolation.sys, "executable", "/bin/false")
    assert "ended the process that opened it first (exit code 1" in refusal(
        placed(tiny_onnx.linear(np.eye(2)))
    )


def test_what_is_no_model_is_refused_as_ever(placed):
    assert "is no ONNX model" in refusal(placed(b"no model"))
    assert "no such file; give an ONNX model" in refusal(Path("nowhere.onnx"))


def test_a_pipe_or_a_device_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    assert "no regular file" in refusal(tmp_path / "pipe.onnx")
    assert "no regular file" in refusal(Path("/dev/zero"))


def test_a_file_larger_than_any_model_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "huge.onnx").open("wb") as file:
        file.truncate(1 << 40)  # sparse: takes no room
    assert "an ONNX file has less than" in refusal(tmp_path / "huge.onnx")


def test_weights_beside_the_model_are_taken_from_its_own_folder_only(placed, tmp_path):
    (tmp_path / "w.bin").write_bytes(np.eye(2, dtype=np.float32).tobytes())
    require_harmless(placed(hostile.weights_elsewhere("w.bin")))
    assert "outside its folder" in refusal(placed(hostile.weights_elsewhere("../w.bin")))
    assert "outside its folder" in refusal(placed(hostile.weights_elsewhere("/etc/passwd")))
    (tmp_path / "link.bin").symlink_to("/etc/passwd")
    assert "outside its folder" in refusal(placed(hostile.weights_elsewhere("link.bin")))


def test_an_operator_library_is_never_loaded(placed):
    nodes = [("Mine", ["x"], ["y"], {}, "my.domain")]
    model = tiny_onnx.model(nodes, opsets=(("", 17), ("my.domain", 1)), **hostile.TWO)
    assert "ONNX Runtime cannot open it" in refusal(placed(model))


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "m.onnx", "--data", "set.npz"),
        ("audit", "m.onnx"),
        ("bench", "m.onnx"),
        ("bundle", "m.onnx", "--data", "set.npz", "-o", "m.lship"),
        ("check", "m.onnx", "--max-size", "1MB"),
        ("convert", "m.onnx"),
    ],
    ids=lambda words: words[0],
)
def test_every_command_that_takes_a_loose_model_tries_it_first(
    placed, words, tmp_path, monkeypatch
):
    placed(hostile.greedy())
    monkeypatch.chdir(tmp_path)
    np.savez("set.npz", x=np.eye(2, dtype=np.float32), y=[0, 1])
    result = CliRunner().invoke(cli, list(words))
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1
    assert "if you trust it, give --trust-model" in result.stderr


def test_a_model_that_is_trusted_is_not_tried(placed, tmp_path, monkeypatch):
    placed(tiny_onnx.linear(np.eye(2)))
    monkeypatch.chdir(tmp_path)
    np.savez("set.npz", x=np.eye(2, dtype=np.float32), y=[0, 1])
    monkeypatch.setattr("subprocess.run", None)
    words = ["evaluate", "m.onnx", "--data", "set.npz", "--trust-model"]
    assert CliRunner().invoke(cli, words).exit_code == 0


# What no line of the packages may do with what comes from a stranger.

SOURCES = sorted(
    path
    for package in ("deploy", "compress")
    for path in (Path(deploy.__file__).parents[1] / package).rglob("*.py")
)
FORBIDDEN_MODULES = {"pickle", "shelve", "marshal", "dill", "joblib", "cloudpickle"}


def calls_of(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.name))
def test_no_module_reads_pickles_or_loads_operator_libraries(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            assert not {name.split(".")[0] for name in names} & FORBIDDEN_MODULES, path
    for name, given in calls_of(tree):
        if re.fullmatch(r"(np|numpy)\.load", name):
            assert given.get("allow_pickle") == "False", path
        assert name not in {"eval", "exec"}, path
    assert "allow_pickle=True" not in text
    assert "register_custom_ops_library" not in text
