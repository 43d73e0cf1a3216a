from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress.data.clean import Clean, Outliers
from compress.data.fit_preprocess import ScaleTo, Standardize
from compress.data.sources import Data
from compress.data.splits import load_task
from deploy.errors import UserError
from deploy.evalset import EvalSet
from deploy.streams import Stream

RNG = np.random.default_rng(0)
N = 90
IMAGES = RNG.integers(0, 256, (N, 120, 120, 1), np.uint8)  # 1.3 MB, and 5.2 MB as float32
Y = np.arange(N) % 3


def idx(folder: Path, *, packed: bool) -> str:
    for name, array in (("images-idx3", IMAGES[..., 0]), ("labels-idx1", Y.astype(np.uint8))):
        head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        content, path = head + array.tobytes(), folder / f"train-{name}-ubyte"
        if packed:
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content, 1))
        else:
            path.write_bytes(content)
    return f"idx:{folder}"


def images(folder: Path) -> str:
    for number, image in enumerate(IMAGES):
        path = folder / f"c{Y[number]}" / f"{number:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image[..., 0]).save(path, compress_level=0)
    return f"images:{folder}"


def npz(folder: Path) -> str:
    np.savez_compressed(folder / "a.npz", x=IMAGES, y=Y)
    return f"npz:{folder / 'a.npz'}"


def npy(folder: Path) -> str:
    np.save(folder / "x.npy", IMAGES)
    np.save(folder / "y.npy", Y)
    return f"npy:{folder}"


def csv(folder: Path) -> str:
    rows = RNG.normal(size=(5000, 60)).astype(np.float32)
    names = [f"f{i}" for i in range(60)]
    lines = [",".join([*map(str, row), "uv"[i % 2], "ab"[i % 2]]) for i, row in enumerate(rows)]
    (folder / "t.csv").write_text("\n".join([",".join([*names, "c", "y"]), *lines]) + "\n")
    return f"csv:{folder / 't.csv'}"


SOURCES = {
    "npz": (npz, {}),
    "npy": (npy, {}),
    "idx": (lambda folder: idx(folder, packed=False), {}),
    "idx.gz": (lambda folder: idx(folder, packed=True), {}),
    "images": (images, {}),
    "resized": (images, {"image_size": (130, 110), "preprocess": (Standardize(),)}),
    "csv": (
        csv,
        {
            "label_column": "y",
            "categorical": ("c",),
            "clean": Clean(outliers=Outliers(quantile=0.05)),
            "preprocess": (ScaleTo(),),
        },
    ),
}


@pytest.mark.parametrize(("write", "settings"), SOURCES.values(), ids=SOURCES)
def test_a_stream_is_the_very_task_that_arrays_are(tmp_path, write, settings):
    data = {"source": write(tmp_path), "calibration_samples": 20} | settings
    plain, streamed = (load_task(Data(memory_mb=mb, **data), seed=0) for mb in (1000, 1))
    assert streamed.digest == plain.digest
    assert streamed.preprocess == plain.preprocess
    for part in ("train", "calibration", "validation", "test"):
        array, stream = getattr(plain, part), getattr(streamed, part)
        assert isinstance(array.x, np.ndarray)
        assert isinstance(stream.x, Stream)
        assert (stream.x.shape, stream.x.dtype) == (array.x.shape, array.x.dtype)
        np.testing.assert_array_equal(stream.x[:], array.x)
        np.testing.assert_array_equal(stream.raw[:], array.raw)
        np.testing.assert_array_equal(stream.y, array.y)


def test_a_saved_test_part_of_a_stream_is_read_back_the_same(tmp_path):
    task = load_task(Data(source=npz(tmp_path), memory_mb=1, calibration_samples=20), seed=0)
    EvalSet(x=task.test.raw, y=task.test.y).save(tmp_path / "test.npz")
    np.testing.assert_array_equal(EvalSet.load(tmp_path / "test.npz").x, task.test.raw[:])


@pytest.mark.parametrize("change", [{"x.npy": b"no array"}, {"x.npy": None}, {"y.npy": None}])
def test_npy_files_that_are_damaged_or_missing_are_named(tmp_path, change):
    source = npy(tmp_path)
    for name, content in change.items():
        if content is None:
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"[xy]\.npy: (no such file|not a readable \.npy file)"):
        load_task(Data(source=source, memory_mb=1), seed=0)


def test_npy_files_may_have_a_test_part(tmp_path):
    for part, count in (("train", 60), ("test", 12)):
        np.save(tmp_path / f"x_{part}.npy", IMAGES[:count, :4, :4])
        np.save(tmp_path / f"y_{part}.npy", Y[:count])
    task = load_task(Data(source=f"npy:{tmp_path}", calibration_samples=9), seed=0)
    assert len(task.test) == 12
    assert len(task.train) + len(task.validation) == 60


def test_images_of_mixed_sizes_become_one_size_here_and_on_a_device(tmp_path):
    for number in range(20):
        path = tmp_path / f"c{number % 2}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(IMAGES[number, : 20 + number, : 30 - number, 0]).save(path)
    data = Data(
        source=f"images:{tmp_path}",
        image_size=(8, 6),
        calibration_samples=2,
        validation_fraction=0.2,
    )
    task = load_task(data, seed=0)
    assert task.input_shape == (8, 6, 1)
    from deploy.bundle.manifest import Tensor
    from deploy.bundle.samples import read_samples

    raw = Tensor(shape=(8, 6, 1), dtype="uint8")
    read = read_samples(tmp_path / "c1", raw, task.preprocess).x
    kept = {
        sample.tobytes() for part in (task.train, task.validation, task.test) for sample in part.raw
    }
    assert {sample.tobytes() for sample in read} <= kept
    with pytest.raises(UserError, match="bring it to that size first"):
        read_samples(tmp_path / "c1", raw, task.preprocess[1:])


PEAK = """
import sys
from pathlib import Path
from compress.data.sources import Data
from compress.data.splits import load_task
task = load_task(Data(source=sys.argv[1], memory_mb=1, calibration_samples=8), seed=0)
for start in range(0, len(task.train), 32):
    task.train.x[start : start + 32]
status = Path("/proc/self/status").read_text()  # ru_maxrss would begin at the parent's
print(len(task.train), status.partition("VmHWM:")[2].split()[0])
"""


TRAIN = PEAK.replace(
    "for start in range(0, len(task.train), 32):\n    task.train.x[start : start + 32]\n",
    """
from compress.networks import Mlp
from compress.baseline import baseline
from compress.train.fit import Fit
baseline(Mlp(hidden=(2,)), Fit(epochs=2, batch_size=32, deterministic=False), task, seed=0)
""",
)


def peak(source: str, code: str = PEAK) -> tuple[int, float]:
    """Return the training samples and the most memory in MB of a child that goes through them."""
    child = subprocess.run(
        [sys.executable, "-c", code, source], check=True, capture_output=True, text=True
    )
    samples, peak_kb = child.stdout.split()
    return int(samples), int(peak_kb) / 1e3


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak there")
@pytest.mark.parametrize("kind", ["images", "npz"])
def test_the_peak_of_memory_does_not_grow_when_there_are_ten_times_as_many_images(tmp_path, kind):
    photos = RNG.integers(0, 256, (2, 96, 96, 3), np.uint8)
    peaks = []
    for count in (200, 2000):  # 5.5 and 55 MB as bytes, 22 and 221 MB as float32
        folder = tmp_path / str(count)
        if kind == "npz":
            folder.mkdir()
            x = RNG.integers(0, 256, (count, 96, 96, 3), np.uint8)
            np.savez(folder / "a.npz", x=x, y=np.arange(count) % 2)
            source = f"npz:{folder / 'a.npz'}"
        else:
            for label, photo in enumerate(photos):
                (folder / f"c{label}").mkdir(parents=True)
                first = folder / f"c{label}" / "0.png"
                Image.fromarray(photo).save(first, compress_level=0)
                for number in range(1, count // 2):
                    os.link(first, first.with_name(f"{number}.png"))
            source = f"images:{folder}"
        peaks.append(peak(source))
    (few, small), (many, large) = peaks
    assert many == 10 * few
    assert large < small + 15  # the 1,800 more would be 50 MB as bytes alone


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak there")
def test_the_peak_of_training_does_not_grow_when_there_are_ten_times_as_many_images(tmp_path):
    peaks = []
    for count in (300, 3000):  # 8 and 83 MB as bytes, 33 and 332 MB as float32
        x = RNG.integers(0, 256, (count, 96, 96, 3), np.uint8)
        path = tmp_path / f"{count}.npz"
        np.savez(path, x=x, y=np.arange(count) % 2)
        peaks.append(peak(f"npz:{path}", TRAIN)[1])
    assert peaks[1] < peaks[0] + 60  # TensorFlow's own share varies by tens
