"""What an audit finds."""

from __future__ import annotations

from deploy.record import Interval, Record, SessionOptions

ONE_CHANNEL = "1-channel Conv"


class AuditedLayer(Record, frozen=True):
    """One layer with stored weights, as ONNX Runtime runs it on this machine."""

    name: str
    kind: str
    macs: int | None
    """Multiply-accumulates for one sample; None where the file's shapes do not tell."""
    kernel: str | None
    """Operator of the optimised graph that computes it; None if it cannot be told."""
    int8: bool
    why_not: str | None
    """The pattern that keeps it out of int8; None if it is int8."""
    remedy: str | None
    time_us: float | None
    """Of its own kernel, from ONNX Runtime's profiler less what that adds; None if nothing was timed."""
    reference_us: float | None
    """The same layer's time in the model it is held against."""
    slower: bool = False
    """Whether it took detectably longer than that, each time that the models were opened."""


class Times(Record, frozen=True):
    """Where the time of one model goes, in µs a call of one sample."""

    total_us: float
    """A whole call, timed without the profiler."""
    layers_us: float
    """Layers with stored weights."""
    conversions_us: float
    """QuantizeLinear, DequantizeLinear, and changes of layout."""
    other_us: float
    """All other nodes, and what ONNX Runtime does between them."""


class Audit(Record, frozen=True):
    """What ``lightship audit`` found."""

    model: str
    against: str | None
    onnxruntime: str | None
    """Release of the runtime that was asked; null where ``litert`` is told."""
    target: str
    session: SessionOptions
    layers: tuple[AuditedLayer, ...]
    macs: int | None
    """Of all layers with stored weights; None if one of them is not known."""
    int8_macs: int | None
    int8_layers: int
    conversions: int
    """QuantizeLinear and DequantizeLinear nodes left in the optimised graph."""
    pairs_left: int
    """QuantizeLinear nodes whose result is dequantized at once: work for nothing."""
    layout_changes: int
    """Transposes and reorderings in the optimised graph beyond the Transposes of the file."""
    float_islands: tuple[tuple[str, ...], ...]
    """Nodes between int8 kernels that compute in float, group by connected group."""
    times: Times | None
    reference_times: Times | None
    speedup: Interval | None
    """How many times faster whole calls are than those of ``against``, with its 95 % interval; timed
    as ``bench`` does, without the profiler. None if they were not timed so."""
    verdict: str
    reference_int8_layers: int | None = None
    """How many layers of ``against`` run in int8."""
    warnings: tuple[str, ...] = ()
    """What made the machine hard to time on."""
    saturating: tuple[str, ...] = ()
    """Layers in int8 whose weights have a bit more than the fast kernels of this machine add without
    overflow, as in a file that was made for another machine."""
    exact_sums: bool = False
    """Whether ONNX Runtime runs all of these with kernels that add exactly, as the session asks."""
    litert: str | None = None
    """Release of LiteRT, for a ``.tflite`` file: then int8 is read from the types in the file, by
    which LiteRT chooses its kernels, and nothing is timed layer by layer."""

    @property
    def int8_macs_share(self) -> float | None:
        """Fraction of the multiply-accumulates that int8 kernels do."""
        if self.macs is None or self.int8_macs is None:
            return None
        return self.int8_macs / self.macs if self.macs else 0.0

    @property
    def saturation(self) -> str | None:
        """What to know of sums that can be wrong here, in a sentence; None if there are none."""
        if not self.saturating:
            return None
        seen = (
            "added exactly here, by slower kernels, and wrong where a program opens the file without "
            'session.x64quantprecision = "1"'
            if self.exact_sums
            else "wrong here: other answers than elsewhere"
        )
        return (
            f"int8 sums of {len(self.saturating)} of {self.int8_layers} layers "
            f"({', '.join(self.saturating[:3])}{' …' if len(self.saturating) > 3 else ''}) overflow in "
            f"the fast kernels of {self.target}, which are exact for weights of 7 bits: {seen}; "
            f'quantize with target = "{self.target}"'
        )
