"""Requests that wait are answered together: one thread, one bounded queue for each model."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.bundle.runtime import Predictions
from deploy.errors import UserError
from deploy.serve.refused import RefusedError

Array = npt.NDArray[Any]
Found = Predictions | Exception

_log = logging.getLogger("lightship.serve")


class _Waiting:
    """A request in the queue. It is either taken into a run or given up, whichever is first."""

    __slots__ = ("_mine", "future", "samples", "timer")

    def __init__(self, samples: Array, future: asyncio.Future[Predictions]) -> None:
        self.samples = samples
        self.future = future
        self.timer: asyncio.TimerHandle | None = None
        self._mine = threading.Lock()

    def claim(self) -> bool:
        """Return True to the first who asks, False to everyone after."""
        return self._mine.acquire(blocking=False)


class Batcher:
    """Runs what waits, in order, as many samples at once as may be.

    A run begins as soon as the one before has ended, with what has come in meanwhile: a lone request
    waits for nobody. All methods belong to the thread of the event loop.

    Args:
        predict: answers for raw samples ``(n, ...)``; called from the thread of the batcher.
        max_batch: samples of a run that may come from several requests. A larger request runs alone.
        most_waiting: requests that are not answered yet, at most.
        observe: is told of each run, in the thread of the batcher: samples and seconds.
    """

    def __init__(
        self,
        predict: Callable[[Array], Predictions],
        *,
        max_batch: int,
        most_waiting: int,
        observe: Callable[[int, float], None] = lambda samples, seconds: None,
    ) -> None:
        self._predict, self._max_batch, self._most_waiting = predict, max_batch, most_waiting
        self._observe = observe
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._held: _Waiting | None = None
        self.waiting = 0
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def require_room(self) -> None:
        """Refuse one more request than may wait.

        Raises:
            RefusedError: 503.
        """
        if self.waiting >= self._most_waiting:
            raise RefusedError(503, f"{self.waiting} requests are waiting already; try again later")

    def submit(self, samples: Array, *, deadline_s: float) -> asyncio.Future[Predictions]:
        """Queue samples; the future gets their answer, or why there is none.

        Raises:
            RefusedError: 503, if the queue is full; the future raises it after ``deadline_s``
                in the queue, and 400 if the samples are not what preprocessing takes.
        """
        self.require_room()
        one = _Waiting(samples, self._loop.create_future())
        one.timer = self._loop.call_later(deadline_s, self._give_up, one, deadline_s)
        self.waiting += 1
        self._queue.put(one)
        return one.future

    async def close(self) -> None:
        """Answer what is in the queue, then end the thread."""
        self._queue.put(None)
        await self._loop.run_in_executor(None, self._thread.join)

    def _give_up(self, one: _Waiting, deadline_s: float) -> None:
        if one.claim():
            why = f"waited {1000 * deadline_s:.0f} ms in the queue; try again later"
            self._settle([(one, RefusedError(503, why))])

    def _settle(self, answers: list[tuple[_Waiting, Found]]) -> None:
        for one, found in answers:
            self.waiting -= 1
            if one.timer is not None:
                one.timer.cancel()
            if one.future.done():  # its client is gone
                continue
            if isinstance(found, Exception):
                one.future.set_exception(found)
            else:
                one.future.set_result(found)

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            if taken:
                self._loop.call_soon_threadsafe(self._settle, self._run(taken))

    def _take(self) -> list[_Waiting] | None:
        """Wait for a request; return it and what fits beside it, or None if there will be none."""
        first = self._held or self._queue.get()
        self._held = None
        if first is None:
            return None
        taken = [first] if first.claim() else []
        samples = len(first.samples) if taken else 0
        while samples < self._max_batch:
            try:
                one = self._queue.get_nowait()
            except queue.Empty:
                break
            if one is None:
                self._queue.put(None)  # read again once these are answered
                break
            if samples and samples + len(one.samples) > self._max_batch:
                self._held = one
                break
            if one.claim():
                taken.append(one)
                samples += len(one.samples)
        return taken

    def _run(self, taken: list[_Waiting]) -> list[tuple[_Waiting, Found]]:
        found = self._answer([one.samples for one in taken])
        if len(taken) == 1:
            return [(taken[0], found)]
        if isinstance(found, Exception):  # one of them is to blame, the others are not
            return [(one, self._answer([one.samples])) for one in taken]
        ends = np.cumsum([len(one.samples) for one in taken]).tolist()
        starts = [0, *ends[:-1]]
        return [
            (one, found.part(start, end))
            for one, start, end in zip(taken, starts, ends, strict=True)
        ]

    def _answer(self, samples: list[Array]) -> Found:
        start = time.perf_counter()
        try:
            together = samples[0] if len(samples) == 1 else np.concatenate(samples)
            found = self._predict(together)
        except UserError as error:
            return RefusedError(400, " ".join(str(error).split()))
        except Exception as error:  # a bug, or no memory: this thread has to live on
            _log.exception("a run failed")
            return error
        self._observe(len(together), time.perf_counter() - start)
        return found
