"""Which runtime answers fastest, for every network that is there for both."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.report.quantities import duration, duration_bounds, times
from deploy.report.results import Results, Variant

ABOUT = (
    "Of each trained network, the fastest form in ONNX Runtime and in LiteRT, among those shown to "
    "lose less than a point against it; timed side by side. Times whose intervals overlap are not "
    "told apart."
)
"""What the lines say, for the reader of a report."""

_MOST_LOST_POINTS = 1.0
_FORMS = ("quantize", "float16", "litert")
"""How the kinds of steps begin that make another form of a network, not another network."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One network in both runtimes.

    Attributes:
        network: the variant that the forms were made from.
        onnx: its fastest form in ONNX Runtime.
        litert: its fastest form in LiteRT.
    """

    network: Variant
    onnx: Variant
    litert: Variant

    @property
    def fastest(self) -> Variant | None:
        """The faster of the two, or None where the intervals of their times overlap."""
        first, second = sorted((self.onnx, self.litert), key=lambda v: v.p50_ms or 0.0)
        if (first.p50_high_ms or 0.0) >= (second.p50_low_ms or 0.0):
            return None
        return first


def compared(results: Results) -> list[Compared]:
    """Return every network that was timed in both runtimes, in the order of the variants."""
    found = []
    for network in results.variants:
        if str(network.step.get("kind", "")).startswith(_FORMS):
            continue
        forms = [network, *(v for v in results.variants if _is_form(v, network))]
        onnx = [v for v in forms if v.format == "onnx" and v.p50_ms is not None]
        litert = [v for v in forms if v.format == "tflite" and v.p50_ms is not None]
        if onnx and litert:
            found.append(Compared(network, min(onnx, key=_time), min(litert, key=_time)))
    return found


def runtime_lines(results: Results) -> list[str]:
    """Say of every network in both runtimes which is best; empty where there is none."""
    return [_line(one) for one in compared(results)]


def _is_form(variant: Variant, network: Variant) -> bool:
    """Say whether a variant is a form of a network, and shown to be nearly as accurate."""
    low = variant.delta_low
    return (
        variant.parent == network.name
        and str(variant.step.get("kind", "")).startswith(_FORMS)
        and low is not None
        and low > -_MOST_LOST_POINTS
    )


def _time(variant: Variant) -> float:
    return variant.p50_ms or 0.0


def _line(one: Compared) -> str:
    best = one.fastest
    onnx, litert = _said(one.onnx, one), _said(one.litert, one)
    if best is None:
        return (
            f"{one.network.name}: LiteRT ({litert}) and ONNX Runtime ({onnx}) are not told apart."
        )
    ratio = times(_time(one.litert) / _time(one.onnx))
    if best is one.litert:
        ratio = times(_time(one.onnx) / _time(one.litert))
        return (
            f"{one.network.name}: LiteRT is best ({litert}), {ratio} as fast as ONNX Runtime "
            f"({onnx})."
        )
    return (
        f"{one.network.name}: ONNX Runtime is best ({onnx}), {ratio} as fast as LiteRT ({litert})."
    )


def _said(variant: Variant, one: Compared) -> str:
    p50, low, high = variant.p50_ms or 0.0, variant.p50_low_ms or 0.0, variant.p50_high_ms or 0.0
    name = "as it is" if variant is one.network else variant.name
    return f"{name}, {duration(p50)} {duration_bounds(p50, low, high)}"
