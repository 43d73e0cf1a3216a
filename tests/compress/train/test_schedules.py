import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.train.fit import Fit
from compress.train.losses import higher_is_better
from compress.train.schedules import (
    Constant,
    Cosine,
    Exponential,
    Listed,
    OneCycle,
    Plateau,
    Polynomial,
    StepDecay,
    learning_rate,
    momentum,
)

EVERY = (
    Constant(),
    StepDecay(every_epochs=1),
    Listed(rates=(0.1, 0.05)),
    Exponential(),
    Polynomial(),
    Cosine(),
    OneCycle(),
    Plateau(),
)


def rates(schedule, epochs=2, steps_per_epoch=4, peak=0.1, history=()):
    return [
        learning_rate(
            schedule, peak, step, epochs=epochs, steps_per_epoch=steps_per_epoch, history=history
        )
        for step in range(epochs * steps_per_epoch)
    ]


def test_a_constant_rate_is_the_number_itself():
    assert set(rates(Constant())) == {0.1}


def test_step_decay_falls_after_every_so_many_epochs():
    values = rates(StepDecay(every_epochs=2, factor=0.5), epochs=5, steps_per_epoch=2)
    assert values == pytest.approx([0.1] * 4 + [0.05] * 4 + [0.025] * 2)


def test_step_decay_falls_after_the_epochs_that_are_named():
    values = rates(StepDecay(at_epochs=(1, 3), factor=0.1), epochs=4, steps_per_epoch=1)
    assert values == pytest.approx([0.1, 0.01, 0.01, 0.001])


def test_a_list_gives_each_epoch_its_rate():
    assert rates(Listed(rates=(0.3, 0.2, 0.7)), epochs=3, steps_per_epoch=2) == [
        0.3, 0.3, 0.2, 0.2, 0.7, 0.7,
    ]  # fmt: skip


def test_exponential_leaves_its_factor_after_each_epoch_and_the_root_of_it_half_way():
    values = rates(Exponential(factor=0.25), epochs=2, steps_per_epoch=2)
    assert values == pytest.approx([0.1, 0.05, 0.025, 0.0125])


def test_polynomial_goes_to_its_final_rate_along_a_power():
    values = rates(Polynomial(power=2, final=0.2), epochs=1, steps_per_epoch=4, peak=1.0)
    # 0.2 + 0.8 (1 − t/4)²
    assert values == pytest.approx([1.0, 0.65, 0.4, 0.25])


def test_cosine_starts_at_the_peak_and_is_half_in_the_middle():
    values = rates(Cosine())
    assert values[0] == pytest.approx(0.1)
    assert values[2] == pytest.approx(0.05 * (1 + math.cos(math.pi / 4)))
    assert values[4] == pytest.approx(0.05)
    assert values == sorted(values, reverse=True)


def test_cosine_restarts_at_the_full_rate_and_each_cycle_is_longer_by_its_growth():
    schedule = Cosine(cycle_epochs=1, cycle_growth=2, final=0.5)
    values = rates(schedule, epochs=3, steps_per_epoch=2)
    # cycles of 2 and 4 steps: heights 1, ½ and 1, (1+√½)/2, ½, (1−√½)/2 above the floor of ½
    heights = [1, 0.5, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    assert values == pytest.approx([0.1 * (0.5 + 0.5 * height) for height in heights])


def test_one_cycle_climbs_to_the_peak_and_ends_at_nearly_nothing():
    schedule = OneCycle(rise=0.25, start=0.2, final=0.1)
    values = rates(schedule, epochs=1, steps_per_epoch=9, peak=1.0)
    # the peak is at step 2 of 0 to 8; half way up 0.2 + 0.8 · ½, half way down 0.1 + 0.9 · ½
    assert [values[step] for step in (0, 1, 2, 5, 8)] == pytest.approx([0.2, 0.6, 1.0, 0.55, 0.1])


def test_the_momentum_of_one_cycle_goes_against_the_rate():
    schedule = OneCycle(rise=0.25, momentum=(0.85, 0.95))
    values = [momentum(schedule, step, epochs=1, steps_per_epoch=9) for step in range(9)]
    assert [values[step] for step in (0, 1, 2, 5, 8)] == pytest.approx([0.95, 0.9, 0.85, 0.9, 0.95])
    assert momentum(OneCycle(), 3, epochs=1, steps_per_epoch=9) is None


def plateau(losses, **settings):
    schedule = Plateau(factor=0.5, min_delta=0.0, **{"patience": 2, **settings})
    history = [{"val_loss": loss, "val_accuracy": -loss} for loss in losses]
    return learning_rate(schedule, 1.0, 0, epochs=99, steps_per_epoch=1, history=history)


def test_a_plateau_of_as_many_epochs_as_patience_reduces_the_rate_and_counting_begins_anew():
    assert [plateau([3, 2, 2]), plateau([3, 2, 2, 2]), plateau([3, 2, 2, 2, 2])] == [1, 0.5, 0.5]
    assert plateau([3, 2, 2, 2, 2, 2]) == 0.25
    assert plateau([3, 2, 2, 1, 1]) == 1


def test_a_plateau_counts_no_epoch_while_it_cools_down_and_stops_at_its_final_rate():
    assert plateau([2] * 5, patience=1, cooldown=2) == 0.25
    assert plateau([2] * 5, patience=1) == 0.5**4
    assert plateau([2] * 5, patience=1, final=0.3) == 0.3


def test_a_plateau_of_a_metric_that_should_rise_is_one_where_it_does_not():
    assert plateau([3, 2, 1], metric="val_accuracy", patience=1) == 1
    assert plateau([1, 2, 3], metric="val_accuracy", patience=1) == 0.25


@pytest.mark.parametrize("schedule", EVERY, ids=lambda schedule: type(schedule).__name__)
def test_a_warm_up_climbs_in_equal_steps_to_where_any_schedule_begins(schedule):
    history = [{"val_loss": 1.0}]
    warm = msgspec.structs.replace(schedule, warmup_epochs=1)
    values = rates(warm, epochs=3, steps_per_epoch=4, history=history)
    after = rates(schedule, epochs=2, steps_per_epoch=4, history=history)
    assert values[:4] == pytest.approx([after[0] * part for part in (0.2, 0.4, 0.6, 0.8)])
    assert values[4:] == pytest.approx(after)


def test_a_warm_up_shorter_than_half_a_step_is_no_warm_up():
    assert rates(Cosine(warmup_epochs=0.1))[0] == pytest.approx(0.1)


@given(
    schedule=st.sampled_from(EVERY),
    warmup=st.floats(0, 1.9),
    steps_per_epoch=st.integers(1, 50),
)
def test_no_schedule_leaves_the_range_between_0_and_the_peak(schedule, warmup, steps_per_epoch):
    warm = msgspec.structs.replace(schedule, warmup_epochs=warmup)
    values = rates(warm, epochs=2, steps_per_epoch=steps_per_epoch)
    assert all(0 <= value <= 0.1 * (1 + 1e-9) for value in values)
    assert values[0] > 0


@pytest.mark.parametrize(
    ("schedule", "complaint"),
    [
        ({"kind": "list", "rates": [0.1, 0.2]}, "one learning rate for each of 3 epochs, got 2"),
        (
            {"kind": "list", "rates": [0.1, 0.2, 0.3], "warmup_epochs": 1},
            "one learning rate for each of 2 epochs, got 3",
        ),
        ({"kind": "step"}, "either every_epochs or at_epochs"),
        ({"kind": "step", "every_epochs": 1, "at_epochs": [1]}, "either every_epochs or at_epochs"),
        ({"kind": "step", "at_epochs": [2, 1]}, "at_epochs must increase"),
        ({"kind": "step", "every_epochs": 1e-320}, r">= 0.01.*every_epochs"),
        ({"kind": "cosine", "cycle_epochs": 1e-12}, r">= 0.01.*cycle_epochs"),
        ({"kind": "one_cycle", "momentum": [0.9, 0.8]}, "a smaller and a larger number"),
        ({"kind": "exponential", "warmup_epochs": 3}, "warmup_epochs must be below epochs"),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused(schedule, complaint):
    with pytest.raises(msgspec.ValidationError, match=complaint):
        msgspec.convert({"epochs": 3, "schedule": schedule}, Fit)


@pytest.mark.parametrize("kind", ["rmsprop", "gradient_descent"])
def test_a_momentum_that_the_optimizer_has_not_is_refused(kind):
    schedule = {"kind": "one_cycle", "momentum": [0.8, 0.9]}
    with pytest.raises(msgspec.ValidationError, match="needs an optimizer with momentum"):
        msgspec.convert({"epochs": 3, "schedule": schedule, "optimizer": {"kind": kind}}, Fit)


def test_of_losses_and_errors_less_is_better():
    assert [higher_is_better(name) for name in ("val_loss", "mae", "val_mean_squared_error")] == [
        False
    ] * 3
    assert higher_is_better("val_f1")
