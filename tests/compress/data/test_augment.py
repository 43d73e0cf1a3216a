from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.data.augment import (
    Crop,
    Cutout,
    Flip,
    Mixup,
    Rotation,
    Shift,
    Zoom,
    augment_batch,
    why_not_augmented,
)
from compress.data.sources import Data
from compress.data.splits import load_task
from deploy.errors import UserError

ALL = (
    Shift(height=0.3, width=0.2),
    Flip(vertical=True),
    Rotation(degrees=90),
    Zoom(low=0.5, high=2.0),
    Crop(padding=2),
    Crop(padding=2, fill="edge"),
    Cutout(size=3),
    Mixup(alpha=0.4),
)
RNG = np.random.default_rng(0)
X = RNG.uniform(0.0, 1.0, (6, 8, 7, 2)).astype(np.float32)
Y = np.eye(3, dtype=np.float32)[np.arange(6) % 3]


def changed(*spec, seed=(0, 0), x=X, y=Y):
    new_x, new_y = augment_batch(spec, x, y, np.array(seed, np.int32))
    return np.asarray(new_x), np.asarray(new_y)


@pytest.mark.parametrize("augment", ALL, ids=repr)
@settings(max_examples=15, deadline=None)  # the first call imports TensorFlow
@given(seed=st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1)))
def test_values_stay_in_range_and_targets_keep_their_sum(augment, seed):
    x, y = changed(augment, seed=seed)
    assert x.shape == X.shape
    assert x.dtype == np.float32
    assert X.min() - 1e-6 <= x.min() or augment == Crop(padding=2)
    assert x.min() >= 0
    assert x.max() <= X.max() + 1e-6
    np.testing.assert_allclose(y.sum(axis=1), 1, rtol=1e-6)
    if not isinstance(augment, Mixup):
        np.testing.assert_array_equal(y, Y)


@pytest.mark.parametrize("augment", ALL, ids=repr)
def test_a_seed_gives_the_same_batch_in_a_graph_too_and_another_gives_another(augment):
    import tensorflow as tf

    one, again, two = changed(augment), changed(augment), changed(augment, seed=(0, 1))
    graph = tf.function(lambda x, y, seed: augment_batch((augment,), x, y, seed))
    for got in (again, graph(X, Y, np.array((0, 0), np.int32))):
        np.testing.assert_array_equal(got[0], one[0])
        np.testing.assert_array_equal(got[1], one[1])
    assert not np.array_equal(one[0], two[0])
    assert not np.array_equal(one[0], X)


def test_no_augmentation_gives_the_batch_itself():
    x, y = augment_batch((), X, Y, (0, 0))
    assert x is X
    assert y is Y


def test_each_sample_draws_its_own():
    same = np.repeat(X[:1], 16, axis=0)
    for augment in ALL[:-1]:
        x, _ = changed(augment, x=same, y=np.repeat(Y[:1], 16, axis=0))
        assert len({sample.tobytes() for sample in x}) > 1, augment


def test_two_steps_alike_draw_apart():
    crop = Crop(padding=2, fill="edge")
    twice, _ = changed(crop, crop)
    same_draw_again, _ = changed(crop, x=changed(crop)[0])
    assert not np.array_equal(twice, same_draw_again)


@pytest.mark.parametrize("axis", [1, 2])
def test_a_flipped_image_is_itself_or_its_mirror_image(axis):
    x, _ = changed(Flip(horizontal=axis == 2, vertical=axis == 1))
    mirrored = [np.array_equal(new, np.flip(old, axis - 1)) for new, old in zip(x, X, strict=True)]
    same = [np.array_equal(new, old) for new, old in zip(x, X, strict=True)]
    assert any(mirrored)
    assert any(same)
    assert all(a or b for a, b in zip(mirrored, same, strict=True))


def test_a_cropped_image_is_a_window_of_the_padded_one():
    x, _ = changed(Crop(padding=2))
    for new, old in zip(x, X, strict=True):
        padded = np.pad(old, ((2, 2), (2, 2), (0, 0)))
        windows = [padded[i : i + 8, j : j + 7] for i in range(5) for j in range(5)]
        assert any(np.array_equal(new, window) for window in windows)


def test_a_cut_square_holds_the_mean_and_the_rest_is_untouched():
    x, _ = changed(Cutout(size=3))
    for new, old in zip(x, X, strict=True):
        cut = (new != old).any(axis=2)
        assert 1 <= cut.sum() <= 9
        np.testing.assert_allclose(
            new[cut], np.tile(old.mean(axis=(0, 1)), (cut.sum(), 1)), rtol=1e-5
        )


def test_a_turn_and_a_zoom_leave_the_centre_where_it_is():
    x = np.zeros((5, 9, 9, 1), np.float32)
    x[:, 4, 4] = 1
    for augment in (Rotation(degrees=180), Zoom(low=0.5, high=2.0)):
        got, _ = changed(augment, x=x, y=Y[:5])
        np.testing.assert_allclose(got[:, 4, 4, 0], 1, atol=1e-4)


def test_a_shift_moves_by_no_more_than_its_share():
    x = np.zeros((64, 20, 20, 1), np.float32)
    x[:, 10, 10] = 1
    got, _ = changed(Shift(height=0.2, width=0.1), x=x, y=np.ones((64, 1), np.float32))
    rows, columns = np.nonzero(got.max(axis=(0, 3)) > 0.01)
    assert 6 <= rows.min() < 10 < rows.max() <= 14
    assert 8 <= columns.min() < 10 < columns.max() <= 12


def test_mixed_targets_are_mixed_as_their_samples_are():
    x = np.repeat(np.arange(6, dtype=np.float32)[:, None], 2, axis=1)
    y = np.eye(6, dtype=np.float32)
    new_x, new_y = changed(Mixup(alpha=1.0), x=x, y=y)
    np.testing.assert_allclose(new_y @ np.arange(6), new_x[:, 0], rtol=1e-5)
    assert ((new_y > 0).sum(axis=1) <= 2).all()


@given(st.floats(1e-4, 0.05))
@settings(max_examples=10, deadline=None)
def test_the_smallest_shares_make_no_nan(alpha):
    x, y = changed(Mixup(alpha=alpha))
    assert np.isfinite(x).all()
    assert np.isfinite(y).all()


@pytest.mark.parametrize(
    ("spec", "shape", "why_not"),
    [
        ((Mixup(),), (30,), None),
        ((Mixup(), Shift()), (30,), r"augment[1]: 'shift' needs images"),
        ((Crop(padding=8),), (8, 9, 1), "'crop' with padding = 8 leaves nothing of 8×9 pixels"),
        ((Cutout(size=9),), (8, 9, 1), "'cutout' with size = 9 leaves nothing"),
        ((Crop(padding=7), Cutout()), (8, 9, 1), None),
    ],
)
def test_samples_that_it_cannot_work_on_are_refused(spec, shape, why_not):
    got = why_not_augmented(spec, shape)
    assert got is None if why_not is None else why_not in (got or "")


def test_a_table_with_an_augmentation_for_images_is_one_line(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((20, 4), np.float32), y=np.arange(20) % 2)
    data = Data(source=f"npz:{tmp_path / 'a.npz'}", calibration_samples=4, augment=(Flip(),))
    with pytest.raises(UserError, match=r"augment\[0\]: 'flip' needs images") as caught:
        load_task(data, seed=0)
    assert "\n" not in str(caught.value)


def test_the_task_carries_it_and_no_part_is_changed_by_it(tmp_path):
    np.savez(tmp_path / "a.npz", x=RNG.integers(0, 255, (20, 6, 6), np.uint8), y=np.arange(20) % 2)
    source = f"npz:{tmp_path / 'a.npz'}"
    plain = load_task(Data(source=source, calibration_samples=4), seed=0)
    spec = (Flip(), Crop())
    task = load_task(Data(source=source, calibration_samples=4, augment=spec), seed=0)
    assert task.augment == spec
    assert task.digest != plain.digest
    assert task.preprocess == plain.preprocess
    for part in ("train", "calibration", "validation", "test"):
        np.testing.assert_array_equal(getattr(task, part).x, getattr(plain, part).x)
