"""What a report says of a run beside the numbers: lineage, steps, method, machine."""

from __future__ import annotations

from collections.abc import Iterator

from deploy.report.quantities import file_size
from deploy.report.results import Results, Variant

INT8_METHOD = (
    "Read from the graph that ONNX Runtime runs on this machine, opened as it ships. "
    "Multiply-accumulates (MACs) are those of layers with stored weights, for one sample; a float "
    "island computes in float between int8 kernels. The notes under Layers say why a layer that was "
    "planned as int8 is not; `lightship audit` says what to do about it."
)


def audited(results: Results) -> list[Variant]:
    """Return the variants whose kernels were looked at."""
    return [variant for variant in results.variants if variant.int8_layers is not None]


def lineage(results: Results) -> Iterator[tuple[int, Variant]]:
    """Yield every variant below its parent, with its depth in the tree, the baseline at 0."""

    def below(parent: str | None, depth: int) -> Iterator[tuple[int, Variant]]:
        for variant in results.variants:
            if variant.parent == parent:
                yield depth, variant
                yield from below(variant.name, depth + 1)

    return below(None, 0)


def step_words(variant: Variant) -> str:
    """Say which step made a variant, with its plain settings; nested ones are in the recipe.

    The kind comes first: ``magnitude prune, final sparsity 0.9``.
    """
    kind, settings = "", []
    for name, value in variant.step.items():
        if name == "kind":
            kind = str(value).replace("_", " ")
        elif isinstance(value, bool):
            settings.append(name.replace("_", " ") if value else f"not {name.replace('_', ' ')}")
        elif isinstance(value, str | int | float):
            settings.append(f"{name.replace('_', ' ')} {value}")
    return ", ".join(([kind] if kind else []) + settings)


def method(results: Results) -> str:
    """Say how accuracy and time were measured."""
    data, session = results.data, results.session
    text = (
        f"Accuracy on {data.test_samples:,} test samples of {data.name}, in the session that ships."
    )
    if session.processes is None:
        return f"{text} Nothing was timed."
    return (
        f"{text} Times: {_plural(session.threads, 'thread')}, all variants interleaved in random "
        f"order, {_plural(session.sessions_per_process, 'session')} in each of "
        f"{_plural(session.processes, 'process', 'processes')}, throughput in batches of "
        f"{session.batch}. Intervals are 95\u202f% intervals."
    )


def environment_facts(results: Results) -> list[tuple[str, str]]:
    """Return the machine, the data and the session as pairs of name and text."""
    machine, data, session = results.environment, results.data, results.session
    parts = (
        ("training", data.train_samples),
        ("validation", data.validation_samples),
        ("calibration", data.calibration_samples),
        ("test", data.test_samples),
    )
    load = machine.load_average
    return [
        ("CPU", f"{machine.cpu}, {_plural(machine.cores, 'core')}, {machine.architecture}"),
        ("Instruction sets", ", ".join(machine.isa) or "none of note"),
        ("Quantization target", machine.target),
        ("Memory", file_size(machine.memory_bytes)),
        ("Frequency governor", machine.governor or "not known"),
        ("Load average", "not known" if load is None else f"{load:.2f} when measuring began"),
        ("System", f"{machine.os}, Python {machine.python}"),
        ("Versions", ", ".join(f"{name} {text}" for name, text in machine.versions.items())),
        ("Session", _session(session.threads, session.disabled_optimizers)),
        ("Data", f"{data.name}, {_plural(data.classes, 'class', 'classes')} ({data.licence})"),
        ("Sample", " × ".join(str(size) for size in data.sample_shape)),
        ("Samples", ", ".join(f"{name} {size:,}" for name, size in parts if size is not None)),
        ("Written", f"{results.created} by lightship {results.lightship}"),
    ]


def _session(threads: int, disabled: tuple[str, ...]) -> str:
    without = f", without {', '.join(disabled)}" if disabled else ""
    return f"{_plural(threads, 'thread')}{without}"


def _plural(number: int | None, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
