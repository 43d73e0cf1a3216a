"""What TensorFlow says and nobody can act on stays off the terminal; the rest is heard."""

import logging

import pytest

from compress.quiet import _is_worth_saying


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("%d out of the last %d calls to f triggered tf.function retracing. Tracing is", False),
        ("%d of %d gradients do not exist", True),
    ],
)
def test_advice_on_tracing_is_passed_over(said, heard):
    record = logging.LogRecord("tensorflow", logging.WARNING, "", 0, said, (5, 6), None)
    assert _is_worth_saying(record) is heard
