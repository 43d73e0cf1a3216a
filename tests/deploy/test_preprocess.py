from __future__ import annotations

from functools import partial

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploy.errors import UserError
from deploy.preprocess import (
    Cast,
    Clip,
    Column,
    Fill,
    ImageSize,
    Normalize,
    OneHot,
    OneHotColumns,
    Op,
    Pad,
    Reshape,
    Resize,
    Scale,
    Table,
    apply,
    prepared,
)

sizes = st.integers(1, 1000)
numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
above_zero = st.floats(min_value=1e-30, max_value=1e30)
ops = st.one_of(
    st.builds(Cast, dtype=st.sampled_from(["float32", "int32", "int64", "uint8"])),
    st.builds(Scale, factor=numbers, offset=numbers),
    st.builds(
        Normalize,
        mean=st.lists(numbers, max_size=4).map(tuple),
        std=st.lists(above_zero, max_size=4).map(tuple),
    ),
    st.builds(Reshape, shape=st.lists(sizes, max_size=4).map(tuple)),
    st.builds(Resize, height=sizes, width=sizes),
    st.builds(OneHot, depth=sizes),
    st.builds(Clip, low=st.tuples(numbers), high=st.just((float(np.finfo(np.float32).max),))),
    st.builds(Fill, values=st.lists(numbers, max_size=4).map(tuple)),
    st.builds(Pad, height=sizes, width=sizes, value=numbers),
    st.builds(ImageSize, height=sizes, width=sizes),
    st.builds(
        Table,
        columns=st.lists(st.text(), unique=True, min_size=1, max_size=3).map(
            lambda names: tuple(Column(name=name, categories=("a", name)) for name in names)
        ),
        missing=st.booleans(),
    ),
    st.builds(OneHotColumns, columns=st.just((0, 2)), depths=st.tuples(sizes, sizes)),
)
images = hnp.arrays(np.uint8, st.tuples(*[st.integers(1, 5)] * 3, st.sampled_from([1, 3])))


@given(st.lists(ops, max_size=5).map(tuple))
def test_a_spec_comes_back_from_json_unchanged(spec):
    assert msgspec.json.decode(msgspec.json.encode(spec), type=tuple[Op, ...]) == spec


@given(images)
def test_a_sample_alone_gives_the_same_numbers_as_in_its_batch(batch):
    channels = batch.shape[-1]
    spec = (
        Resize(height=3, width=4),
        Scale(factor=1 / 255, offset=-0.5),
        Normalize(mean=(0.5,), std=(0.25,) * channels),
        Reshape(shape=(12 * channels,)),
    )
    alone = [apply(spec, batch[index : index + 1]) for index in range(len(batch))]
    np.testing.assert_array_equal(apply(spec, batch), np.concatenate(alone))


specs = st.lists(
    st.one_of(
        st.builds(Cast, dtype=st.sampled_from(["float32", "int32", "uint8"])),
        st.builds(Scale, factor=st.floats(-2, 2, width=32), offset=st.floats(-2, 2, width=32)),
        st.builds(Normalize, mean=st.just((0.5,)), std=st.just((0.25,))),
        st.builds(Clip, low=st.just((-1.0,)), high=st.just((1.0,))),
        st.builds(Pad, height=st.just(5), width=st.just(5)),
        st.builds(Resize, height=st.just(2), width=st.just(3)),
        st.just(Reshape(shape=(3, 4))),
        st.just(Reshape(shape=(4, 3, 1))),
    ),
    max_size=4,
).map(tuple)
samples = st.sampled_from(["uint8", "float32", "int64"]).flatmap(
    lambda dtype: hnp.arrays(
        dtype, st.sampled_from([(1, 4, 3, 1), (3, 4, 3, 1)]), elements=st.integers(0, 255)
    )
)


def outcome(prepare, batch):
    """Return what comes out, or else the sentence of the refusal."""
    try:
        return prepare(batch), None
    except UserError as refusal:
        return None, str(refusal)


@given(specs, samples)
def test_a_prepared_spec_gives_the_numbers_or_the_refusal_that_apply_gives(spec, batch):
    ready = prepared(spec, batch.shape[1:], batch.dtype)
    before = batch.copy()
    (expected, refusal), (found, same) = outcome(partial(apply, spec), batch), outcome(ready, batch)
    assert refusal == same
    if expected is not None:
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()
        assert found.flags.c_contiguous
    np.testing.assert_array_equal(batch, before)


@given(images)
def test_an_image_of_another_size_alone_gives_the_same_numbers_as_in_its_batch(batch):
    op = ImageSize(height=2, width=7)
    alone = [apply((op,), batch[index : index + 1]) for index in range(len(batch))]
    np.testing.assert_array_equal(apply((op,), batch), np.concatenate(alone))


@given(images)
def test_an_image_that_is_made_smaller_keeps_its_range_and_a_flat_one_its_value(batch):
    small = apply((ImageSize(height=1, width=2),), batch)
    assert small.dtype == np.uint8
    assert batch.min() <= small.min()
    assert small.max() <= batch.max()


@given(images)
def test_resize_to_the_same_size_changes_nothing(batch):
    same = apply((Resize(height=batch.shape[1], width=batch.shape[2]),), batch)
    np.testing.assert_array_equal(same, batch)


@pytest.mark.parametrize(
    ("op", "samples", "expected"),
    [
        (Cast(dtype="int32"), np.array([[1.9, -1.9]]), np.array([[1, -1]], np.int32)),
        (Cast(dtype="uint8"), np.array([[0, 255]]), np.array([[0, 255]], np.uint8)),
        (Scale(factor=2, offset=1), np.array([[0, 3]], np.uint8), np.float32([[1, 7]])),
        (
            Normalize(mean=(1, 2), std=(2, 4)),
            np.array([[3, 10], [1, 2]], np.uint8),
            np.float32([[1, 2], [0, 0]]),
        ),
        (Reshape(shape=(2, 1)), np.array([[5, 6]]), np.array([[[5], [6]]])),
        (
            Resize(height=1, width=4),
            np.uint8([[[[0], [4]]]]),
            np.float32([[[[0], [1], [3], [4]]]]),
        ),
        (Resize(height=1, width=1), np.uint8([[[[1], [3]], [[5], [7]]]]), np.float32([[[[4]]]])),
        (OneHot(depth=3), np.array([[2], [0]]), np.float32([[[0, 0, 1]], [[1, 0, 0]]])),
        (
            Clip(low=(0, -1), high=(1, 1)),
            np.array([[5, -5], [np.nan, 0]]),
            np.float32([[1, -1], [np.nan, 0]]),
        ),
        (Fill(values=(7,)), np.array([[np.nan, 2]]), np.float32([[7, 2]])),
        (
            Pad(height=2, width=4, value=9),
            np.uint8([[[[1]]]]),
            np.uint8([[[[9], [1], [9], [9]], [[9], [9], [9], [9]]]]),
        ),
        # A quarter of the neighbours' weight on each side of two averaged pixels.
        (ImageSize(height=1, width=1), np.uint8([[[[0], [100]]]]), np.uint8([[[[50]]]])),
        (
            ImageSize(height=1, width=3),
            np.uint8([[[[10], [20]]]]),
            np.uint8([[[[10], [15], [20]]]]),
        ),
    ],
)
def test_an_op_gives_the_numbers_worked_out_by_hand(op, samples, expected):
    before = samples.copy()
    got = apply((op,), samples)
    np.testing.assert_array_equal(got, expected)
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(samples, before)


def test_no_steps_give_the_samples_themselves():
    np.testing.assert_array_equal(apply((), np.array([[1, 2]])), [[1, 2]])


def test_the_result_lies_in_memory_as_runtimes_want_it():
    transposed = np.zeros((2, 3, 4), np.float32).transpose(0, 2, 1)
    assert apply((Cast(),), transposed).flags.c_contiguous


@pytest.mark.parametrize(
    ("op", "samples", "why_not"),
    [
        (Reshape(shape=(5,)), np.zeros((2, 2, 3)), r"reshape to \(5,\) needs 5 values.*\(2, 3\)"),
        (
            Resize(height=2, width=2),
            np.zeros((1, 4, 4)),
            r"resize needs .*channels\), got \(4, 4\)",
        ),
        (
            Normalize(mean=(1, 2), std=(1,)),
            np.zeros((1, 3)),
            "needs 1 or 3 values, got 2 for mean and 1 for std",
        ),
        (Normalize(mean=(), std=(1,)), np.zeros((1, 3)), "got 0 for mean"),
        (Clip(low=(0, 0), high=(1, 1)), np.zeros((1, 3)), "clip needs 1 or 3 values, got 2"),
        (Fill(values=()), np.zeros((1, 3)), "fill needs 1 or 3 values, got 0"),
        (Pad(height=9, width=2), np.zeros((1, 3, 3, 1)), "9×2 is smaller than 3×3"),
        (Pad(height=9, width=9), np.zeros((1, 3, 3)), r"pad needs .*channels\), got \(3, 3\)"),
        (Pad(height=9, width=9, value=0.5), np.zeros((1, 3, 3, 1), np.uint8), "does not fit uint8"),
        (Pad(height=9, width=9, value=256), np.zeros((1, 3, 3, 1), np.uint8), "does not fit uint8"),
        (ImageSize(height=2, width=2), np.zeros((1, 4, 4, 1)), "needs uint8 samples, got float64"),
        (
            ImageSize(height=2, width=2),
            np.zeros((1, 4)),
            r"image_size needs .*channels\), got \(4,\)",
        ),
        (OneHot(depth=3), np.zeros((1, 2)), "integer codes, got float64"),
        (OneHot(depth=3), np.array([[3]]), "codes from 0 to 2, got 3 to 3"),
        (OneHot(depth=3), np.array([[-1, 2]]), "codes from 0 to 2, got -1 to 2"),
        (Cast(dtype="uint8"), np.array([[256.0]]), "cast to uint8 .*256.0"),
        (Cast(dtype="uint8"), np.array([[-1]]), "cast to uint8 .*-1 to -1"),
        (Cast(dtype="int32"), np.array([[np.nan]]), "cast to int32 .*nan"),
        (Cast(dtype="int32"), np.array([[2**31]]), "cast to int32 .*2147483648"),
        (Cast(dtype="int64"), np.array([[2.0**63]]), "cast to int64"),
    ],
)
def test_a_step_that_does_not_fit_is_refused_by_its_place(op, samples, why_not):
    with pytest.raises(UserError, match=rf"^preprocess\[1\]: .*{why_not}"):
        apply((Reshape(shape=samples.shape[1:]), op), samples)


@pytest.mark.parametrize(
    ("text", "why_not"),
    [
        ('{"op": "crop"}', r"Invalid value 'crop'.*\[0\].op"),
        ('{"op": "scale", "faktor": 2}', r"unknown field `faktor`.*\[0\]"),
        ('{"op": "scale", "factor": 1e300}', r"factor must be .* float32 .*1e\+300.*\[0\]"),
        ('{"op": "normalize", "mean": [1e300], "std": [1]}', "mean must be"),
        ('{"op": "normalize", "mean": [0], "std": [0]}', r"float.*> 0.*std"),
        ('{"op": "normalize", "mean": [0], "std": [1e-60]}', "std must be above 0 in float32"),
        ('{"op": "reshape", "shape": [0]}', r"int.*>= 1.*shape"),
        ('{"op": "cast", "dtype": "float16"}', "float16"),
        ('{"op": "clip", "low": [1], "high": [0]}', "low must not be above high, got 1"),
        ('{"op": "clip", "low": [0, 0], "high": [1]}', "low and high must pair, got 2 and 1"),
        ('{"op": "fill", "values": [1e300]}', "float32"),
        ('{"op": "table", "columns": []}', "length >= 1"),
        ('{"op": "table", "columns": [{"name": "a"}, {"name": "a"}]}', "different names, got a, a"),
        ('{"op": "one_hot_columns", "columns": [0, 0], "depths": [2, 2]}', "must be different"),
    ],
)
def test_a_spec_that_cannot_be_meant_is_refused_when_read(text, why_not):
    with pytest.raises(msgspec.ValidationError, match=why_not):
        msgspec.json.decode(f"[{text}]", type=tuple[Op, ...])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_json_cannot_hold_is_refused(value):
    with pytest.raises(ValueError, match="offset must be a number"):
        Scale(offset=value)
