"""What a model gains from int8, and what it loses it to, in a sentence."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from deploy.audit.found import ONE_CHANNEL, Audit, AuditedLayer, Times

_WORTH = 1.1
"""A speed-up that cannot be this large is none to hope for."""


def verdict(found: Audit) -> str:
    """Say in one sentence what the model gains from int8, and what it loses it to."""
    if not found.layers:
        return "no layer here has stored weights; there is nothing to run in int8"
    share = found.int8_macs_share
    of_macs = "" if share is None else f", {share:.0%} of the multiply-accumulates"
    coverage = f"{found.int8_layers} of {len(found.layers)} layers run in int8{of_macs}"
    if found.times is None:
        return coverage
    if found.reference_times is None:
        return f"{coverage}; {_share_of_time(found, found.times)}"
    if found.speedup is None:
        return coverage
    value, low, high = found.speedup.value, found.speedup.low, found.speedup.high
    ratio, other = f"{value:.2f}× [{low:.2f}, {high:.2f}]", found.against
    if low <= 1.0 < _WORTH <= high:
        return (
            f"the model cannot be told from {other} by its speed here ({ratio}): the noise of this machine hides "
            f"any difference; {coverage}"
        )
    if low > 1.0:
        slow = _slower_in_int8(found)
        lost = f"; slower in int8: {', '.join(n.name for n in slow)}" if slow else ""
        lost += f": try {hint}" if (hint := _layout_hint(found.model, slow)) else ""
        return f"the model is {ratio} as fast as {other} on this machine; {coverage}{lost}"
    if high >= 1.0 and found.int8_layers <= (found.reference_int8_layers or 0):
        return (
            f"the model is as fast as {other} on this machine but for noise ({ratio}), and has no more "
            f"layers in int8; {coverage}"
        )
    because = _culprit(found, found.times, found.reference_times, grew=high < 1.0)
    if high < 1.0:
        ratio = f"{1 / value:.2f}× [{1 / high:.2f}, {1 / low:.2f}]"
        return f"the model is {ratio} slower than {other} on this machine, because {because}; {coverage}"
    return f"the model will not speed up on this machine ({ratio}), because {because}; {coverage}"


def _slower_in_int8(found: Audit) -> list[AuditedLayer]:
    return [layer for layer in found.layers if layer.int8 and layer.slower]


def _layout_hint(model: str, slower: Sequence[AuditedLayer]) -> str | None:
    """Say what may help a convolution of one channel among layers of a file; None if there is none."""
    thin = next((layer.name for layer in slower if layer.kind == ONE_CHANNEL), None)
    if thin is None:
        return None
    return (
        f"lightship quantize {shlex.quote(model)} --data DATA --kind layout --out faster.onnx, by which "
        f"{thin!r} may compute several columns at once"
    )


def _culprit(found: Audit, times: Times, theirs: Times, *, grew: bool) -> str:
    """Name what takes the time that int8 should have saved.

    In a model that grew slower that is what grew most, else what takes the largest share.
    """
    total = times.total_us or 1.0
    slower = _slower_in_int8(found)
    candidates = [
        (
            times.conversions_us,
            theirs.conversions_us,
            "quantizing, dequantizing and layout changes",
        ),
        (times.other_us, theirs.other_us, "outside the layers with weights"),
    ]
    if slower:
        ours = sum(layer.time_us or 0.0 for layer in slower)
        floats = sum(layer.reference_us or 0.0 for layer in slower)
        named = " and ".join(f"{layer.name!r}, a {layer.kind}" for layer in slower[:2])
        if len(slower) > 2:
            named += f", and {len(slower) - 2} more layers"
        told = f"{named}, slower in int8 ({ours:.1f} µs) than in float ({floats:.1f} µs): exclude"
        told += " it" if len(slower) == 1 else " them"
        told += f", or try {hint}" if (hint := _layout_hint(found.model, slower)) else ""
        candidates.append((ours, floats, told))
    candidates += [
        (layer.time_us, layer.reference_us or 0.0, f"{layer.name!r}, in float: {layer.why_not}")
        for layer in found.layers
        if layer.time_us is not None and not layer.int8
    ]
    mine, _, told = max(candidates, key=lambda c: c[0] - c[1] if grew else c[0])
    return f"{mine / total:.0%} of the time is {told}"


def _share_of_time(found: Audit, times: Times) -> str:
    total = times.total_us or 1.0
    inside = sum(layer.time_us or 0.0 for layer in found.layers if layer.int8) / total
    return (
        f"{inside:.0%} of the time is theirs, {times.conversions_us / total:.0%} goes to "
        "quantizing, dequantizing and changes of layout"
    )
