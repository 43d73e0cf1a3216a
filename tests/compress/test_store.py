import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from compress.store import Store, code_of, key_of
from deploy.errors import UserError


def write_hello(folder: Path) -> None:
    (folder / "hello.txt").write_text("hello")


def test_the_key_does_not_depend_on_the_order_of_its_parts():
    assert key_of({"a": 1, "b": {"c": 2, "d": 3}}) == key_of({"b": {"d": 3, "c": 2}, "a": 1})


def test_the_key_changes_with_any_part():
    assert key_of({"a": 1}) != key_of({"a": 2}) != key_of({"b": 2})


SOURCE = """
class Fit:
    '''How it trains.'''

    epochs: int = 3
    '''How long.'''

    def __call__(self, x):
        '''Return more.'''
        return x + 1  # more
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("How it trains.", "How it learns."),
        ("How long.", ""),
        ("Return more.", "Return one more."),
        ("  # more", ""),
        ("x + 1", "(x  +  1)"),
    ],
)
def test_words_and_layout_are_no_code(before, after):
    assert code_of(SOURCE.replace(before, after)) == code_of(SOURCE)


@pytest.mark.parametrize(
    ("before", "after"),
    [("= 3", "= 4"), ("x + 1", "x - 1"), ("epochs", "rounds"), ("x + 1", "'x' + x")],
)
def test_what_computes_otherwise_is_other_code(before, after):
    assert code_of(SOURCE.replace(before, after)) != code_of(SOURCE)


def test_what_was_added_is_found(tmp_path):
    store = Store(tmp_path)
    folder = store.add("key", write_hello)
    assert store.find("key") == folder
    assert (folder / "hello.txt").read_text() == "hello"


def test_what_was_not_added_is_not_found(tmp_path):
    assert Store(tmp_path).find("key") is None


def test_a_damaged_file_is_found_out_and_made_again(tmp_path):
    store = Store(tmp_path)
    (store.add("key", write_hello) / "hello.txt").write_text("hullo")
    assert store.find("key") is None
    store.add("key", write_hello)
    assert store.find("key") is not None


def test_a_missing_file_is_found_out(tmp_path):
    store = Store(tmp_path)
    (store.add("key", write_hello) / "hello.txt").unlink()
    assert store.find("key") is None


def test_a_step_that_fails_leaves_nothing_under_its_key(tmp_path):
    def fail(folder: Path) -> None:
        write_hello(folder)
        raise RuntimeError("half way")

    store = Store(tmp_path)
    with pytest.raises(RuntimeError, match="half way"):
        store.add("key", fail)
    assert store.find("key") is None
    assert list(tmp_path.rglob("hello.txt")) == []


def test_a_full_disk_is_one_line_and_leaves_nothing_under_its_key(tmp_path):
    def fill_the_disk(folder: Path) -> None:
        write_hello(folder)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = Store(tmp_path)
    with pytest.raises(UserError, match="No space left on device; make room"):
        store.add("key", fill_the_disk)
    assert store.find("key") is None


def test_a_store_that_cannot_be_a_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: cannot keep finished steps here"):
        Store(tmp_path / "file").add("key", write_hello)
    with pytest.raises(UserError, match=r"cannot keep finished steps here: .*give another folder"):
        Store(Path("/proc/store")).add("key", write_hello)


def test_two_runs_of_one_step_both_succeed(tmp_path):
    store = Store(tmp_path)

    def race(folder: Path) -> None:
        write_hello(folder)
        store.add("key", write_hello)  # the other run ends first

    assert store.add("key", race) == store.find("key")


def test_a_process_killed_half_way_leaves_nothing_under_its_key_and_is_swept_up(tmp_path):
    code = f"""
from pathlib import Path
from compress.store import Store
import sys, time
def fill(folder):
    (folder / "half.txt").write_text("half")
    print("filling", flush=True)
    time.sleep(60)
Store(Path({str(tmp_path)!r})).add("key", fill)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "filling\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    store = Store(tmp_path)
    assert store.find("key") is None
    assert list(tmp_path.rglob("half.txt")) != []
    store.add("key", write_hello)
    assert list(tmp_path.rglob("half.txt")) == []


def test_a_finished_step_takes_its_checkpoint_away_and_forgotten_ones_too(tmp_path):
    store = Store(tmp_path)
    old, own, other = (store.unfinished(key) for key in ("old", "own", "other"))
    old.parent.mkdir(parents=True)
    for checkpoint in (old, own, other):
        checkpoint.write_bytes(b"")
    os.utime(old, (0, 0))
    store.add("own", lambda folder: (folder / "a").write_text("a"))
    assert [path.exists() for path in (old, own, other)] == [False, False, True]
