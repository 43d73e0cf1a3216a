import pytest

from compress.train.schedules import Constant, Cosine, learning_rate


def rates(schedule, epochs=2, steps_per_epoch=4, peak=0.1, history=()):
    return [
        learning_rate(
            schedule, peak, step, epochs=epochs, steps_per_epoch=steps_per_epoch, history=history
        )
        for step in range(epochs * steps_per_epoch + 1)
    ]


def test_a_constant_rate_is_the_number_itself():
    assert set(rates(Constant())) == {0.1}


def test_cosine_starts_at_the_peak_is_half_in_the_middle_and_zero_at_the_end():
    values = rates(Cosine())
    assert values[0] == pytest.approx(0.1)
    assert values[4] == pytest.approx(0.05)
    assert values[8] == pytest.approx(0.0, abs=1e-8)
    assert values == sorted(values, reverse=True)


def test_warm_up_climbs_in_equal_steps_and_no_step_is_wasted_on_a_rate_of_zero():
    values = rates(Cosine(warmup_epochs=1))
    assert values[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert values[6] == pytest.approx(0.05)
    assert values[8] == pytest.approx(0.0, abs=1e-8)


def test_a_warm_up_shorter_than_half_a_step_is_no_warm_up():
    assert rates(Cosine(warmup_epochs=0.1))[0] == pytest.approx(0.1)
