"""Where the trials of a search run: in this process, or in several on this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from compress.quiet import quiet_tensorflow
from deploy.errors import UserError
from deploy.record import Record


class Outcome(Record, frozen=True):
    """What a trial came to."""

    value: float
    """The metric that is searched for; the mean over the seeds."""
    per_seed: tuple[float, ...] = ()
    kept_epochs: tuple[int, ...] = ()
    """The epoch, counted from 1, that was kept with each seed."""


class Report(Protocol):
    """Told of each epoch of a trial."""

    def __call__(
        self, epoch: int, value: float, *, last: bool = False, judged: bool = True
    ) -> None:
        """Hear the number of an epoch, from 1, and the metric; raise ``Stop`` if the trial shall end.

        It never has to after the ``last`` one, with which all of it was carried out. Epochs of
        further seeds are not ``judged``: only the time can end the trial there.
        """


Objective = Callable[[Any, Report], Outcome]
"""Carries out one trial. It is given the tables with their ranges filled; a ``UserError`` says that
these values cannot be trained with. To run in other processes it has to be picklable."""


class Stop(Exception):  # noqa: N818  # an order, not an error
    """Ends a trial that is not worth going on with."""


@dataclass(frozen=True, slots=True)
class Job:
    """One trial to be carried out."""

    number: int
    tables: Any


@dataclass(frozen=True, slots=True)
class Epoch:
    """An epoch of a trial is over; the answer says whether it goes on."""

    job: int
    epoch: int
    value: float
    last: bool = False
    judged: bool = True


@dataclass(frozen=True, slots=True)
class Finished:
    """A trial came to its end."""

    job: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Stopped:
    """A trial ended because it was told to."""

    job: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A trial could not be carried out, and why."""

    job: int
    reason: str


@dataclass(frozen=True, slots=True)
class Broken:
    """A trial met a bug."""

    job: int
    trace: str


Message = Epoch | Finished | Stopped | Failed | Broken

Ask = Callable[[], Job | None]
"""The next trial, or None when there is none to begin."""
Tell = Callable[[Message], bool]
"""Hears a message; the answer to an ``Epoch`` is whether the trial goes on."""


class Workers(Protocol):
    """Carries trials out, as many at once as there are places."""

    @property
    def places(self) -> int:
        """How many trials run at once."""

    def run(self, ask: Ask, tell: Tell) -> None:
        """Ask for trials and carry them out, until there are none left."""


class BrokenTrialError(Exception):
    """A trial met a bug in another process; the text is its traceback there."""


@dataclass(frozen=True, slots=True)
class InThisProcess:
    """One trial after another, here."""

    objective: Objective
    places: int = 1

    def run(self, ask: Ask, tell: Tell) -> None:
        """Ask for trials and carry them out, until there are none left."""
        while (job := ask()) is not None:
            tell(carry_out(self.objective, job, tell))


@dataclass(frozen=True, slots=True)
class Processes:
    """Several trials at once, each in a process of its own that lives as long as the search.

    A process that dies costs its trial, never the search. When this process is killed, the others
    end with the epoch they are in.
    """

    objective: Objective
    places: int

    def run(self, ask: Ask, tell: Tell) -> None:
        """Ask for trials and carry them out, until there are none left."""
        workers: list[_Worker] = []
        try:
            while True:
                for worker in [worker for worker in workers if worker.job is None]:
                    if not self._give(worker, ask):
                        workers.remove(worker)
                        worker.end()
                while len(workers) < self.places and (job := ask()) is not None:
                    workers.append(_Worker(self.objective, cores=_cores(self.places)))
                    workers[-1].send(job)
                if not workers:
                    return
                ready = wait([worker.pipe for worker in workers])
                for worker in [worker for worker in workers if worker.pipe in ready]:
                    if not worker.hear(tell):
                        workers.remove(worker)
                        worker.end()
        finally:
            for worker in workers:
                worker.end()

    def _give(self, worker: _Worker, ask: Ask) -> bool:
        job = ask()
        if job is not None:
            worker.send(job)
        return job is not None


class _Worker:
    """One process and the pipe to it."""

    def __init__(self, objective: Objective, *, cores: int) -> None:
        # A fork of a process in which TensorFlow has begun its threads hangs.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, objective, cores), daemon=True)
        self.process.start()
        theirs.close()  # so that its death is the end of the pipe
        self.job: int | None = None

    def send(self, job: Job) -> None:
        self.job = job.number
        with contextlib.suppress(OSError):  # it is dead: hearing it says so
            self.pipe.send(job)

    def hear(self, tell: Tell) -> bool:
        """Pass one message on; return False if the process has died."""
        if self.job is None:
            return False
        try:
            message: Message = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            tell(Failed(self.job, f"its process {how}; is there memory enough for the workers?"))
            return False
        go_on = tell(message)
        if isinstance(message, Epoch):
            with contextlib.suppress(OSError):  # it is dead: hearing it says so
                self.pipe.send(go_on)
        else:
            self.job = None
        return True

    def end(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()


def carry_out(objective: Objective, job: Job, tell: Tell) -> Message:
    """Return what became of a trial; its epochs are told on the way.

    Raises:
        Exception: whatever the objective raises, but ``UserError`` and ``Stop``.
    """

    def report(epoch: int, value: float, *, last: bool = False, judged: bool = True) -> None:
        if not tell(Epoch(job.number, epoch, value, last, judged)):
            raise Stop

    try:
        return Finished(job.number, objective(job.tables, report))
    except Stop:
        return Stopped(job.number)
    except UserError as error:
        return Failed(job.number, str(error))


def carry_out_elsewhere(objective: Objective, job: Job, tell: Tell) -> Message:
    """Do as ``carry_out``, where an exception would not reach the search."""
    try:
        return carry_out(objective, job, tell)
    except Exception:  # it is raised again where the search is
        return Broken(job.number, traceback.format_exc())


def share_cores(cores: int) -> None:
    """Let TensorFlow, which is not imported yet, use no more threads than its share of the cores."""
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(cores))
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
    quiet_tensorflow()


def _cores(places: int) -> int:
    return max(1, (os.cpu_count() or 1) // places)


def _work(pipe: Connection, objective: Objective, cores: int) -> None:
    """Carry out what comes through the pipe until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the search, which then ends us
    share_cores(cores)

    def tell(message: Message) -> bool:
        pipe.send(message)
        return bool(pipe.recv()) if isinstance(message, Epoch) else True

    try:
        while True:
            tell(carry_out_elsewhere(objective, pipe.recv(), tell))
    except (EOFError, OSError):
        return  # the search has ended
