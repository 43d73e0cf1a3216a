import msgspec
import numpy as np
import pytest

from compress.train.find_rate import RateCurve, _read, draw_rate_curve, find_learning_rate
from compress.train.fit import Fit, fit
from compress.train.optimizers import Sgd
from deploy.errors import UserError
from tests.compress.train.tiny import everything, numbers

CONFIG = Fit(epochs=1, batch_size=30, optimizer=Sgd())


def found(**settings):
    return find_learning_rate(everything(), numbers(), CONFIG, seed=0, **settings)


def test_the_suggestion_is_where_the_loss_falls_fastest():
    rates = np.geomspace(1e-6, 10, 150)
    # a fall around 1e-3, an even floor from 1e-2, a rise from 1 on
    losses = 1 / (1 + (rates / 1e-3) ** 2) + np.where(rates > 1, rates - 1, 0)
    curve = _read(rates, losses)
    assert 3e-4 < curve.suggestion < 3e-3
    assert 1e-2 < curve.largest <= 1.01


def test_a_first_batch_that_is_easy_by_chance_is_not_the_bottom():
    rates = np.geomspace(1e-6, 10, 60)
    losses = 1 / (1 + (rates / 1e-3) ** 2) + np.where(rates > 1, rates - 1, 0) + 0.5
    losses[0] = 0.1
    curve = _read(rates, losses)
    assert 3e-4 < curve.suggestion < 3e-3
    assert 1e-2 < curve.largest <= 1.01


def test_a_rate_that_is_suggested_learns_more_in_an_epoch_than_the_ends_of_the_range():
    suggestion = found().suggestion

    def loss_after(rate):
        optimizer = Sgd(learning_rate=rate)
        config = msgspec.structs.replace(CONFIG, epochs=4, optimizer=optimizer)
        try:
            return fit(everything(), numbers(), config, seed=0).epochs[-1]["val_loss"]
        except UserError:  # it exploded
            return np.inf

    assert loss_after(suggestion) < min(loss_after(1e-6), loss_after(10.0))


def test_the_search_ends_when_the_loss_explodes_and_is_the_same_again():
    curve = found(highest=1e4, steps=60)
    assert len(curve.rates) == len(curve.losses) < 60
    assert np.all(np.isfinite(curve.losses))
    assert found(highest=1e4, steps=60) == curve


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_curve_is_drawn(tmp_path, suffix):
    path = tmp_path / f"rates{suffix}"
    curve = RateCurve(
        rates=(1e-3, 1e-2, 1e-1), losses=(1.0, 0.5, 2.0), suggestion=3e-3, largest=1e-2
    )
    draw_rate_curve(curve, path)
    assert path.stat().st_size > 1000


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"lowest": 1.0, "highest": 0.1}, "must be finite and rise from above 0, got 1 and 0.1"),
        ({"highest": float("inf")}, "must be finite and rise from above 0, got 1e-06 and inf"),
        ({"lowest": float("nan")}, "must be finite"),
        ({"steps": 5}, "at least 20, got 5"),
        ({"lowest": 1e3, "highest": 1e5}, "the loss never falls"),
    ],
)
def test_a_search_that_finds_nothing_says_why(settings, complaint):
    with pytest.raises(UserError, match=complaint):
        found(**settings)
