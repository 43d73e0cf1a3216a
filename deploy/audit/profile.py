"""How long each node of a model takes, by ONNX Runtime's profiler, less what the profiler adds."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.record import SessionOptions
from deploy.session import profiling, start_session

_OPENINGS, _ROUNDS, _BLOCK = 5, 7, 11
"""Calls of one session come in blocks, the first of which brings it back into the caches."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Where one model's time went, in µs a call, in one opening of it."""

    call_us: float
    """A whole call, timed without the profiler."""
    nodes_us: Mapping[str, float]
    """Every node of the optimised graph, by name. They add up to no more than the call."""


def profiles(
    models: Sequence[Any], options: SessionOptions, *, seed: int
) -> list[tuple[Profile, ...]]:
    """Return the profiles of each model, one for each time that all of them were opened together.

    Short blocks of calls of all models, with the profiler and without, come in random order.

    Args:
        models: each a ``ModelProto``.
        options: how they are opened.
        seed: of the order and the random inputs.
    """
    random = np.random.default_rng(seed)
    openings = [_profiled(models, options, random) for _ in range(_OPENINGS)]
    return list(zip(*openings, strict=True))


def without_overhead(profiled_us: Mapping[str, float], call_us: float) -> dict[str, float]:
    """Take from each node's time what the profiler added to it, alike for all.

    The profiler costs microseconds a node, as much as a small layer takes. What is left is, of all
    times that are not below 0 and add up to the call, the nearest to those that it gave
    (projection onto the simplex: Duchi et al. 2008, "Efficient projections onto the l1-ball", ICML,
    figure 1). Nodes that took less than the call together are left alone: the rest is the runtime's.

    Args:
        profiled_us: by name of the node.
        call_us: of a whole call, without the profiler.

    >>> without_overhead({"conv": 12.0, "relu": 5.0, "reshape": 3.0}, 10.0)
    {'conv': 8.5, 'relu': 1.5, 'reshape': 0.0}
    """
    if sum(profiled_us.values()) <= call_us:
        return dict(profiled_us)
    longest_first = np.sort(np.array(list(profiled_us.values())))[::-1]
    counts = np.arange(1, len(longest_first) + 1)
    # Were only the longest few left with any time, this much would have to go from each of them.
    added_us = (np.cumsum(longest_first) - call_us) / counts
    few = np.flatnonzero(longest_first >= added_us)[-1]
    return {name: max(0.0, took - float(added_us[few])) for name, took in profiled_us.items()}


def _profiled(
    models: Sequence[Any], options: SessionOptions, random: np.random.Generator
) -> list[Profile]:
    with tempfile.TemporaryDirectory() as folder:
        plain, watched, inputs = [], [], []
        for index, model in enumerate(models):
            content = model.SerializeToString()
            plain.append(start_session(content, options))
            prepare = profiling(Path(folder, str(index)))
            watched.append(start_session(content, options, prepare))
            inputs.append(_random_inputs(plain[-1], random))
        calls_ns: list[list[int]] = [[] for _ in models]
        for _ in range(_ROUNDS):
            for place in random.permutation(2 * len(models)):
                index, under_profiler = divmod(int(place), 2)
                if under_profiler:
                    _block(watched[index], inputs[index])
                else:
                    calls_ns[index] += _block(plain[index], inputs[index])
        found = []
        for session, took in zip(watched, calls_ns, strict=True):
            call_us = _typical(took) / 1000
            nodes = _kernel_times(Path(session.end_profiling()))
            found.append(Profile(call_us, without_overhead(nodes, call_us)))
        return found


def _block(session: Any, inputs: Mapping[str, Any]) -> list[int]:
    took = []
    for _ in range(_BLOCK):
        start = time.perf_counter_ns()
        session.run(None, inputs)
        took.append(time.perf_counter_ns() - start)
    return took


def _random_inputs(session: Any, random: np.random.Generator) -> dict[str, npt.NDArray[Any]]:
    (given,) = session.get_inputs()
    shape = [size if isinstance(size, int) else 1 for size in given.shape]
    kinds = {"float": np.float32, "float16": np.float16}
    kind = given.type.removeprefix("tensor(").removesuffix(")")
    if kind in kinds:
        return {given.name: random.random(shape, np.float32).astype(kinds[kind])}
    high = 127 if kind in {"int8", "uint8"} else 2  # an index must be valid for any table
    return {given.name: random.integers(0, high, shape).astype(kind)}


def _kernel_times(path: Path) -> dict[str, float]:
    """Return the typical time of each node in a profile, in µs."""
    took: dict[str, list[int]] = {}
    for event in json.loads(path.read_text(encoding="utf-8")):
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            took.setdefault(name.removesuffix("_kernel_time"), []).append(int(event["dur"]))
    return {name: _typical(each) for name, each in took.items()}


def _typical(took: Sequence[int]) -> float:
    """Return the mean of the faster three quarters of the times of calls that found the caches warm.

    The profiler counts whole microseconds; their mean tells more than any one of them.

    Args:
        took: of every call in turn; of a node inside a loop all its times, the same number a call.
    """
    calls = _ROUNDS * _BLOCK
    if len(took) % calls:  # a node that does not run alike in every call
        return sum(took) / calls
    each = np.reshape(took, (_ROUNDS, _BLOCK, -1)).sum(axis=2)
    warm = sorted(each[1:, 1:].ravel().tolist())
    return statistics.fmean(warm[: len(warm) * 3 // 4])
