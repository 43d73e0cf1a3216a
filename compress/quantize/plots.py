"""Pictures of what a search and a look at each layer have found, as SVG, PNG or PDF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.quantize.mixed import Mixed
from compress.quantize.sensitivity import LayerSensitivity
from deploy.errors import needs_extra


def plot_search(search: Mixed, path: Path) -> None:
    """Draw what was tried: what is lost against speed-up, with what is allowed and chosen."""
    figure, axes = _figure(6.4, 4.2)
    timed = [t for t in search.tried if t.speedup is not None]
    rough = [t for t in timed if not t.final]
    final = [t for t in timed if t.final]
    axes.scatter(
        [t.speedup for t in rough], [t.drop_points for t in rough], s=14, color="0.6", label="tried"
    )
    for tried in final:
        axes.plot([tried.low, tried.high], [tried.drop_points] * 2, color="C0", linewidth=1)
    axes.scatter(
        [t.speedup for t in final], [t.drop_points for t in final], s=22, label="last round"
    )
    chosen = search.chosen
    axes.scatter(
        [chosen.speedup], [chosen.drop_points], s=90, facecolors="none", edgecolors="C3",
        label=f"chosen: {len(chosen.floats)} layers in float",
    )  # fmt: skip
    limit = search.step.max_drop_points
    axes.axhline(limit, color="C3", linestyle="--", linewidth=1, label=f"allowed: {limit:g} points")
    axes.axvline(1, color="0.8", linewidth=1, zorder=0)
    axes.set_xlabel("speed-up over float")
    axes.set_ylabel("loss on validation samples, points")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def plot_sensitivity(layers: Sequence[LayerSensitivity], path: Path) -> None:
    """Draw what each layer in int8 costs, and beside it what it saves, the most sensitive on top."""
    height = 1.2 + 0.24 * len(layers)
    figure, (cost, points, time) = _figure(9.0, height, columns=3)
    names = [layer.name for layer in reversed(layers)]
    of_values = any(layer.noise_share is not None for layer in layers)
    distance = "noise / variance of the outputs" if of_values else "KL divergence, nats"
    for axes, values, title in (
        (cost, [layer.cost for layer in layers], distance),
        (points, [layer.delta_points for layer in layers], "change of the metric, points"),
        (time, [layer.saved_us or 0.0 for layer in layers], "kernel time saved, µs"),
    ):
        colors = ["C0" if v >= 0 else "C3" for v in values[::-1]]
        bars = axes.barh(names, values[::-1], color=colors)
        if axes is cost and of_values:
            decibels = [f"{layer.sqnr_db:.0f} dB" for layer in reversed(layers)]
            axes.bar_label(bars, decibels, padding=3, fontsize=7)
            axes.margins(x=0.25)
        axes.set_xlabel(title)
        axes.axvline(0, color="0.4", linewidth=0.8)
    figure.savefig(path)


def _figure(width: float, height: float, *, columns: int = 1) -> tuple[Any, Any]:
    """Return a figure that no window shows, and its axes, of which the first name the rows."""
    with needs_extra("report"):
        from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, sharey=columns > 1)
