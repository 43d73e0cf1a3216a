import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploy.bundle.container import to_zip
from deploy.bundle.golden import Golden, candidates, choose, decode, encode, tolerance
from deploy.errors import BundleError

SCORES = np.float32([[1, 0], [0, 1]])


@given(
    hnp.arrays(
        st.sampled_from(["uint8", "int64", "float32", ">f4"]),
        hnp.array_shapes(min_dims=2, max_dims=4),
        elements=st.integers(0, 9),
    )
)
def test_samples_come_back_as_they_were(x):
    back = decode(encode(Golden(x=x, scores=SCORES)), "here")
    assert np.array_equal(back.x, x)
    assert back.x.dtype == x.dtype.newbyteorder("<")
    assert np.array_equal(back.scores, SCORES)


def test_numpys_own_reader_reads_it():
    data = encode(Golden(x=np.arange(6).reshape(2, 3), scores=SCORES))
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        assert set(arrays) == {"x", "scores"}
        assert np.array_equal(arrays["x"], np.arange(6).reshape(2, 3))


def npy(header, body=b""):
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


@pytest.mark.parametrize(
    "x",
    [
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (100000000000,), }", b"x"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"cos\nsystem\n"),
        npy("{'descr': '<u2', 'fortran_order': True, 'shape': (1, 1), }", b"xx"),
        npy("{'descr': '<u2', 'fortran_order': False, 'shape': (), }", b"xx"),
        npy("{'descr': '<u2', 'fortran_order': False, 'shape': (-1,), }", b"xx"),
        npy("{'descr': '<u2', 'fortran_order': False, 'shape': (2,), }", b"xx"),
        npy("__import__('os').system('true')"),
        npy("((((((("),
        b"\x93NUMPY\x03\x00",
        b"",
    ],
)
def test_an_array_that_lies_is_refused(x):
    data = to_zip({"scores.npy": npy("{}"), "x.npy": x}, compress=False)
    with pytest.raises(BundleError, match=r"here: golden\.npz"):
        decode(data, "here")


def test_every_class_has_its_turn():
    y = np.array([0] * 50 + [1] * 5 + [2])
    scores = np.eye(3)[y]
    chosen = choose(y, scores, allowed=1e-4)
    assert len(set(chosen.tolist())) == 12
    assert np.bincount(y[chosen]).tolist() == [6, 5, 1]


def test_with_more_classes_than_samples_classes_are_taken_evenly():
    y = np.arange(100)
    assert choose(y, np.eye(100), allowed=1e-4, count=5).tolist() == [0, 24, 49, 74, 99]


def test_a_sample_that_rounding_could_tip_is_taken_last():
    y = np.zeros(3, int)
    scores = np.array([[0.5, 0.49], [0.9, 0.1], [0.8, 0.2]])
    assert choose(y, scores, allowed=0.05, count=2).tolist() == [1, 2]
    assert choose(y, scores, allowed=0.001, count=2).tolist() == [0, 1]


def test_candidates_are_the_first_of_every_class():
    y = np.array([1] * 60 + [0] * 60)
    assert candidates(y).tolist() == [*range(50), *range(60, 110)]


def test_the_tolerance_grows_with_the_scores_and_with_rounding():
    assert tolerance(np.array([[-200.0, 3.0]]), quantized=False) == pytest.approx(0.02)
    assert tolerance(np.array([[0.2, 0.8]]), quantized=True) == 0.05
