from __future__ import annotations

import gzip
import hashlib
import http.server
import os
import re
import socket
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest

from compress.data import known
from compress.data.known import KNOWN, read_known
from deploy.errors import MissingExtraError, UserError
from tests.compress.data.test_arrays import idx

ROOT = Path(__file__).parents[3]
SAMPLES = ROOT / "compress" / "data" / "samples"
FULL = os.environ.get("LIGHTSHIP_DATA")
needs_full_mnist = pytest.mark.skipif(
    not FULL or not (Path(FULL) / "mnist.npz").is_file(),
    reason="needs the full mnist.npz in the folder that LIGHTSHIP_DATA names",
)


@pytest.fixture
def no_folder(monkeypatch):
    monkeypatch.delenv("LIGHTSHIP_DATA", raising=False)


@pytest.fixture
def site(tmp_path, monkeypatch, no_folder):
    """A folder that a server on this machine offers as the home of every download."""
    from tf_keras.src.utils import data_utils

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / "site"))

        def log_message(self, *_):
            pass

    (tmp_path / "site").mkdir()
    (tmp_path / ".keras").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))  # where the downloader keeps its files
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    origin = f"http://127.0.0.1:{server.server_port}/"
    fetch = data_utils.urlretrieve
    monkeypatch.setattr(
        data_utils, "urlretrieve", lambda url, *rest: fetch(origin + url.rpartition("/")[2], *rest)
    )
    yield tmp_path / "site"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_packaged_sample_is_read_without_folder_or_network(no_folder):
    source = read_known("mnist-sample")
    assert source.test is not None
    assert source.train.x.shape == (10_000, 28, 28)
    assert source.test.x.shape == (2_000, 28, 28)
    assert source.train.x.dtype == np.uint8
    assert source.labels == tuple("0123456789")
    assert "CC BY-SA 3.0" in source.licence


def test_the_packaged_sample_is_small_and_the_one_its_readme_describes():
    content = (SAMPLES / "mnist_sample.npz").read_bytes()
    assert len(content) <= 2_500_000
    described = re.search(r"sha256:\*\* `(\w+)`", (SAMPLES / "README.md").read_text("utf-8"))
    assert described is not None
    assert described[1] == hashlib.sha256(content).hexdigest()


@needs_full_mnist
def test_the_script_makes_the_packaged_sample_again(tmp_path):
    script = ROOT / "scripts" / "make_mnist_sample"
    subprocess.run([sys.executable, script, tmp_path], check=True, capture_output=True)
    with (
        np.load(tmp_path / "mnist_sample.npz") as made,
        np.load(SAMPLES / "mnist_sample.npz") as ours,
    ):
        assert sorted(made) == sorted(ours)
        for name in made:
            np.testing.assert_array_equal(made[name], ours[name])
    if "ng" in zlib.ZLIB_RUNTIME_VERSION:
        pytest.skip("zlib-ng packs the same arrays into other bytes")
    for name in ("mnist_sample.npz", "README.md"):
        assert (tmp_path / name).read_bytes() == (SAMPLES / name).read_bytes()


@needs_full_mnist
def test_the_sample_keeps_every_digit_in_its_share_and_in_its_part():
    with (
        np.load(Path(str(FULL)) / "mnist.npz") as full,
        np.load(SAMPLES / "mnist_sample.npz") as ours,
    ):
        for part in ("train", "test"):
            whole = {
                x.tobytes(): y for x, y in zip(full[f"x_{part}"], full[f"y_{part}"], strict=True)
            }
            x, y = ours[f"x_{part}"], ours[f"y_{part}"]
            assert all(whole[image.tobytes()] == label for image, label in zip(x, y, strict=True))
            exact = np.bincount(full[f"y_{part}"]) * len(y) / len(whole)
            assert np.abs(np.bincount(y) - exact).max() < 1


def test_a_set_in_the_folder_is_read_from_there(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTSHIP_DATA", str(tmp_path))
    x = np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3)
    np.savez(tmp_path / "cifar10.npz", x_train=x, y_train=[[3], [9]], x_test=x, y_test=[[0], [1]])
    source = read_known("cifar10")
    np.testing.assert_array_equal(source.train.x, x)
    assert [source.labels[y] for y in source.train.y] == ["cat", "truck"]


def test_a_folder_that_does_not_exist_is_refused(monkeypatch):
    monkeypatch.setenv("LIGHTSHIP_DATA", "/nowhere/at/all")
    with pytest.raises(UserError, match="LIGHTSHIP_DATA=/nowhere/at/all: no such folder"):
        read_known("mnist")


def test_a_damaged_file_in_the_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTSHIP_DATA", str(tmp_path))
    (tmp_path / "mnist.npz").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"mnist\.npz: not an \.npz file"):
        read_known("mnist")


def test_fashion_mnist_is_downloaded_where_there_is_a_network(site, capsys):
    x = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
    for part in ("train", "t10k"):
        for kind, array in (("images-idx3", x), ("labels-idx1", np.array([9, 1], np.uint8))):
            (site / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    source = read_known("fashion_mnist")
    assert source.train.x.shape[1:] == (28, 28)
    assert [source.labels[y] for y in source.train.y] == ["Ankle boot", "Trouser"]
    said = capsys.readouterr()
    assert said.out == ""
    assert "Downloading data from" in said.err


def test_a_download_that_is_not_the_published_file_is_refused(site):
    (site / "mnist.npz").write_bytes(b"another file")
    with pytest.raises(UserError, match=r"mnist: cannot be downloaded .*hash does not match"):
        read_known("mnist")


def test_a_file_that_the_server_lacks_is_one_line(site):
    with pytest.raises(UserError, match=r"cifar10: cannot be downloaded .*404"):
        read_known("cifar10")


@pytest.fixture(params=["refused", "silent"])
def dead_end(request, tmp_path, monkeypatch, no_folder):
    """A network on which no download can succeed."""
    from tf_keras.src.utils import data_utils

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(known, "_PATIENCE_S", 0.1)
    (tmp_path / ".keras").mkdir()
    fetch = data_utils.urlretrieve
    with socket.socket() as end:
        end.bind(("127.0.0.1", 0))
        if request.param == "silent":
            end.listen()
        origin = f"http://127.0.0.1:{end.getsockname()[1]}/"
        monkeypatch.setattr(data_utils, "urlretrieve", lambda _, *rest: fetch(origin, *rest))
        yield


def test_a_missing_network_names_the_ways_out(dead_end):
    with pytest.raises(UserError) as caught:
        read_known("mnist")
    line = str(caught.value)
    assert "\n" not in line
    assert "mnist: cannot be downloaded" in line
    assert "put mnist.npz with x_train, y_train, x_test, y_test into a folder" in line
    assert "set LIGHTSHIP_DATA to it, or use mnist-sample" in line
    assert socket.getdefaulttimeout() is None


def test_a_download_without_the_extra_names_the_extra(no_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf_keras", None)
    with pytest.raises(MissingExtraError, match=r"lightship\[compress\]"):
        read_known("mnist")


def test_every_known_set_but_the_sample_has_a_downloader():
    import tf_keras

    elsewhere = {name for name, about in KNOWN.items() if about.in_scikit_learn} | {"mnist-sample"}
    for name in set(KNOWN) - elsewhere:
        assert callable(getattr(tf_keras.datasets, name).load_data)
    assert all(entry.labels and entry.licence for entry in known.KNOWN.values())
