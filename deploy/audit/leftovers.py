"""What stands in an optimised graph beside its layers: conversions, changes of layout, float islands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from deploy.graph import consumers, producers
from deploy.kernels import INT8_OPERATORS

CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear"})
LAYOUT = frozenset({"Transpose", "ReorderInput", "ReorderOutput"})
# These hand on what they get: int8 stays int8, float stays float.
_MOVING = LAYOUT | {
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "MaxPool", "NhwcMaxPool", "Slice",
    "Gather", "Split", "Resize",
}  # fmt: skip


def graph_facts(model: Any, running: Any) -> dict[str, Any]:
    """Return what of the optimised graph is neither a layer nor a time."""
    graph = running.graph
    readers = consumers(graph)

    def count(nodes: Any, kinds: frozenset[str]) -> int:
        return sum(node.op_type in kinds for node in nodes)

    return {
        "conversions": count(graph.node, CONVERSIONS),
        "pairs_left": sum(
            any(reader.op_type == "DequantizeLinear" for reader in readers.get(node.output[0], ()))
            for node in graph.node
            if node.op_type == "QuantizeLinear"
        ),
        "layout_changes": max(
            0, count(graph.node, LAYOUT) - count(model.graph.node, frozenset({"Transpose"}))
        ),
        "float_islands": tuple(_islands(graph)),
    }


def _islands(graph: Any) -> Iterator[tuple[str, ...]]:
    """Yield the groups of float nodes that lie between int8 and int8, in graph order."""
    made_by, readers = producers(graph), consumers(graph)
    quantized: set[str] = set()
    floats: dict[str, Any] = {}  # by its first result: optimised nodes may lack names
    for node in graph.node:
        kind = node.op_type
        gives_int8 = (
            kind in {"QuantizeLinear", "DynamicQuantizeLinear"}
            or (
                (kind.startswith("QLinear") or kind == "QGemm")
                and not (kind == "QGemm" and len(node.input) < 8)
            )
            or (kind in _MOVING and bool(node.input) and node.input[0] in quantized)
        )
        if gives_int8:
            quantized.update(node.output)
        elif kind not in INT8_OPERATORS | CONVERSIONS:
            floats[node.output[0]] = node

    def behind(node: Any) -> list[Any]:
        return [made_by[name] for name in node.input if name in made_by]

    def ahead(node: Any) -> list[Any]:
        return [reader for name in node.output for reader in readers.get(name, ())]

    seen: set[str] = set()
    for first in floats:
        group, left = [], [first]
        while left:
            name = left.pop()
            if name not in seen:
                seen.add(name)
                group.append(floats[name])
                near = (*behind(floats[name]), *ahead(floats[name]))
                left += [node.output[0] for node in near if node.output[0] in floats]
        comes = any(
            node.op_type == "DequantizeLinear" or node.op_type in INT8_OPERATORS
            for member in group
            for node in behind(member)
        )
        goes = any(node.op_type == "QuantizeLinear" for member in group for node in ahead(member))
        if comes and goes:
            inside = {node.output[0] for node in group}
            yield tuple(node.name for name, node in floats.items() if name in inside)
