import contextlib

import numpy as np
import pytest

from compress.export.parity import require_parity
from deploy.errors import ParityError


def identity(x):
    return x


def test_the_largest_difference_is_returned():
    x = np.zeros((2, 3), np.float32)
    assert (
        require_parity(identity, lambda x: x + np.float32([0, 0.25, -0.5]), x, tolerance=1) == 0.5
    )


def test_a_difference_above_the_tolerance_names_its_sample():
    def wrong_on_the_third(x):
        x = x.copy()
        x[2, 1] = 7
        return x

    with pytest.raises(ParityError, match="differ by 7 on sample 2 of 4"):
        require_parity(identity, wrong_on_the_third, np.zeros((4, 2)), tolerance=1e-4)


def test_nan_fails_whatever_the_tolerance():
    with pytest.raises(ParityError, match="nan"):
        require_parity(identity, lambda x: x * np.nan, np.ones((1, 2)), tolerance=np.inf)


@pytest.mark.parametrize(
    ("largest", "difference", "passes"),
    [(1000, 0.09, True), (1000, 0.11, False), (0.5, 0.00009, True), (0.5, 0.00011, False)],
)
def test_above_1_the_tolerance_is_a_share_of_the_largest_output(largest, difference, passes):
    x = np.float64([[0, 0.25], [-largest, 0]])
    far = np.float64([[difference, 0], [0, 0]])
    with contextlib.nullcontext() if passes else pytest.raises(ParityError, match="on sample 0"):
        require_parity(identity, lambda x: x + far, x, tolerance=1e-4)


def test_an_infinite_output_does_not_allow_an_infinite_difference():
    with pytest.raises(ParityError):
        require_parity(identity, np.zeros_like, np.float64([[np.inf, 0]]), tolerance=1e-4)


def test_outputs_of_another_shape_fail():
    with pytest.raises(ParityError, match="shape"):
        require_parity(identity, lambda x: x[:, :1], np.ones((1, 2)), tolerance=1)


def test_no_samples_prove_nothing():
    with pytest.raises(ParityError, match="no samples"):
        require_parity(identity, identity, np.ones((0, 2)), tolerance=1)
