"""A model from a stranger is opened for the first time in a process that may fail.

An ONNX file is a program: 200 bytes of it can loop forever or ask for terabytes, and a parser of C++
meets every byte. So a process of its own opens it and runs it, with limits on memory and time, before
any other process does: ``python -m deploy.isolation``, a job in on stdin, an outcome out on stdout.

This is a guard against models that never end, ask for too much or crash; it is not a sandbox.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from deploy.errors import UserError
from deploy.machine import memory_bytes as memory_of_machine
from deploy.needs import graph_facts
from deploy.ort_format import is_ort
from deploy.record import Record, SessionOptions, sha256_of
from deploy.session import Model, open_model, require_startable
from deploy.tflite import is_tflite

SECONDS = 60.0
_LARGEST_MODEL = 1 << 31
"""Protobuf reads no message of 2 GiB or more."""
_LIBRARIES_BYTES = 3 << 30
"""Addresses that Python, numpy and ONNX Runtime take before a model is there; most are never used."""
_LEAST_MEMORY = 1 << 30
_harmless: set[tuple[str, SessionOptions]] = set()


class _Job(Record, frozen=True):
    path: str
    options: SessionOptions
    memory_bytes: int
    seconds: float


class _Outcome(Record, frozen=True):
    refused: str | None


def require_harmless(
    path: Path,
    options: SessionOptions = SessionOptions(),
    *,
    memory_bytes: int | None = None,
    seconds: float = SECONDS,
) -> None:
    """Refuse a model file that cannot be opened and run once within limits.

    It is run on one sample of zeros and one of ones, in a process of its own. Once for each content:
    what was found harmless is not tried again by this process.

    Args:
        path: an ONNX, ORT or LiteRT file of one input and one output.
        options: how it will be opened.
        memory_bytes: what it may take beside the libraries; by default half of the machine's memory.
        seconds: of the clock, and of the processor.

    Raises:
        UserError: if there are too many threads, or the file is no regular one, larger than ONNX allows, is no such model, keeps weights
            outside its folder, or crashes, lasts too long or takes too much memory.
    """
    require_startable(options.threads)
    try:
        facts = path.stat()
    except OSError as error:
        raise UserError(f"{path}: no such file; give an ONNX model") from error
    if not stat.S_ISREG(facts.st_mode):
        raise UserError(f"{path}: is no regular file; give an ONNX model")
    if facts.st_size >= _LARGEST_MODEL:
        raise UserError(
            f"{path}: has {facts.st_size:,} bytes; an ONNX file has less than {_LARGEST_MODEL:,}"
        )
    if (known := (sha256_of(path), options)) in _harmless:
        return
    memory = memory_bytes or max(_LEAST_MEMORY, memory_of_machine() // 2)
    job = _Job(
        path=str(path.absolute()),
        options=options,
        memory_bytes=memory,
        seconds=seconds,
    )
    why_not = _why_not_harmless(job)
    if why_not is not None:
        raise UserError(f"{path}: {why_not}")
    _harmless.add(known)


def _why_not_harmless(job: _Job) -> str | None:
    limits = f"{job.memory_bytes / 1e9:.1f} GB and {job.seconds:g} s"
    trust = "if you trust it, give --trust-model"
    try:
        child = subprocess.run(
            [sys.executable, "-m", "deploy.isolation"],
            # `-m` looks here first: never in the user's folder, which may hold a `deploy` too.
            cwd=Path(__file__).resolve().parents[1],
            input=msgspec.json.encode(job),
            capture_output=True,
            timeout=job.seconds + 1,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"gave no answer to one sample within {job.seconds:g} s; {trust}"
    if child.returncode == 0:
        with contextlib.suppress(msgspec.MsgspecError):
            return msgspec.json.decode(child.stdout, type=_Outcome).refused
    how = f"signal {-child.returncode}" if child.returncode < 0 else f"exit code {child.returncode}"
    return f"ended the process that opened it first ({how}; it had {limits}); {trust}"


def main() -> None:
    """Do the job on stdin and write its outcome to stdout."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=_Job)
    _limit(job)
    sys.stdout.buffer.write(msgspec.json.encode(_Outcome(refused=_tried(job))))
    sys.stdout.flush()
    os._exit(0)  # what a hostile model has done to the process need not be tidied up


def _limit(job: _Job) -> None:
    try:
        import resource  # here: POSIX only
    except ImportError:
        return  # the clock still holds
    limits = {
        resource.RLIMIT_AS: job.memory_bytes + _LIBRARIES_BYTES,
        # Every thread's time counts.
        resource.RLIMIT_CPU: int(job.seconds * max(1, job.options.threads)) + 1,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 1 << 20,  # what a library prints is caught in a file
    }
    for limit, value in limits.items():
        with contextlib.suppress(ValueError, OSError):  # macOS knows no limit of addresses
            resource.setrlimit(limit, (value, value))


def _tried(job: _Job) -> str | None:
    path = Path(job.path)
    try:
        content = path.read_bytes()
        if not is_tflite(content) and not is_ort(content):  # these keep all they have in one file
            graph_facts(content, folder=path.parent)
        model = open_model(path, job.options)
    except MemoryError:
        return _too_much(job)
    except UserError as error:
        reason = str(error).removeprefix(f"{path}: ")
        return _too_much(job) if _asked_for_memory(reason) else reason
    sample = np.zeros((1, *model.input_shape), model.input_dtype)
    fits = _fits_in_memory(model, sample) and _fits_in_memory(model, sample + 1)
    return None if fits else _too_much(job)


def _fits_in_memory(model: Model, sample: npt.NDArray[Any]) -> bool:
    try:
        model.run(sample)
    # ONNX Runtime's exceptions share no base class below Exception. That it refuses this sample is
    # no harm: whoever runs it on real ones hears why.
    except Exception as error:
        return not (isinstance(error, MemoryError) or _asked_for_memory(str(error)))
    return True


def _asked_for_memory(reason: str) -> bool:
    return any(word in reason for word in ("allocate", "bad_alloc", "bad allocation"))


def _too_much(job: _Job) -> str:
    return (
        f"takes more than the {job.memory_bytes / 1e9:.1f} GB that a model may take when it is "
        "opened first; if you trust it, give --trust-model"
    )


if __name__ == "__main__":
    main()
