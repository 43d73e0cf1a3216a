"""``predict --watch``: files that a camera drops."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import deploy
from deploy.bundle.runtime import load
from deploy.bundle.watch import Answered, NoAnswer, answers_as_they_come, whole_files
from deploy.cli import cli
from deploy.errors import UserError
from tests.deploy.bundle import tiny


class Looks:
    """In place of the event that ends a watch: does one thing after each look, then ends it."""

    def __init__(self, *actions):
        self.actions = list(actions)

    def is_set(self):
        return False

    def wait(self, _):
        if not self.actions:
            return True
        self.actions.pop(0)()
        return False


def nothing():
    pass


def put(path, row=0):
    np.save(path, tiny.samples(3).x[row])


def names(folder, *actions):
    return [path.name for path in whole_files(folder, stop=Looks(*actions), every_s=0)]


def test_a_file_is_given_once_and_only_when_it_stopped_growing(tmp_path):
    def begin():
        (tmp_path / "a.npy").write_bytes(b"half")

    def end():
        (tmp_path / "a.npy").write_bytes(b"half and half")

    assert names(tmp_path, begin, end) == []
    (tmp_path / "a.npy").unlink()
    assert names(tmp_path, begin, end, nothing, nothing, nothing) == ["a.npy"]


def test_empty_hidden_and_foreign_files_are_left_alone(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / ".part.png").write_bytes(b"x")
    (tmp_path / "notes.txt").write_bytes(b"x")
    assert names(tmp_path, nothing, nothing) == []


def test_a_file_that_gets_its_name_when_it_is_whole_is_given(tmp_path):
    (tmp_path / ".a.png").write_bytes(b"x")
    rename = (tmp_path / ".a.png").rename
    assert names(tmp_path, lambda: rename(tmp_path / "a.png"), nothing) == ["a.png"]


def test_a_file_that_is_written_anew_comes_again_and_the_oldest_comes_first(tmp_path):
    def put_at(name, time_s, content=b"x"):
        (tmp_path / name).write_bytes(content)
        os.utime(tmp_path / name, (time_s, time_s))

    put_at("b.png", 1)
    put_at("a.png", 2)
    again = names(tmp_path, nothing, lambda: put_at("b.png", 3, b"yy"), nothing)
    assert again == ["b.png", "a.png", "b.png"]


def test_a_damaged_file_gets_one_line_and_the_next_its_answer(lship, tmp_path):
    (tmp_path / "a.npy").write_bytes(b"no array\nat all")
    put(tmp_path / "b.npy", row=1)
    os.utime(tmp_path / "a.npy", (1, 1))
    seen = list(answers_as_they_come(load(lship), tmp_path, top=2, stop=Looks(nothing)))
    assert isinstance(seen[0], NoAnswer)
    assert "not a readable .npy file" in seen[0].error
    assert "\n" not in seen[0].error
    assert isinstance(seen[1], Answered)
    said = seen[1].as_json()
    assert (said["label"], len(said["top"])) == ("green", 2)


def test_a_folder_that_is_none_is_a_mistake(lship, tmp_path):
    with pytest.raises(UserError, match="cannot be watched"):
        list(whole_files(tmp_path / "none", stop=threading.Event(), every_s=0))
    for words in ((), ("x.npy", "--watch", str(tmp_path))):
        result = CliRunner().invoke(cli, ["predict", str(lship), *words])
        assert result.exit_code == 2
        assert "give SAMPLES or --watch FOLDER" in result.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly_after_the_answers(lship, tmp_path, number):
    put(tmp_path / "a.npy", row=2)
    with subprocess.Popen(
        [sys.executable, "-m", "deploy", "predict", lship, "--watch", tmp_path, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(deploy.__file__).parents[1])},
    ) as watching:
        assert json.loads(watching.stdout.readline())["label"] == "blue"  # as it comes, not later
        watching.send_signal(number)
        rest, complaint = watching.communicate(timeout=60)
    assert (watching.returncode, rest, complaint) == (0, "", "")
