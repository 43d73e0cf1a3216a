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
    """Every node of the optimised graph, by name; one that has graphs inside, as Loop, takes what they
    take. They add up to no more than the call without what a call of a model of nothing takes."""


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


def without_overhead(
    profiled_us: Mapping[str, float], kernels_us: float, events: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Take from each node's time what the profiler added to it, alike for each event that it wrote.

    The profiler costs microseconds an event, as much as a small layer takes. What is left is, of all
    times that are not below 0 and add up to what all nodes took, the nearest to those that it gave
    (projection onto the simplex: Duchi et al. 2008, "Efficient projections onto the l1-ball", ICML,
    figure 1; with events of several, the squares are divided by their number). Times that add up to
    less are left alone.

    Args:
        profiled_us: by name of the node.
        kernels_us: of all nodes together, without the profiler.
        events: how many events a node wrote in a call, those of nodes inside of it included; by
            default one.

    >>> without_overhead({"conv": 12.0, "relu": 5.0, "reshape": 3.0}, 10.0)
    {'conv': 8.5, 'relu': 1.5, 'reshape': 0.0}
    """
    if sum(profiled_us.values()) <= kernels_us:
        return dict(profiled_us)
    took = np.array(list(profiled_us.values()))
    count = np.array([(events or {}).get(name, 1.0) for name in profiled_us])
    order = np.argsort(-took / count, kind="stable")
    # Were only the first few left with any time, this much would have to go for each event of theirs.
    added_us = (np.cumsum(took[order]) - kernels_us) / np.cumsum(count[order])
    few = np.flatnonzero((took / count)[order] >= added_us)[-1]
    left = np.maximum(0.0, took - count * added_us[few])
    return dict(zip(profiled_us, left.tolist(), strict=True))


def _profiled(
    models: Sequence[Any], options: SessionOptions, random: np.random.Generator
) -> list[Profile]:
    with tempfile.TemporaryDirectory() as folder:
        plain, watched = [], []
        for index, model in enumerate(models):
            content = model.SerializeToString()
            plain.append(start_session(content, options))
            prepare = profiling(Path(folder, str(index)))
            watched.append(start_session(content, options, prepare))
        nothing = start_session(_model_of_nothing(), options)
        sessions = [*watched, *plain, nothing]
        inputs = [_random_inputs(session, random) for session in sessions]
        took_ns: list[list[int]] = [[] for _ in sessions]
        for _ in range(_ROUNDS):
            for place in random.permutation(len(sessions)):
                took_ns[place] += _block(sessions[place], inputs[place])
        *calls_us, nothing_us = (_typical(took) / 1000 for took in took_ns[len(models) :])
        found = []
        for session, call_us in zip(watched, calls_us, strict=True):
            nodes_us, events = _kernel_times(Path(session.end_profiling()))
            kernels_us = max(0.0, call_us - nothing_us)
            found.append(Profile(call_us, without_overhead(nodes_us, kernels_us, events)))
        return found


def _model_of_nothing() -> bytes:
    """Return a model that hands on one number: a call of it takes what every call takes."""
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "nothing", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    content: bytes = model.SerializeToString()
    return content


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


def _kernel_times(path: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Return the typical time of each node in a profile, in µs, and how many events it wrote a call.

    What runs inside of a node, as in a Loop, counts as that node.
    """
    events = [
        event
        for event in json.loads(path.read_text(encoding="utf-8"))
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time")
    ]
    took: dict[str, list[int]] = {}
    count: dict[str, float] = {}
    name, end = "", 0
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        if event["ts"] >= end:
            end = event["ts"] + event["dur"]
            name = str(event["name"]).removesuffix("_kernel_time")
            took.setdefault(name, []).append(int(event["dur"]))
        count[name] = count.get(name, 0.0) + 1 / (_ROUNDS * _BLOCK)
    return {name: _typical(each) for name, each in took.items()}, count


def _typical(took: Sequence[int]) -> float:
    """Return the mean of the faster three quarters of the times of calls that found the caches warm.

    The profiler counts whole microseconds; their mean tells more than any one of them.

    Args:
        took: of every call in turn; of nodes of one name the times of all of them, call by call.
    """
    calls = _ROUNDS * _BLOCK
    if len(took) % calls:  # a node that does not run alike in every call
        return sum(took) / calls
    each = np.reshape(took, (_ROUNDS, _BLOCK, -1)).sum(axis=2)
    warm = sorted(each[1:, 1:].ravel().tolist())
    return statistics.fmean(warm[: len(warm) * 3 // 4])
