"""An audit for a person."""

from __future__ import annotations

from collections.abc import Callable

from deploy.audit.found import Audit, AuditedLayer


def table(found: Audit) -> list[str]:
    """Return an audit as lines for a person, the verdict last."""
    head = ["layer", "kind", "MACs", "share", "kernel", "µs"]
    write: list[Callable[[AuditedLayer], str]] = [
        lambda layer: layer.name,
        lambda layer: layer.kind,
        lambda layer: "?" if layer.macs is None else f"{layer.macs:,}",
        lambda layer: f"{layer.macs / found.macs:.1%}" if layer.macs and found.macs else "",
        lambda layer: ("int8 " if layer.int8 else "float ") + (layer.kernel or "?"),
        lambda layer: "" if layer.time_us is None else f"{layer.time_us:.1f}",
    ]
    if found.against:
        head.append("against µs")
        write.append(lambda n: "" if n.reference_us is None else f"{n.reference_us:.1f}")
    rows = [head, *([w(layer) for w in write] for layer in found.layers)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    right = {2, 3, 5, 6}
    lines = [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    reasons: dict[tuple[str, str], list[str]] = {}
    for layer in found.layers:
        if layer.why_not and layer.remedy:
            reasons.setdefault((layer.why_not, layer.remedy), []).append(layer.name)
    for (why, remedy), names in reasons.items():
        lines.append(f"float: {', '.join(names)}: {why}; {remedy}")
    lines.append(
        f"left over: {found.conversions} Q/DQ nodes, {found.pairs_left} of them Q→DQ pairs; "
        f"{found.layout_changes} changes of layout inserted"
    )
    lines += [f"float island: {', '.join(island)}" for island in found.float_islands]
    for who, times in ((found.model, found.times), (found.against, found.reference_times)):
        if times is not None:
            lines.append(
                f"{who}: {times.total_us:.1f} µs a call: layers {times.layers_us:.1f}, "
                f"conversions and layout {times.conversions_us:.1f}, other {times.other_us:.1f}"
            )
    if found.saturation:
        lines.append(f"warning: {found.saturation}")
    return [*lines, found.verdict]
