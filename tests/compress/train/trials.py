"""Trials that cost nothing, importable by other processes."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from compress.train.workers import Outcome
from deploy.errors import UserError


def peak(tables, report):
    """Best at x = 3; each epoch comes nearer to the value."""
    value = -((tables["x"] - 3) ** 2)
    for epoch in range(1, 5):
        report(epoch, value - 1 / epoch)
    return Outcome(value=value)


def dies_at_2(tables, report):
    if tables["x"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return peak(tables, report)


def refuses_at_2(tables, report):
    if tables["x"] == 2:
        raise UserError("two cannot be trained with")
    return peak(tables, report)


def has_a_bug(tables, report):
    raise ZeroDivisionError("a bug of ours")


@dataclass(frozen=True)
class Slow:
    """Writes its process down, then takes an epoch a tenth of a second."""

    folder: Path

    def __call__(self, tables, report):
        (self.folder / f"{os.getpid()}").touch()
        for epoch in range(1, 6):
            time.sleep(0.1)
            report(epoch, float(epoch))
        return Outcome(value=float(tables["x"]))
