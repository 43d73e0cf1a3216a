"""The commands of docs/raspberry-pi.md do what the page says, in the base install too."""

import configparser
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import deploy
from deploy.bundle.make import bundle_model
from deploy.evalset import EvalSet
from deploy.preprocess import Reshape, Scale
from deploy.session import ModelMetadata
from tests.deploy import tiny_onnx
from tests.deploy.bundle import tiny

ROOT = Path(deploy.__file__).parents[1]
PAGE = (ROOT / "docs" / "raspberry-pi.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)(?: (\w+))?\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a page for Linux")


def commands(role):
    return "".join(text for language, said, text in BLOCKS if (language, said) == ("sh", role))


@pytest.fixture
def pi(tmp_path):
    """A home with a bundle, a folder of images and a ``lightship`` on the path."""
    image = pytest.importorskip("PIL.Image", reason="the extra 'images' is not installed")
    np = pytest.importorskip("numpy")
    y = np.arange(24) % 2
    x = np.zeros((24, 4, 4), np.uint8)
    x[:, :2] = (200 * (1 - y))[:, None, None]
    x[:, 2:] = (200 * y)[:, None, None]
    weights = np.repeat(np.eye(2), 8, axis=0)
    about = ModelMetadata(
        preprocess=(Reshape(shape=(16,)), Scale(factor=1 / 255)), labels=("above", "below")
    )
    (tmp_path / "m.onnx").write_bytes(tiny_onnx.linear(weights, metadata=about.to_props()))
    EvalSet(x=x, y=y).save(tmp_path / "set.npz")
    bundle_model(tmp_path / "m.onnx", tmp_path / "set.npz", tmp_path / "model.lship")
    for folder in ("digits", "camera", "bin"):
        (tmp_path / folder).mkdir()
    for number in range(2):
        image.fromarray(x[number]).save(tmp_path / "digits" / f"{number}.png")
    command = tmp_path / "bin" / "lightship"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m deploy "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def shell(home, script, **settings):
    path = f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        ["/bin/sh", "-euc", script],
        cwd=home,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **settings,
    )


def said(home, script):
    with shell(home, script) as running:
        out, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    return out


def test_every_block_of_the_page_has_a_role():
    roles = {(language, role) for language, role, _ in BLOCKS}
    assert roles == {("sh", role) for role in ("", "install", "host", "watch")} | {("ini", "")}


def test_what_it_installs_is_the_base_and_pillow():
    install = commands("install")
    assert "pip install './lightship[images]'" in install
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r"^images = \[\s*\"pillow", project, re.MULTILINE)


def test_check_ask_and_time(pi):
    script = commands("")
    fast = script.replace("--json > pi", "--processes 5 --batch 2 --json > pi")
    assert fast != script
    out = said(pi, fast)
    assert "passes: all digests are right" in out
    assert re.search(r"^0\.png +above .*\n1\.png +below ", out, re.MULTILINE)
    (timed,) = json.loads((pi / "pi.json").read_text())["models"]
    assert timed["path"] == "model.lship"


def test_what_was_timed_there_comes_into_the_report_here(pi):
    pytest.importorskip("jinja2", reason="the extra 'report' is not installed")
    pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")
    tiny.write_run(pi / "runs" / "demo")
    model = "runs/demo/variants/int8/model.onnx"
    said(pi, f"lightship bench {model} --processes 5 --batch 2 --json > pi.json")
    said(pi, commands("host"))
    assert "Other machines" in (pi / "runs/demo/report.html").read_text(encoding="utf-8")


def test_it_answers_for_a_camera_until_it_is_told_to_end(pi):
    with shell(pi, f"exec {commands('watch').strip()}") as watching:
        (pi / "camera" / "bad.png").write_bytes(b"no image")
        (pi / "digits" / "1.png").rename(pi / "camera" / "1.png")
        answered = pi / "answers.jsonl"
        end = time.monotonic() + 60
        while time.monotonic() < end and (
            not answered.exists() or answered.read_text().count("\n") < 2
        ):
            time.sleep(0.1)
        watching.send_signal(signal.SIGTERM)
        watching.communicate(timeout=60)
    assert watching.returncode == 0
    lines = {line["sample"]: line for line in map(json.loads, answered.read_text().splitlines())}
    assert lines["1.png"]["label"] == "below"
    assert "not a readable PNG" in lines["bad.png"]["error"]


def test_the_service_runs_the_command_of_the_page():
    (text,) = (text for language, _, text in BLOCKS if language == "ini")
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str
    unit.read_string(text)
    words = shlex.split(unit["Service"]["ExecStart"])
    assert words[0].endswith("/lightship-env/bin/lightship")
    assert words[1:] == [
        word.rstrip("/") for word in shlex.split(commands("watch").partition(">")[0])[1:]
    ]
