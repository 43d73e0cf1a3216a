"""``report.md``: the findings where no HTML is shown, as in a pull request."""

from __future__ import annotations

import re
from collections.abc import Sequence

from deploy.report.machines import COLUMNS, machine_rows, machine_words
from deploy.report.results import Results
from deploy.report.summary import (
    INT8_METHOD,
    audited,
    environment_facts,
    lineage,
    method,
    step_words,
)
from deploy.report.table import columns_of
from deploy.report.verdict import RULE


def to_markdown(results: Results) -> str:
    """Return ``report.md``."""
    columns = columns_of(results)
    table = [["Variant", *(column.title for column in columns), "Pareto"]]
    for variant in results.variants:
        cells = [column.cell(variant) for column in columns]
        texts = [" ".join((cell.text, *cell.details)) if cell else "" for cell in cells]
        table.append([_plain(variant.name), *texts, "●" if variant.pareto else ""])
    parts = [
        f"# {_plain(results.title)}",
        _plain(results.description),
        f"**{_plain(results.verdict)}**",
        *(f"> Warning: {_plain(warning)}" for warning in results.warnings),
        "## Variants",
        _table(table),
        f"● on the Pareto front. {method(results)} {RULE}",
        *_other_machines(results),
        "## Lineage",
        "\n".join(
            f"{'  ' * depth}- **{_plain(variant.name)}**: {_plain(step_words(variant))}"
            for depth, variant in lineage(results)
        ),
        *_int8(results),
        "## Layers",
        _table([["Variant", "Layer", "Parameters", "Zeros", "Bits", "Note"], *_layers(results)]),
        "## Environment",
        "\n".join(f"- {name}: {_plain(value)}" for name, value in environment_facts(results)),
        "## Reproduce",
        _fence(results.reproduce.command),
        _fence(results.reproduce.recipe),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _other_machines(results: Results) -> list[str]:
    if not results.machines:
        return []
    rows = [["Machine", "Variant", *COLUMNS]]
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
    return ["## Other machines", _table(rows), "\n".join(about)]


def _int8(results: Results) -> list[str]:
    """Return the section on int8, or nothing where nobody looked."""
    if not audited(results):
        return []
    rows = [["Variant", "MACs", "MACs in int8", "Int8 layers", "Layers", "Float islands"]]
    for variant in audited(results):
        share = variant.int8_macs_share
        rows.append([
            _plain(variant.name),
            "" if variant.macs is None else f"{variant.macs}",
            "" if share is None else f"{100 * share:.1f} %",
            f"{variant.int8_layers}",
            f"{variant.weighted_layers}",
            f"{variant.float_islands}",
        ])  # fmt: skip
    return ["## What runs in int8", _table(rows), INT8_METHOD]


def _layers(results: Results) -> list[list[str]]:
    return [
        [
            _plain(variant.name),
            _plain(layer.name),
            f"{layer.parameters}",
            f"{100 * layer.sparsity:.1f} %",
            f"{layer.bits}",
            _plain(layer.note or ""),
        ]
        for variant in results.variants
        for layer in variant.layers
    ]


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---", *("---:" for _ in head[1:])], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#&$~])", r"\\\1", " ".join(text.split()))


def _fence(text: str) -> str:
    """Return a code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text.rstrip()}\n{fence}"
