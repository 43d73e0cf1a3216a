"""Places the trials of a search on the machines of a Ray cluster."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import Any

from compress.train.workers import (
    Ask,
    Epoch,
    Failed,
    Job,
    Message,
    Objective,
    Tell,
    carry_out_elsewhere,
    share_cores,
)
from deploy.errors import UserError, needs_extra

_PATIENCE_S = 1.0


@dataclass(frozen=True, slots=True)
class OnRay:
    """Several trials at once, each a Ray task with one core, wherever Ray puts it.

    The search itself, its sampler and its journal stay in this process. Every machine of the
    cluster needs this version of lightship, and the data under the same name. A machine that is
    lost costs the trials that ran there, never the search.

    Attributes:
        address: ``auto`` for the cluster that this machine belongs to, or ``HOST:PORT`` of its head.
        most: trials at once; None takes as many as the cluster has cores.
    """

    objective: Objective
    address: str
    most: int | None = None

    @property
    def places(self) -> int:
        """How many trials run at once; the number counts as several, since Ray may add machines."""
        return self.most or 2

    def run(self, ask: Ask, tell: Tell) -> None:
        """Ask for trials and carry them out, until there are none left.

        Raises:
            UserError: if there is no cluster at the address.
        """
        with needs_extra("cluster"):
            import ray
        try:
            _require_listener(self.address)
            ray.init(
                address=self.address,
                log_to_driver=False,
                logging_level="error",
                configure_logging=False,
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(
                f"--ray {self.address}: no Ray cluster answers ({reason}); begin one with "
                "`ray start --head`, or leave --ray out"
            ) from error
        try:
            places = self.most or max(1, int(ray.cluster_resources().get("CPU", 1)))
            _place(self.objective, places, ask, tell)
        finally:
            ray.shutdown()  # ends the trials that are still under way


def _require_listener(address: str) -> None:
    """Try the door: Ray itself waits for minutes where nobody opens.

    Raises:
        OSError: if nobody listens at ``HOST:PORT``.
        ValueError: if the address is none.
    """
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("an address is auto or HOST:PORT")
    with socket.create_connection((host, int(port)), timeout=_PATIENCE_S * 5):
        return


class _Desk:
    """Stands between the trials and the search: takes messages in, hands answers out."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[Message] = asyncio.Queue()
        self.answers: dict[int, asyncio.Queue[bool]] = {}

    async def put(self, message: Message) -> bool:
        """Deliver a message; an epoch waits for its answer."""
        if not isinstance(message, Epoch):
            await self.inbox.put(message)
            return True
        answer = self.answers.setdefault(message.job, asyncio.Queue())
        await self.inbox.put(message)
        return await answer.get()

    async def take(self, patience_s: float) -> Message | None:
        """Return the next message, or None if none comes in time."""
        try:
            return await asyncio.wait_for(self.inbox.get(), patience_s)
        except (asyncio.TimeoutError, TimeoutError):
            return None

    async def answer(self, job: int, go_on: bool) -> None:
        """Let a trial that waits go on or stop."""
        await self.answers[job].put(go_on)


def _place(objective: Objective, places: int, ask: Ask, tell: Tell) -> None:
    import ray

    desk = ray.remote(num_cpus=0, max_concurrency=10 * places + 2)(_Desk).remote()
    task = ray.remote(num_cpus=1, max_retries=0, max_calls=0)(_carry_out_there)
    objective_there = ray.put(objective)
    running: dict[int, Any] = {}
    while True:
        while len(running) < places and (job := ask()) is not None:
            running[job.number] = task.remote(desk, objective_there, job)
        if not running:
            return
        message: Message | None = ray.get(desk.take.remote(_PATIENCE_S))
        if message is None:
            for lost in _lost(running):
                del running[lost]
                tell(Failed(lost, "its machine or its process was lost"))
            continue
        if message.job not in running:
            continue  # given up as lost
        go_on = tell(message)
        if isinstance(message, Epoch):
            desk.answer.remote(message.job, go_on)
        else:
            del running[message.job]


def _lost(running: dict[int, Any]) -> list[int]:
    """Return the trials whose task has failed without a word."""
    import ray

    lost = []
    for number, reference in running.items():
        if ray.wait([reference], timeout=0)[0]:
            try:
                ray.get(reference)
            except ray.exceptions.RayError:
                lost.append(number)
    return lost


def _carry_out_there(desk: Any, objective: Objective, job: Job) -> None:
    """Carry a trial out on whichever machine this is."""
    import ray

    share_cores(1)

    def tell(message: Message) -> bool:
        return bool(ray.get(desk.put.remote(message)))

    tell(carry_out_elsewhere(objective, job, tell))
