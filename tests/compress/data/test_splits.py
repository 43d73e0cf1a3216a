from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.data.sources import Data
from compress.data.splits import load_task, stratified
from compress.data.task import Task
from deploy.errors import UserError
from deploy.preprocess import Cast, Reshape, Resize, Scale, apply

COUNTS = (60, 30, 10)
X = np.arange(100, dtype=np.float32).reshape(100, 1)  # every sample is its own number
Y = np.repeat([0, 1, 2], COUNTS)


def write(folder: Path, **arrays: object) -> str:
    path = folder / "set.npz"
    np.savez(path, **arrays)
    return f"npz:{path}"


def load(folder: Path, *, seed: int = 0, x=X, y=Y, **settings) -> Task:
    settings = {"calibration_samples": 20} | settings
    return load_task(Data(source=write(folder, x=x, y=y), **settings), seed=seed)


def members(split) -> set[float]:
    return set(split.raw.ravel().tolist())


def test_the_parts_are_disjoint_and_nothing_is_lost(tmp_path):
    task = load(tmp_path)
    parts = [members(part) for part in (task.train, task.validation, task.test)]
    assert sum(map(len, parts)) == 100
    assert set.union(*parts) == set(X.ravel().tolist())
    assert members(task.calibration) < members(task.train)


def test_every_class_keeps_its_share_in_every_part(tmp_path):
    task = load(tmp_path)
    counts = {
        part: np.bincount(getattr(task, part).y).tolist()
        for part in ("test", "validation", "train", "calibration")
    }
    assert counts == {
        "test": [12, 6, 2],  # a fifth of 60, 30, 10
        "validation": [5, 2, 1],  # a tenth of 48, 24, 8: 4.8, 2.4 and 0.8
        "train": [43, 22, 7],
        "calibration": [12, 6, 2],  # 20 of 72: 11.9, 6.1 and 1.9
    }


@pytest.mark.parametrize("shape", [(0,), (4, 0), (0, 3)])
def test_samples_without_a_single_value_are_refused(tmp_path, shape):
    with pytest.raises(UserError, match=r"samples must hold one value or more, got x \(100, "):
        load(tmp_path, x=np.zeros((100, *shape), np.float32))


def test_samples_keep_their_labels_through_every_cut(tmp_path):
    task = load(tmp_path, train_samples=30)
    for part in (task.train, task.calibration, task.validation, task.test):
        np.testing.assert_array_equal(part.y, Y[part.raw.ravel().astype(int)])
        np.testing.assert_array_equal(part.x, apply(task.preprocess, part.raw))


def test_a_test_part_of_the_source_stays_whole_and_in_order(tmp_path):
    source = write(
        tmp_path, x_train=X, y_train=Y, x_test=X[:7] + 1000, y_test=[2, 2, 2, 0, 0, 0, 0]
    )
    task = load_task(Data(source=source, calibration_samples=20), seed=0)
    assert task.test.raw.ravel().tolist() == list(range(1000, 1007))
    assert (len(task.train), len(task.validation)) == (90, 10)


def test_a_class_of_two_samples_is_in_both_parts(tmp_path):
    source = write(tmp_path, x_train=X, y_train=[0] * 98 + [1] * 2, x_test=X[:1], y_test=[0])
    task = load_task(Data(source=source, calibration_samples=1), seed=0)
    assert (task.train.y == 1).sum() == (task.validation.y == 1).sum() == 1


def test_the_seed_decides_the_split(tmp_path):
    one, again, two = load(tmp_path), load(tmp_path), load(tmp_path, seed=1)
    assert one.digest == again.digest != two.digest
    np.testing.assert_array_equal(one.train.raw, again.train.raw)
    assert members(one.test) != members(two.test)


def test_calibration_and_quick_runs_leave_the_other_parts_alone(tmp_path):
    one, quick = load(tmp_path), load(tmp_path, calibration_samples=5, train_samples=30)
    assert members(one.test) == members(quick.test)
    assert members(one.validation) == members(quick.validation)
    assert members(quick.train) < members(one.train)
    assert np.bincount(quick.train.y).tolist() == [18, 9, 3]
    assert len(quick.calibration) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"x": np.where(X == 17, 17.5, X).astype(np.float32)},
        {"x": X.astype(np.float64)},
        {"y": np.where(np.arange(100) == 3, 1, Y)},
        {"calibration_samples": 19},
        {"validation_fraction": 0.2},
        {"train_samples": 60},
        {"preprocess": (Scale(factor=2),)},
    ],
)
def test_whatever_changes_the_task_changes_its_digest(tmp_path, change):
    assert load(tmp_path, **change).digest != load(tmp_path).digest


@pytest.mark.parametrize("change", [{"y_test": [0, 1]}, {"dtype": np.int8}])
def test_one_label_or_the_type_alone_changes_the_digest(tmp_path, change):
    digests = []
    for settings in (
        {"y_test": [0, 0], "dtype": np.uint8},
        {"y_test": [0, 0], "dtype": np.uint8} | change,
    ):
        x = X.astype(settings["dtype"])  # below 128: the same bytes in both types
        source = write(tmp_path, x_train=x, y_train=Y, x_test=x[:2], y_test=settings["y_test"])
        digests.append(load_task(Data(source=source, calibration_samples=20), seed=0).digest)
    assert digests[0] != digests[1]


def test_the_digest_is_the_same_in_another_process(tmp_path):
    task = load(tmp_path)
    code = (
        "from compress.data.sources import Data; from compress.data.splits import load_task; "
        f"print(load_task(Data(source={task.name!r}, calibration_samples=20), seed=0).digest)"
    )
    another = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert another.stdout.strip() == task.digest


@pytest.mark.parametrize(
    ("dtype", "shape", "preprocess", "input_shape"),
    [
        (np.uint8, (4, 5), (Reshape(shape=(4, 5, 1)), Scale()), (4, 5, 1)),
        (np.uint8, (4, 5, 3), (Scale(),), (4, 5, 3)),
        (np.uint8, (4,), (Cast(),), (4,)),
        (np.float64, (4, 5), (Cast(),), (4, 5)),
        (np.int64, (4, 5, 1), (Cast(),), (4, 5, 1)),
    ],
)
def test_unstated_preprocessing_follows_the_samples(
    tmp_path, dtype, shape, preprocess, input_shape
):
    x = np.full((100, *shape), 255, dtype)
    task = load(tmp_path, x=x)
    assert task.preprocess == preprocess
    assert task.input_shape == input_shape
    assert task.train.x.dtype == np.float32
    assert task.train.x.max() == (1 if Scale() in preprocess else 255)
    assert task.train.raw.dtype == dtype


def test_no_preprocessing_can_be_asked_for(tmp_path):
    assert load(tmp_path, preprocess=()).preprocess == ()


def test_the_packaged_sample_is_a_task():
    task = load_task(Data(source="mnist-sample"), seed=0)
    sizes = [len(part) for part in (task.train, task.calibration, task.validation, task.test)]
    assert sizes == [9000, 500, 1000, 2000]
    assert task.input_shape == (28, 28, 1)
    assert (task.name, len(task.labels)) == ("mnist-sample", 10)
    assert "CC BY-SA 3.0" in task.licence


def with_value(value: float, *places: int) -> np.ndarray:
    x = X.copy()
    x[list(places)] = value
    return x


@pytest.mark.parametrize(
    ("change", "why_not"),
    [
        (
            {"x": with_value(np.nan, 7, 50)},
            "2 of 100 samples hold NaN or infinity, the first at index 7",
        ),
        (
            {"x": with_value(-np.inf, 3)},
            "1 of 100 samples hold NaN or infinity, the first at index 3",
        ),
        ({"y": Y * 0}, r"has one class only \(0\)"),
        ({"x": X[:, 0]}, r"one or more axes a sample, got \(100,\)"),
        ({"y": np.where(np.arange(100) < 2, 1, Y * 0)}, "class '1' has 2 samples, it needs 3"),
        ({"y": Y + 1}, "none of class 0 and a largest of 3"),
        (
            {"test_fraction": 0.01},
            "test_fraction = 0.01 makes 1 of 100 samples; 3 classes, each in every part, need 3 to 94",
        ),
        ({"test_fraction": 0.99}, "test_fraction = 0.99 makes 99 of 100"),
        ({"validation_fraction": 0.01}, "validation_fraction = 0.01 makes 1 of 80 samples"),
        ({"validation_fraction": 0.99}, "validation_fraction = 0.99 makes 79 .*need 3 to 77"),
        (
            {"calibration_samples": 73},
            "calibration_samples = 73 is more than the 72 training samples",
        ),
        ({"train_samples": 19}, "calibration_samples = 20 is more than the 19 training samples"),
        ({"train_samples": 73}, "train_samples = 73 is more than the 72 training samples"),
        ({"train_samples": 2}, "train_samples = 2 is fewer than the 3 classes"),
        ({"preprocess": (Resize(height=2, width=2),)}, r"preprocess\[0\]: resize needs"),
        (
            {"x": X.astype(np.float64) * 1e300, "preprocess": (Cast(),)},
            "after preprocessing: .*hold NaN or infinity",
        ),
    ],
)
def test_data_unfit_to_learn_from_are_refused_in_one_line(tmp_path, change, why_not):
    with pytest.raises(UserError, match=why_not) as caught:
        load(tmp_path, **change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("test_part", "why_not"),
    [
        (
            {"x_test": X[:2], "y_test": [0, 3]},
            "classes of the test part must be 0 to 2, got 3 at index 1",
        ),
        ({"x_test": with_value(np.nan, 1), "y_test": Y}, "test part: 1 of 100 samples hold NaN"),
        (
            {"x_test": np.zeros((2, 2), np.float32), "y_test": [0, 1]},
            r"alike, got float32 \(1,\) for training and float32 \(2,\) for test",
        ),
        (
            {"x_test": X.astype(np.uint8), "y_test": Y},
            r"float32 \(1,\) for training and uint8 \(1,\)",
        ),
        ({"x_test": X, "y_test": Y[:-1]}, "test part: x and y must pair"),
    ],
)
def test_a_test_part_unlike_the_training_part_is_refused(tmp_path, test_part, why_not):
    source = write(tmp_path, x_train=X, y_train=Y, **test_part)
    with pytest.raises(UserError, match=why_not):
        load_task(Data(source=source, calibration_samples=20), seed=0)


def test_a_known_set_with_a_label_too_many_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTSHIP_DATA", str(tmp_path))
    y = np.arange(100) % 11
    np.savez(tmp_path / "mnist.npz", x_train=X, y_train=y, x_test=X, y_test=y)
    with pytest.raises(UserError, match="training part must be 0 to 9, got 10 at index 10 of y"):
        load_task(Data(source="mnist"), seed=0)


def test_a_fraction_given_in_python_obeys_the_rules_of_a_recipe(tmp_path):
    with pytest.raises(UserError, match=r"data: Expected `float` < 1.0 - at `\$.test_fraction`"):
        load(tmp_path, test_fraction=1.5)


@given(st.data())
def test_a_stratified_choice_keeps_every_promise(data):
    counts = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    least = data.draw(st.integers(0, min(counts)))
    leave = data.draw(st.integers(0, min(counts) - least))
    count = data.draw(st.integers(least * len(counts), sum(counts) - leave * len(counts)))
    y = np.repeat(np.arange(len(counts)), counts)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    chosen = stratified(y, count, least=least, leave=leave, rng=rng)
    assert len(chosen) == len(set(chosen.tolist())) == count
    per_class = np.bincount(y[chosen], minlength=len(counts))
    assert (per_class >= least).all()
    assert (np.array(counts) - per_class >= leave).all()
    if least == leave == 0:
        assert np.abs(per_class - np.array(counts) * count / sum(counts)).max() < 1


@pytest.mark.parametrize(
    "settings", [{"count": 6}, {"count": 1, "least": 1}, {"count": 2, "leave": 3}]
)
def test_a_choice_that_cannot_be_made_is_refused(settings):
    with pytest.raises(ValueError, match="cannot choose"):
        stratified(np.array([0, 0, 0, 1, 1]), **settings, rng=np.random.default_rng(0))
