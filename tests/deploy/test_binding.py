"""What a bound session gives is what session.run gives."""

import threading
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest

from deploy import binding
from deploy.binding import BoundSample
from tests.deploy import tiny_onnx


class Counted:
    """A session that counts how it was asked."""

    def __init__(self, model):
        self.session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.plain = self.bound = 0

    def __getattr__(self, name):
        return getattr(self.session, name)

    def run(self, *given):
        self.plain += 1
        return self.session.run(*given)

    def run_with_iobinding(self, bound):
        self.bound += 1
        return self.session.run_with_iobinding(bound)


def opened(model):
    session = Counted(model)
    given, made = session.session.get_inputs()[0], session.session.get_outputs()[0]
    return session, BoundSample(session, given.name, made.name)


def doubled():
    return opened(tiny_onnx.linear(2 * np.eye(3)))


def test_from_the_second_sample_on_the_session_is_bound_and_answers_the_same():
    session, bound = doubled()
    for value in range(4):
        answer = bound.run(np.full((1, 3), value, np.float32))
        np.testing.assert_array_equal(answer, np.full((1, 3), 2 * value))
    assert (session.plain, session.bound) == (1, 4)  # once more, to see that it answers the same


def test_an_answer_is_the_callers_and_stays_as_it_is():
    _, bound = doubled()
    answers = [bound.run(np.full((1, 3), value, np.float32)) for value in range(4)]
    answers[3][:] = -1
    np.testing.assert_array_equal(answers[2], [[4, 4, 4]])
    np.testing.assert_array_equal(bound.run(np.ones((1, 3), np.float32)), [[2, 2, 2]])


def test_what_is_asked_may_lie_in_memory_as_it_likes():
    _, bound = doubled()
    bound.run(np.ones((1, 3), np.float32))
    scattered = np.arange(12, dtype=np.float32).reshape(2, 6)[:1, ::2]
    assert not scattered.flags.c_contiguous
    np.testing.assert_array_equal(bound.run(scattered), [[0, 4, 8]])


def test_batches_go_by_the_plain_call_and_the_binding_stays():
    session, bound = doubled()
    for count in (2, 1, 3, 1, 5, 1):
        np.testing.assert_array_equal(
            bound.run(np.full((count, 3), count, np.float32)), np.full((count, 3), 2 * count)
        )
    assert (session.plain, session.bound) == (4, 3)


@pytest.mark.parametrize("wrong", [np.ones((1, 3)), np.ones((1, 4), np.float32)])
def test_what_the_model_does_not_take_is_refused_as_by_the_plain_call(wrong):
    session, bound = doubled()
    bound.run(np.ones((1, 3), np.float32))
    with pytest.raises(Exception, match=r"INVALID_ARGUMENT|[Uu]nexpected"):
        bound.run(wrong)
    np.testing.assert_array_equal(bound.run(np.ones((1, 3), np.float32)), [[2, 2, 2]])
    assert session.bound == 2


def test_a_sample_that_the_model_fails_on_does_not_cost_the_binding():
    gather = tiny_onnx.model(
        [("Gather", ["table", "x"], ["y"])],
        inputs={"x": ("int64", ["n", 1])},
        outputs={"y": ("float32", ["n", 1])},
        initializers={"table": np.array([5, 6, 7], np.float32)},
    )
    session, bound = opened(gather)
    for place, found in ((0, 5), (1, 6)):
        assert bound.run(np.array([[place]])) == found
    with pytest.raises(Exception, match="out of data bounds"):
        bound.run(np.array([[99]]))
    before = session.plain
    assert bound.run(np.array([[2]])) == 7
    assert session.plain == before


def test_what_is_handed_through_is_not_bound():
    """ONNX Runtime writes nothing then, and says nothing."""
    through = tiny_onnx.model(
        [("Identity", ["x"], ["y"])],
        inputs={"x": ("float32", ["n", 3])},
        outputs={"x": ("float32", ["n", 3])},
    )
    session, bound = opened(through)
    for value in (4, 5, 6):
        sample = np.full((1, 3), value, np.float32)
        np.testing.assert_array_equal(bound.run(sample), sample)
    assert session.bound == 0


def test_who_answers_differently_when_bound_is_asked_plainly():
    session, bound = doubled()
    session.run_with_iobinding = lambda _: None  # as if nothing were written
    for value in (4, 5, 6):
        answer = bound.run(np.full((1, 3), value, np.float32))
        np.testing.assert_array_equal(answer, np.full((1, 3), 2 * value))
    assert session.plain == 3


def test_an_output_that_is_no_tensor_goes_by_the_plain_call():
    session = Counted(tiny_onnx.linear(np.eye(3)))
    session.get_outputs = lambda: [SimpleNamespace(type="seq(tensor(float))")]
    given, made = session.session.get_inputs()[0], session.session.get_outputs()[0]
    bound = BoundSample(session, given.name, made.name)
    for _ in range(3):
        bound.run(np.ones((1, 3), np.float32))
    assert (session.plain, session.bound) == (3, 0)


def test_an_output_whose_shape_hangs_on_the_values_is_never_cut_or_padded():
    nonzero = tiny_onnx.model(
        [("NonZero", ["x"], ["y"])],
        inputs={"x": ("float32", ["n", 3])},
        outputs={"y": ("int64", [2, "found"])},
    )
    session, bound = opened(nonzero)
    for sample in ([1, 0, 2], [3, 4, 5], [0, 0, 6], [7, 0, 8]):
        expected = np.transpose(np.nonzero([sample]))
        np.testing.assert_array_equal(bound.run(np.array([sample], np.float32)).T, expected)
    assert session.bound == 2, "it is not tried again"


@pytest.mark.parametrize("shape", [(3, 2), (2, 3)])  # 8 or 12 bytes go in, the other come out
def test_large_samples_and_outputs_are_not_copied(shape, monkeypatch):
    monkeypatch.setattr(binding, "MOST_BYTES", 11)
    session, bound = opened(tiny_onnx.linear(np.ones(shape)))
    for _ in range(3):
        bound.run(np.ones((1, shape[0]), np.float32))
    assert (session.plain, session.bound) == (3, 0)


def test_who_finds_the_buffers_taken_asks_plainly():
    class Gone(list):
        def pop(self):
            raise IndexError  # between the look and the grip, another thread has taken them

    session, bound = doubled()
    bound.run(np.ones((1, 3), np.float32))
    bound._spare = Gone(bound._spare)
    np.testing.assert_array_equal(bound.run(np.ones((1, 3), np.float32)), [[2, 2, 2]])
    assert session.plain == 2


def test_threads_get_each_their_own_answer():
    _, bound = doubled()
    bound.run(np.ones((1, 3), np.float32))
    wrong = []

    def ask(value):
        sample = np.full((1, 3), value, np.float32)
        wrong.extend(1 for _ in range(3000) if (bound.run(sample) != 2 * value).any())

    threads = [threading.Thread(target=ask, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
