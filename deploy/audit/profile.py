"""How long each node of a model takes, by ONNX Runtime's profiler."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.record import SessionOptions
from deploy.session import profiling, start_session

_SESSIONS, _RUNS, _WARM_UP = 3, 60, 10


def profiles(
    models: Sequence[Any], options: SessionOptions, *, seed: int
) -> list[dict[str, float]]:
    """Return the time of every node of each model's optimised graph, by name, in µs."""
    means: list[dict[str, list[float]]] = [{} for _ in models]
    random = np.random.default_rng(seed)
    for _ in range(_SESSIONS):
        with tempfile.TemporaryDirectory() as folder:
            sessions = []
            for index, model in enumerate(models):
                profiled = profiling(Path(folder, str(index)))
                session = start_session(model.SerializeToString(), options, profiled)
                sessions.append((session, _random_inputs(session, random)))
            for _ in range(_WARM_UP + _RUNS):
                for index in random.permutation(len(sessions)):
                    session, inputs = sessions[index]
                    session.run(None, inputs)
            for seen, (session, _) in zip(means, sessions, strict=True):
                for name, took in _kernel_times(Path(session.end_profiling())).items():
                    seen.setdefault(name, []).append(took)
    return [{name: statistics.median(each) for name, each in seen.items()} for seen in means]


def _random_inputs(session: Any, random: np.random.Generator) -> dict[str, Any]:
    (given,) = session.get_inputs()
    shape = [size if isinstance(size, int) else 1 for size in given.shape]
    kinds = {"float": np.float32, "float16": np.float16}
    kind = given.type.removeprefix("tensor(").removesuffix(")")
    if kind in kinds:
        return {given.name: random.random(shape, np.float32).astype(kinds[kind])}
    high = 127 if kind in {"int8", "uint8"} else 2  # an index must be valid for any table
    return {given.name: random.integers(0, high, shape).astype(kind)}


def _kernel_times(path: Path) -> dict[str, float]:
    """Return the mean of the faster three quarters of each node's times.

    The profiler counts whole microseconds; their mean tells more than any one of them.
    """
    took: dict[str, list[int]] = {}
    for event in json.loads(path.read_text(encoding="utf-8")):
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            took.setdefault(name.removesuffix("_kernel_time"), []).append(int(event["dur"]))
    return {
        name: statistics.fmean(sorted(each[_WARM_UP:])[: max(1, _RUNS * 3 // 4)])
        for name, each in took.items()
        if len(each) > _WARM_UP
    }
