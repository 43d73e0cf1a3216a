"""Several workers, one training: who they are, how they meet, and what each does of a batch.

``tf.distribute`` is the engine. Each worker is a process that makes the same steps on its own part of
each batch; gradients, metrics and batch statistics are summed over all of them.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from deploy.errors import UserError, needs_extra

_GREETING = "lightship"
_LONGEST_LINE = 4096
_PAUSE_SECONDS = 0.2
_RESTARTS = 3
"""How often a worker of this machine that dies is started again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The workers of one training, and which of them this process is.

    Attributes:
        workers: their addresses, ``host:port``. The first keeps the checkpoint and writes the result.
        index: this one's place among them, counted from 0.
    """

    workers: tuple[str, ...]
    index: int

    def __post_init__(self) -> None:
        for address in self.workers:
            host, _, port = address.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
                raise UserError(f"workers: an address is HOST:PORT, got {address!r}")
        if len(set(self.workers)) < len(self.workers):
            raise UserError(f"workers: each has an address of its own, got {self}")
        if not 0 <= self.index < len(self.workers):
            raise UserError(
                f"index: {self.index} is none of {len(self.workers)} workers; they count from 0"
            )

    def __str__(self) -> str:
        return ",".join(self.workers)


def read_tf_config(text: str) -> Cluster | None:
    """Return what ``TF_CONFIG`` says; None if it names no more than one worker.

    >>> read_tf_config('{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}')
    Cluster(workers=('a:1', 'b:1'), index=1)

    Raises:
        UserError: if it is no such text, or gives this process another part than a worker's.
    """
    try:
        given = json.loads(text)
        jobs = {name: tuple(map(str, given["cluster"][name])) for name in given["cluster"]}
        kind, index = given["task"]["type"], int(given["task"]["index"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            'TF_CONFIG: must be like {"cluster": {"worker": ["host:port", "host:port"]}, "task": '
            '{"type": "worker", "index": 0}}; unset it to train alone'
        ) from error
    if kind not in {"chief", "worker"} or kind not in jobs or set(jobs) - {"chief", "worker"}:
        raise UserError(
            f"TF_CONFIG: this process is a {kind!r} of {', '.join(jobs)}; only workers, and one of "
            "them as chief, train here"
        )
    chiefs = jobs.get("chief", ())
    workers = (*chiefs, *jobs.get("worker", ()))
    cluster = Cluster(workers=workers, index=index + (len(chiefs) if kind == "worker" else 0))
    return cluster if len(workers) > 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One of the processes that train together, inside ``joined``; by default the only one.

    Attributes:
        index: counted from 0; the first keeps the checkpoint and writes the result.
        count: how many there are.
        accelerators: that all of them together compute on: a batch is shared between these.
    """

    index: int = 0
    count: int = 1
    accelerators: int = 1

    @property
    def first(self) -> bool:
        """Whether it is for this worker to write files."""
        return self.index == 0

    def part(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return what of a batch this worker computes: the parts differ by a sample an accelerator.

        >>> batch = np.arange(5)
        >>> [Worker(index=at, count=2, accelerators=2).part(batch).tolist() for at in (0, 1)]
        [[0, 1], [2, 3, 4]]
        """
        samples, own = len(indices), self.accelerators // self.count
        begin, end = self.index * own, (self.index + 1) * own
        return indices[begin * samples // self.accelerators : end * samples // self.accelerators]

    def why_not_shared(self, *, batch_size: int, samples: int) -> str | None:
        """Say why batches cannot be shared, or None if they can: nobody goes without a sample."""
        last = samples % batch_size or batch_size
        if batch_size < self.accelerators:
            return (
                f"batch_size: {batch_size} is that of all workers together, and less than a sample "
                f"for each of {self.accelerators}; raise it"
            )
        if last < self.accelerators:
            return (
                f"batch_size: {batch_size} leaves {last} of {samples} samples for the last batch, "
                f"less than one for each of {self.accelerators} workers; change it by one"
            )
        return None

    def record(self, *, batch_size: int) -> dict[str, object]:
        """Return how a training is shared, as data, for the record of what it makes."""
        return {
            "workers": self.count,
            "accelerators": self.accelerators,
            "batch_size": f"{batch_size} over all workers",
            "learning_rate": "not scaled: the batch is the same with any number of workers",
            "sharding": "each accelerator takes an equal run of each batch, in order",
        }

    def hear_first(self, data: bytes) -> bytes:
        """Return the first worker's ``data`` at every worker; each has to call it."""
        if self.count == 1:
            return data
        own = data if self.first else b""
        size = int(_summed(np.array([len(own)], np.int32))[0])
        words = np.zeros(-(-size // 4), np.int32)
        words.view(np.uint8)[: len(own)] = np.frombuffer(own, np.uint8)
        return bytes(_summed(words).tobytes()[:size]) if size else b""


class WorkerLostError(UserError):
    """Another worker died, or cannot be reached any more."""


@contextlib.contextmanager
def joined(cluster: Cluster | None, *, about: str, timeout_seconds: float) -> Iterator[Worker]:
    """Train together with the other workers inside the block, or with all accelerators of this one.

    Before it, TensorFlow must not have computed anything. What is built inside is mirrored on all
    accelerators.

    Args:
        cluster: the workers; None trains on this machine alone.
        about: a digest of what is going to be done, data included; the workers have to agree.
        timeout_seconds: how long to wait for all of them.

    Raises:
        UserError: if they do not come together.
        WorkerLostError: if one is lost on the way.
    """
    if cluster is not None:
        meet(cluster, about=about, timeout_seconds=timeout_seconds)
    with needs_extra("compress"):
        import tensorflow as tf

    accelerators = len(tf.config.list_physical_devices("GPU"))
    if cluster is None:
        with _mirrored(accelerators):
            yield Worker(accelerators=max(1, accelerators))
        return
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.workers)}),
        task_type="worker",
        task_id=cluster.index,
        num_accelerators={"GPU": accelerators},
        rpc_layer="grpc",
    )
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
        with strategy.scope():
            yield Worker(
                index=cluster.index,
                count=len(cluster.workers),
                accelerators=strategy.num_replicas_in_sync,
            )
    except (tf.errors.OpError, RuntimeError) as error:
        if not _tells_of_a_loss(error):
            raise
        raise WorkerLostError(
            "workers: one was lost; start its command again, training goes on from the last "
            "checkpoint"
        ) from error


@contextlib.contextmanager
def _mirrored(accelerators: int) -> Iterator[None]:
    import tensorflow as tf

    if accelerators < 2:
        yield
        return
    with tf.distribute.MirroredStrategy().scope():
        yield


def _tells_of_a_loss(error: Exception) -> bool:
    """Say whether an error of TensorFlow's comes from a worker that is gone."""
    import tensorflow as tf

    kinds = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError)
    return isinstance(error, kinds) or "Collective ops is aborted" in str(error)


def _summed(words: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Return the sum of every worker's words, at every worker."""
    import tensorflow as tf

    return np.asarray(_adder(tf.distribute.get_strategy())(tf.constant(words)))


@functools.cache
def _adder(strategy: Any) -> Callable[[Any], Any]:
    """Return the graph that sums int32 tensors ``(n,)`` over the workers of a strategy."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.int32)])  # type: ignore[untyped-decorator]  # no types
    def summed(own: Any) -> Any:
        def add() -> Any:
            context = tf.distribute.get_replica_context()
            at = tf.cast(context.replica_id_in_sync_group, tf.int32)
            once = at % len(strategy.extended.worker_devices) == 0  # of a worker, one speaks
            return context.all_reduce("SUM", tf.where(once, own, tf.zeros_like(own)))

        return strategy.experimental_local_results(strategy.run(add))[0]

    return summed  # type: ignore[no-any-return]  # no types


def meet(cluster: Cluster, *, about: str, timeout_seconds: float) -> None:
    """Return once all workers are there, and hold the address of this one until then.

    TensorFlow waits for an hour, takes an address that is in use, and tells neither.

    Raises:
        UserError: if this worker's address is in use, one does not come in time, or they are not
            about to do the same.
    """
    deadline = time.monotonic() + timeout_seconds
    port = int(cluster.workers[cluster.index].rpartition(":")[2])
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))  # as TensorFlow will: a name may lead here by another address
            listener.listen()
        except OSError as error:
            raise UserError(
                f"workers: {cluster.workers[cluster.index]} cannot be used for worker "
                f"{cluster.index}: {error.strerror}; give another port, to all workers"
            ) from error
        if cluster.index == 0:
            _gather(cluster, listener, about, deadline, timeout_seconds)
        else:
            _report(cluster, about, deadline, timeout_seconds)


def _gather(
    cluster: Cluster, listener: socket.socket, about: str, deadline: float, timeout_seconds: float
) -> None:
    """As the first worker, wait for the others, then tell them to begin."""
    there: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as open_sockets:
        while len(there) < len(cluster.workers) - 1:
            for index in [index for index, peer in there.items() if _hung_up(peer)]:
                del there[index]
            left = deadline - time.monotonic()
            if left <= 0:
                missing = [index for index in range(1, len(cluster.workers)) if index not in there]
                raise UserError(_absent(cluster, missing, timeout_seconds))
            listener.settimeout(min(left, 1.0))
            try:
                peer = open_sockets.enter_context(listener.accept()[0])
            except TimeoutError:
                continue
            peer.settimeout(2.0)
            said = _read_line(peer)
            if said is None or said.get("hello") != _GREETING:
                continue  # some other program, or TensorFlow of a worker that does not know yet
            who = said.get("index")
            same = said.get("workers") == str(cluster) and said.get("about") == about
            if not isinstance(who, int) or not 0 < who < len(cluster.workers) or not same:
                why = (
                    f"workers: worker {who} and worker 0 were not started for the same training; "
                    "give all of them the same command, apart from --index"
                )
                _send_line(peer, {"refused": why})
                raise UserError(why)
            there[who] = peer
        for peer in there.values():
            _send_line(peer, {"hello": _GREETING, "begin": True})


def _report(cluster: Cluster, about: str, deadline: float, timeout_seconds: float) -> None:
    """As another worker, find the first and wait until it says that all are there."""
    host, _, port = cluster.workers[0].rpartition(":")
    hello = {
        "hello": _GREETING,
        "index": cluster.index,
        "workers": str(cluster),
        "about": about,
    }
    while (left := deadline - time.monotonic()) > 0:
        answer = None
        with (
            contextlib.suppress(OSError),
            socket.create_connection((host.strip("[]"), int(port)), timeout=left) as first,
        ):
            _send_line(first, hello)
            first.settimeout(left)
            answer = _read_line(first)
        if answer is not None and "refused" in answer:
            raise UserError(str(answer["refused"]))
        if answer is not None and answer.get("begin") and answer.get("hello") == _GREETING:
            return
        time.sleep(_PAUSE_SECONDS)
    raise UserError(_absent(cluster, [0], timeout_seconds))


def _absent(cluster: Cluster, missing: Sequence[int], timeout_seconds: float) -> str:
    """Return the sentence about workers that did not come."""
    who = ", ".join(f"{index} ({cluster.workers[index]})" for index in missing)
    return (
        f"workers: {who} did not come within {timeout_seconds:g} s; start the same command there "
        "with its --index, or raise --worker-timeout"
    )


def _hung_up(peer: socket.socket) -> bool:
    """Say whether the other side is gone."""
    peer.setblocking(False)
    try:
        return peer.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        peer.settimeout(2.0)


def _send_line(peer: socket.socket, value: Mapping[str, object]) -> None:
    peer.sendall(msgspec.json.encode(value) + b"\n")


def _read_line(peer: socket.socket) -> dict[str, Any] | None:
    """Return what the other side says; None if it is nobody of ours."""
    try:
        with peer.makefile("rb") as stream:
            line = stream.readline(_LONGEST_LINE)
        said = json.loads(line)
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) else None


def begin_again() -> None:
    """Replace this process by the same command: TensorFlow cannot take a lost worker back.

    It waits for that worker, and goes on from the checkpoint. Does not return.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *_going_on(sys.orig_argv[1:])])  # noqa: S606  # no shell, our own command


def train_on_this_machine(count: int, say: Callable[[str], None]) -> int:
    """Start this very command as so many processes of this machine; return how they ended.

    One that is killed is started again. When one ends with an error, the others are stopped.

    Args:
        count: how many workers.
        say: told when one is started again.

    Returns:
        0, or the exit code of the first that failed.
    """
    addresses = ",".join(f"127.0.0.1:{port}" for port in _free_ports(count))
    command = [sys.executable, *_without_local_workers(sys.orig_argv[1:])]

    def start(index: int, words: Sequence[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*words, "--workers", addresses, "--index", str(index)])

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # workers end with us
    workers = [start(index, command) for index in range(count)]
    restarts = 0
    try:
        while True:
            codes = [worker.poll() for worker in workers]
            if all(code == 0 for code in codes):
                return 0
            for index, code in enumerate(codes):
                if code is None or code == 0:
                    continue
                if code != -signal.SIGKILL or restarts == _RESTARTS:
                    return code if code > 0 else 1
                restarts += 1
                say(f"worker {index} was killed; it is started again")
                workers[index] = start(index, _going_on(command))
            time.sleep(_PAUSE_SECONDS)
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()
        for worker in workers:
            worker.wait()


def _going_on(words: Sequence[str]) -> list[str]:
    """Return a command line that goes on from the checkpoint."""
    return [word for word in words if word != "--restart"]


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody uses now."""
    with contextlib.ExitStack() as open_sockets:
        found = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]


def _without_local_workers(words: Sequence[str]) -> list[str]:
    """Return a command line without the option that asks for several workers here.

    >>> _without_local_workers(["train", "--local-workers", "2", "--local-workers=2", "--seed", "1"])
    ['train', '--seed', '1']
    """
    kept, skip = [], False
    for word in words:
        if not skip and not word.startswith("--local-workers"):
            kept.append(word)
        skip = word == "--local-workers"
    return kept
