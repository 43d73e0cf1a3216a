"""``report.md``: the findings where no HTML is shown, as in a pull request."""

from __future__ import annotations

import re
from collections.abc import Sequence

from deploy.goals import bounds, delta_number, per_label, score
from deploy.report.classes import about_classes, class_rows, noun
from deploy.report.machines import COLUMNS as MACHINE_COLUMNS
from deploy.report.machines import machine_rows, machine_words
from deploy.report.metrics import metric_rows
from deploy.report.results import Results
from deploy.report.runtimes import ABOUT as RUNTIMES
from deploy.report.runtimes import runtime_lines
from deploy.report.summary import (
    KERAS_AGREEMENT,
    audited,
    environment_facts,
    front,
    int8_method,
    keras_agreements,
    lineage,
    method,
    step_words,
)
from deploy.report.table import RESOURCES, Column, columns_of
from deploy.report.verdict import best_variant, rule


def to_markdown(results: Results) -> str:
    """Return ``report.md``."""
    best = best_variant(results)
    parts = [
        f"# {_plain(results.title)}",
        _plain(results.description),
        f"**{_plain(results.verdict)}**",
        f"File to ship: {_code(best.path)}" if best else "",
        *(f"> Warning: {_plain(warning)}" for warning in results.warnings),
        "## Variants",
        _variants(results, None, with_front=True),
        f"{front(results)} {method(results)} {rule(results.goal)}",
        *(
            ["## Times and memory", _variants(results, RESOURCES)]
            if columns_of(results, RESOURCES)
            else []
        ),
        *_runtimes(results),
        *_other_machines(results),
        "## Lineage",
        "\n".join(
            f"{'  ' * depth}- **{_plain(variant.name)}**: {_plain(step_words(variant))}; {_code(variant.path)}"
            for depth, variant in lineage(results)
        ),
        *_int8(results),
        *_metrics(results),
        *_per_class(results),
        "## Layers",
        _table(
            [
                ["Variant", "Layer", "Parameters", "Zeros", "Values", "Bits", "Note"],
                *_layers(results),
            ],
            align="llrrrrl",
        ),
        "## Environment",
        "\n".join(f"- {name}: {_plain(value)}" for name, value in environment_facts(results)),
        "## Reproduce",
        _fence(results.reproduce.command),
        _fence(results.reproduce.recipe),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _runtimes(results: Results) -> list[str]:
    """Return the section on the runtimes, or nothing where no network is there for both."""
    lines = runtime_lines(results)
    if not lines:
        return []
    return ["## Which runtime", "\n".join(f"- {_plain(line)}" for line in lines), RUNTIMES]


def _other_machines(results: Results) -> list[str]:
    if not results.machines:
        return []
    rows = [["Machine", "Variant", *MACHINE_COLUMNS]]
    rows += [
        [
            _plain(row.machine),
            _plain(row.variant),
            *(" ".join(part for part in cell if part) for cell in row.cells),
        ]
        for row in machine_rows(results)
    ]
    about = [
        f"- **{_plain(machine.name)}**: {_plain(machine_words(machine))}"
        + "".join(f"; warning: {_plain(warning)}" for warning in machine.warnings)
        for machine in results.machines
    ]
    return [
        "## Other machines",
        _table(rows, align="ll" + "r" * len(MACHINE_COLUMNS)),
        "\n".join(about),
    ]


def _int8(results: Results) -> list[str]:
    """Return the section on int8, or nothing where nobody looked."""
    if not audited(results):
        return []
    heads = ["Variant", "MACs", "MACs in int8", "Int8 layers", "Layers", "Float islands"]
    agreements = keras_agreements(results)
    rows = [[*heads, KERAS_AGREEMENT] if agreements else heads]
    for variant in audited(results):
        share = variant.int8_macs_share
        rows.append([
            _plain(variant.name),
            "" if variant.macs is None else f"{variant.macs}",
            "" if share is None else f"{100 * share:.1f} %",
            f"{variant.int8_layers}",
            f"{variant.weighted_layers}",
            f"{variant.float_islands}",
            *([agreements.get(variant.name, "")] if agreements else []),
        ])  # fmt: skip
    return [
        "## What runs in int8",
        _table(rows, align="l" + "r" * (len(rows[0]) - 1)),
        int8_method(results),
    ]


def _layers(results: Results) -> list[list[str]]:
    return [
        [
            _plain(variant.name),
            _plain(layer.name),
            f"{layer.parameters}",
            f"{100 * layer.sparsity:.1f} %",
            "" if layer.distinct is None else f"{layer.distinct}",
            f"{layer.bits}",
            _plain(layer.note or ""),
        ]
        for variant in results.variants
        for layer in variant.layers
    ]


def _variants(
    results: Results, all_columns: Sequence[Column] | None, *, with_front: bool = False
) -> str:
    """Return a table of one line a variant."""
    columns = columns_of(results, all_columns)
    rows = [["Variant", *(column.title for column in columns)]]
    for variant in results.variants:
        cells = [column.cell(variant) for column in columns]
        texts = [" ".join((cell.text, *cell.details)) if cell else "" for cell in cells]
        rows.append([_plain(variant.name), *texts])
    align = "l" + "r" * len(columns)
    if with_front:
        rows[0].append("Pareto")
        for row, variant in zip(rows[1:], results.variants, strict=True):
            row.append("●" if variant.pareto else "")
        align += "l"
    return _table(rows, align=align)


def _metrics(results: Results) -> list[str]:
    rows = metric_rows(results)
    if not rows:
        return []
    names = [_plain(variant.name) for variant in results.variants]
    body = [
        [
            _plain(row.title),
            *(
                ""
                if seen is None
                else f"{score(row.goal, seen.value)} {bounds(row.goal, seen.low, seen.high)}"
                for seen in row.values
            ),
        ]
        for row in rows
    ]
    return ["## Metrics", _table([["Metric", *names], *body], align="l" + "r" * len(names))]


def _per_class(results: Results) -> list[str]:
    rows, goal = class_rows(results), per_label(results.goal)
    if not rows:
        return []
    names = [variant.name for variant in results.variants]

    def change(delta: float | None, most: bool) -> str:
        if delta is None:
            return ""
        text = delta_number(goal, delta, delta, delta)
        return f"**{text}**" if most else text

    body = [
        [
            _plain(row.label),
            score(goal, row.value),
            *map(change, row.deltas, row.lost_most),
        ]
        for row in rows
    ]
    heading = noun(results.goal)
    table = _table(
        [[heading.capitalize(), *map(_plain, names)], *body], align="l" + "r" * len(names)
    )
    return [
        f"## Per {heading}",
        table,
        f"{about_classes(results)} Bold: the largest losses of a variant.",
    ]


def _table(rows: Sequence[Sequence[str]], *, align: str) -> str:
    """Return a table; ``align`` has a letter a column: ``l`` for text, ``r`` for numbers."""
    head, *body = rows
    lines = [head, ["---:" if side == "r" else "---" for side in align], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(text: str) -> str:
    """Return a short text as code where code can hold it."""
    return _plain(text) if "`" in text or "\n" in text else f"`{text}`"


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#&$~])", r"\\\1", " ".join(text.split()))


def _fence(text: str) -> str:
    """Return a code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text.rstrip()}\n{fence}"
