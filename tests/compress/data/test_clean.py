from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.data.clean import Clean, also_in, fingerprints, repeats
from compress.data.sources import Data
from compress.data.splits import load_task
from deploy.errors import UserError
from deploy.streams import Mapped

X = np.arange(60, dtype=np.float32).reshape(60, 1)
Y = np.arange(60) % 2


def load(folder: Path, *, clean: Clean = Clean(), **arrays):
    np.savez(folder / "a.npz", **arrays)
    data = Data(source=f"npz:{folder / 'a.npz'}", clean=clean, calibration_samples=4)
    return load_task(data, seed=0)


def values(split) -> list[float]:
    return sorted(split.raw.ravel().tolist())


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.data())
def test_repeats_and_leaks_are_those_that_comparing_each_with_each_finds(numbers, data):
    x = np.array(numbers, np.uint8)[:, None]
    y = np.array(data.draw(st.lists(st.integers(0, 1), min_size=len(x), max_size=len(x))))
    others = np.array(data.draw(st.lists(st.integers(0, 5), min_size=1)), np.uint8)[:, None]
    pairs = list(zip(numbers, y.tolist(), strict=True))
    slow = [pair in pairs[:place] for place, pair in enumerate(pairs)]
    assert repeats(fingerprints(x), y).tolist() == slow
    assert also_in(fingerprints(x), fingerprints(others)).tolist() == [n in others for n in numbers]


def test_fingerprints_do_not_depend_on_where_the_samples_are():
    np.testing.assert_array_equal(fingerprints(X), fingerprints(Mapped(X, lambda block: block)))
    assert len(np.unique(fingerprints(X), axis=0)) == len(X)


def test_a_sample_of_the_test_part_that_is_learned_from_is_reported(tmp_path):
    task = load(tmp_path, x_train=X, y_train=Y, x_test=X[:3], y_test=Y[:3])
    (note,) = task.notes if len(task.notes) == 1 else (" ".join(task.notes),)
    assert "equal to samples of the test part" in note
    assert 'data.clean.duplicates = "drop"' in note
    assert len(task.train) + len(task.validation) == 60


def test_clean_data_have_no_notes(tmp_path):
    assert load(tmp_path, x=X, y=Y).notes == ()


def test_no_sample_is_in_two_parts_once_duplicates_are_dropped(tmp_path):
    x = np.concatenate([X, X, X[:20]])
    y = np.concatenate([Y, Y, 1 - Y[:20]])  # the last are the same samples with other labels
    task = load(tmp_path, clean=Clean(duplicates="drop"), x=x, y=y)
    parts = [set(values(part)) for part in (task.train, task.validation, task.test)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert "60 samples that repeat others were dropped" in task.notes[0]


def test_a_given_test_part_stays_whole_while_its_copies_leave_the_others(tmp_path):
    task = load(
        tmp_path,
        clean=Clean(duplicates="drop"),
        x_train=X,
        y_train=Y,
        x_test=X[[3, 3, 8]],
        y_test=Y[[3, 3, 8]],
    )
    assert values(task.test) == [3, 3, 8]
    assert not {3, 8} & {*values(task.train), *values(task.validation)}


def test_a_class_that_only_lives_in_duplicates_is_named(tmp_path):
    x_test = np.concatenate([X[1::2], X[:1]])
    with pytest.raises(UserError, match="training part: no sample of class '1' is left"):
        load(
            tmp_path,
            clean=Clean(duplicates="drop"),
            x_train=X,
            y_train=Y,
            x_test=x_test,
            y_test=np.array([1] * 30 + [0]),
        )


def test_samples_that_lack_a_value_are_dropped_from_every_part_and_counted(tmp_path):
    x, x_test = X.copy(), X[:4] + 100
    x[[5, 7]] = np.nan
    x_test[1] = np.nan
    arrays = {"x_train": x, "y_train": Y, "x_test": x_test, "y_test": Y[:4]}
    task = load(tmp_path, clean=Clean(missing="drop"), **arrays)
    assert len(task.train) + len(task.validation) == 58
    assert values(task.test) == [100, 102, 103]
    assert "2 of 60 samples of the training part were dropped" in task.notes[0]
    assert "1 of 4 samples of the test part were dropped" in task.notes[1]


def test_a_part_without_any_whole_sample_is_refused(tmp_path):
    with pytest.raises(UserError, match="every sample of the test part lacks a value"):
        load(
            tmp_path,
            clean=Clean(missing="drop"),
            x_train=X,
            y_train=Y,
            x_test=X[:2] * np.nan,
            y_test=Y[:2],
        )


def test_infinity_is_no_missing_value(tmp_path):
    x = X.copy()
    x[3] = np.inf
    with pytest.raises(UserError, match="1 of 60 samples hold infinity, the first at index 3"):
        load(tmp_path, clean=Clean(missing="mean"), x=x, y=Y)


def test_missing_values_of_arrays_are_filled_too(tmp_path):
    x = X.copy()
    x[3] = np.nan
    task = load(tmp_path, clean=Clean(missing="constant", missing_value=-1.0), x=x, y=Y)
    everything = np.concatenate([part.x for part in (task.train, task.validation, task.test)])
    assert everything.min() == -1


@pytest.mark.parametrize(
    ("text", "why_not"),
    [
        ('{"missing": "constant"}', "missing_value goes with"),
        ('{"missing_value": 1}', "missing_value goes with"),
        ('{"missing": "mode"}', "'mode'"),
        ('{"outliers": {}}', "quantile or sigma, one of them"),
        ('{"outliers": {"quantile": 0.1, "sigma": 2}}', "quantile or sigma, one of them"),
        ('{"outliers": {"quantile": 0.5}}', "< 0.5"),
    ],
)
def test_rules_that_contradict_themselves_are_refused(text, why_not):
    with pytest.raises(msgspec.ValidationError, match=why_not):
        msgspec.json.decode(text, type=Clean)
