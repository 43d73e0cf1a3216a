"""A bar moves inside an epoch where somebody watches, and nothing is told where nobody does."""

import numpy as np
import pytest

from compress.progress import ConsoleWatcher
from compress.train import hearing
from compress.train.fit import Fit, fit
from compress.train.hearing import BatchesDone, hearing_batches
from compress.train.optimizers import Adam, GradientDescent
from tests.compress.train.tiny import everything, numbers


def told(monkeypatch, config):
    monkeypatch.setattr(hearing, "_PAUSE_SECONDS", 0)
    heard = []
    with hearing_batches(heard.append):
        fit(everything(), numbers(), config, seed=0)
    return heard


@pytest.mark.parametrize("optimizer", [Adam(), GradientDescent()])
def test_each_batch_of_each_epoch_can_be_heard(monkeypatch, optimizer):
    heard = told(monkeypatch, Fit(epochs=2, batch_size=20, optimizer=optimizer))
    assert [(at.epoch, at.batches) for at in heard] == [(e, b) for e in (1, 2) for b in range(1, 6)]
    assert {(at.epochs, at.of) for at in heard} == {(2, 5)}
    assert heard[0].loss is None
    assert np.isfinite(heard[-1].loss)


def test_between_two_tellings_lies_a_pause(monkeypatch):
    monkeypatch.setattr(hearing, "_PAUSE_SECONDS", 3600)
    heard = []
    with hearing_batches(heard.append):
        fit(everything(), numbers(), Fit(epochs=1, batch_size=20), seed=0)
    assert heard == []


def at(epoch, batches, loss=None):
    return BatchesDone(epoch=epoch, epochs=4, batches=batches, of=10, loss=loss)


def test_a_bar_moves_inside_an_epoch(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes a terminal of any stream
    with ConsoleWatcher(variants=1) as watcher:
        watcher.batches_done(at(1, 1))  # nothing is under way: passed over
        watcher.begins("net", epochs=4)
        told_by_the_loop = hearing.Telling()
        monkeypatch.setattr(hearing, "_PAUSE_SECONDS", 0)
        told_by_the_loop.tell_if_due(epoch=3, epochs=4, batches=5, of=10, loss=0.25)
        bar = watcher._bars.tasks[-1]
        assert bar.completed == pytest.approx(2.5)
        assert bar.fields["note"] == "batch 5/10  loss 0.2500"
    assert hearing._HEARS.get() is None


def test_where_there_is_no_terminal_nobody_hears(monkeypatch, capsys):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with ConsoleWatcher(variants=1):
        assert hearing._HEARS.get() is None
