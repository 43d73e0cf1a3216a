"""A made run: five variants of a LeNet-5, with numbers of a believable size."""

import hashlib

import msgspec

from deploy.audit import Audit, AuditedLayer
from deploy.record import (
    Artifact,
    Comparison,
    Confusion,
    Environment,
    Evaluation,
    Interval,
    Latency,
    LayerFacts,
    Measurement,
    SessionOptions,
)
from deploy.report.build import Finished, build_results
from deploy.report.results import Data, Reproduce, Results, Training

ENVIRONMENT = Environment(
    cpu="Intel(R) Xeon(R) Platinum 8481C",
    architecture="x86_64",
    isa=("avx2", "avx512f", "avx512_vnni"),
    target="x86-vnni",
    cores=2,
    memory_bytes=8_340_000_000,
    governor=None,
    load_average=0.31,
    os="Linux 6.1",
    python="3.11.2",
    versions={"onnxruntime": "1.32.0", "numpy": "2.4.0", "lightship": "0.1.0"},
)
RECIPE = """\
name = "demo"

[data]
source = "mnist-sample"

[[variant]]
name = "pruned"
from = "baseline"
step = { kind = "magnitude_prune", final_sparsity = 0.9, schedule = "polynomial" }

[[variant]]
name = "pruned-int8"
from = "pruned"
step = { kind = "quantize_static", calibration = "percentile", per_channel = true }
"""
CONFUSION = tuple(
    tuple(198 if i == j else 2 * (i == (j + 1) % 10) for j in range(10)) for i in range(10)
)
_SHAPES = {"conv1": 520, "conv2": 25_050, "dense1": 400_500, "dense2": 5_010}
_FLOAT_BYTES = 1_726_648


def layers(bits: int, zeros: float = 0.0, notes: dict[str, str] | None = None):
    return tuple(
        LayerFacts(
            name=name,
            kind="Conv" if name.startswith("conv") else "Gemm",
            parameters=parameters,
            zeros=0 if notes and name in notes else round(parameters * zeros),
            bits=32 if notes and name in notes and bits == 8 else bits,
            note=(notes or {}).get(name),
        )
        for name, parameters in _SHAPES.items()
    )


def comparison(delta: float, half: float, p: float, agreement: float) -> Comparison:
    return Comparison(
        delta=Interval(value=delta, low=delta - half, high=delta + half),
        mcnemar_p=p,
        agreement=agreement,
        per_label_delta=(delta,) * 10,
    )


def latency(p50_ms: float, spread: float, speedup: tuple[float, float, float]) -> Latency:
    return Latency(
        p50_ms=Interval(value=p50_ms, low=p50_ms * (1 - spread), high=p50_ms * (1 + spread)),
        p90_ms=p50_ms * 1.06,
        p99_ms=p50_ms * 1.31,
        speedup=Interval(value=speedup[0], low=speedup[1], high=speedup[2]),
        throughput_per_s=1700 / p50_ms,
        batch=32,
        load_ms=4.1 + 8 * p50_ms,
        peak_rss_bytes=58_000_000 + round(6e7 * p50_ms),
    )


def finished(
    name: str,
    parent: str | None,
    step: dict[str, object],
    *,
    size_bytes: int = _FLOAT_BYTES,
    gzip_bytes: int = 1_597_200,
    accuracy: tuple[float, float, float] = (0.9865, 0.9804, 0.9907),
    against_parent: Comparison | None = None,
    against_baseline: Comparison | None = None,
    facts: tuple[LayerFacts, ...] = layers(32),
    int8: bool = False,
) -> Finished:
    parameters = sum(_SHAPES.values())
    return Finished(
        name=name,
        parent=parent,
        path=f"models/{name}.onnx",
        artifact=Artifact(
            format="onnx",
            sha256=hashlib.sha256(name.encode()).hexdigest(),
            size_bytes=size_bytes,
            gzip_bytes=gzip_bytes,
            parent=None,
            step=step,
            seed=0,
            versions={"tensorflow": "2.21.0"},
            parameters=parameters,
            nonzero_parameters=parameters - sum(layer.zeros for layer in facts),
            layers=facts,
            preprocess=(),
            labels=tuple("0123456789"),
        ),
        evaluation=Evaluation(
            samples=2000,
            score=Interval(value=accuracy[0], low=accuracy[1], high=accuracy[2]),
            metrics={
                "accuracy": Interval(value=accuracy[0], low=accuracy[1], high=accuracy[2]),
                "f1_macro": Interval(value=accuracy[0], low=accuracy[1], high=accuracy[2]),
            },
            per_label=(accuracy[0],) * 10,
            answers=Confusion(counts=CONFUSION),
        ),
        against_parent=against_parent,
        against_baseline=against_baseline,
        audit=audited(facts, int8=int8),
    )


def audited(facts: tuple[LayerFacts, ...], *, int8: bool) -> Audit:
    """Return the audit of layers that run in int8 where ``int8`` is true and 8 bits are stored."""
    each = {"conv1": 288_000, "conv2": 1_600_000, "dense1": 400_000, "dense2": 5000}
    runs = [int8 and layer.bits == 8 for layer in facts]
    return Audit(
        model="model.onnx",
        against=None,
        onnxruntime="1.32.0",
        target="x86-vnni",
        session=SessionOptions(),
        layers=tuple(
            AuditedLayer(
                name=layer.name,
                kind=layer.kind,
                macs=each[layer.name],
                kernel="QLinearConv" if quantized else layer.kind,
                int8=quantized,
                why_not=None if quantized else "left in float",
                remedy=None if quantized else "quantize it",
                time_us=None,
                reference_us=None,
            )
            for layer, quantized in zip(facts, runs, strict=True)
        ),
        macs=sum(each.values()),
        int8_macs=sum(
            each[layer.name] for layer, quantized in zip(facts, runs, strict=True) if quantized
        ),
        int8_layers=sum(runs),
        conversions=0,
        pairs_left=0,
        layout_changes=0,
        float_islands=(),
        times=None,
        reference_times=None,
        speedup=None,
        verdict="",
    )


def variants() -> list[Finished]:
    prune = {"kind": "magnitude_prune", "final_sparsity": 0.9, "schedule": "polynomial"}
    static = {"kind": "quantize_static", "calibration": "percentile", "per_channel": True}
    first = {"conv1": "first layer: one input channel is slower in int8"}
    pruned = comparison(-0.2, 0.42, 0.503, 0.9915)
    int8 = comparison(-0.05, 0.15, 1.0, 0.9985)
    half = comparison(-0.05, 0.1, 1.0, 0.9995)
    return [
        finished("baseline", None, {"kind": "train", "network": "lenet_5"}),
        finished(
            "pruned",
            "baseline",
            {**prune, "fine_tune": {"epochs": 2, "batch_size": 128}},
            gzip_bytes=257_900,
            accuracy=(0.9845, 0.9781, 0.9891),
            against_parent=pruned,
            against_baseline=pruned,
            facts=layers(32, 0.9, {"conv1": "skipped: named in skip"}),
        ),
        finished(
            "int8",
            "baseline",
            static,
            size_bytes=447_310,
            gzip_bytes=391_400,
            accuracy=(0.986, 0.9798, 0.9903),
            against_parent=int8,
            against_baseline=int8,
            facts=layers(8, 0.01, first),
            int8=True,
        ),
        finished(
            "pruned-int8",
            "pruned",
            static,
            size_bytes=447_352,
            gzip_bytes=133_900,
            accuracy=(0.984, 0.9775, 0.9887),
            against_parent=comparison(-0.05, 0.22, 1.0, 0.9975),
            against_baseline=comparison(-0.25, 0.43, 0.405, 0.991),
            facts=layers(8, 0.9, first),
            int8=True,
        ),
        finished(
            "float16",
            "baseline",
            {"kind": "float16"},
            size_bytes=865_120,
            gzip_bytes=792_700,
            accuracy=(0.986, 0.9798, 0.9903),
            against_parent=half,
            against_baseline=half,
            facts=layers(16),
        ),
    ]


def measurement() -> Measurement:
    return Measurement(
        environment=ENVIRONMENT,
        session=SessionOptions(),
        processes=5,
        sessions_per_process=3,
        latencies=(
            latency(0.1592, 0.024, (1.0, 1.0, 1.0)),
            latency(0.1581, 0.031, (1.007, 0.972, 1.044)),
            latency(0.0871, 0.035, (1.828, 1.741, 1.903)),
            latency(0.0884, 0.029, (1.801, 1.722, 1.889)),
            latency(0.1738, 0.022, (0.916, 0.887, 0.944)),
        ),
    )


def training(start: float, end: float, epochs: int) -> Training:
    rows = []
    for epoch in range(epochs):
        done = 1 - 0.45**epoch
        value = start + (end - start) * done
        rows.append({
            "loss": 2.2 * (1 - value) + 0.01,
            "accuracy": value,
            "val_loss": 2.5 * (1 - value) + 0.02,
            "val_accuracy": value - 0.004 - 0.003 * (epoch % 2),
        })  # fmt: skip
    return Training(epochs=tuple(rows), kept_epoch=epochs - 1)


def example(**changes: object) -> Results:
    """Return the example; ``changes`` replace arguments of ``build_results``."""
    given: dict[str, object] = {
        "variants": variants(),
        "measurement": measurement(),
        "environment": ENVIRONMENT,
        "session": SessionOptions(),
        "data": Data(
            name="mnist-sample",
            licence="CC BY-SA 3.0, LeCun, Cortes and Burges",
            outputs=10,
            sample_shape=(28, 28, 1),
            train_samples=9000,
            validation_samples=1000,
            calibration_samples=500,
            test_samples=2000,
        ),
        "name": "demo",
        "title": "LeNet-5 on a sample of MNIST",
        "description": "The classic small convolutional network, pruned to 90 % zeros, "
        "quantized to int8, and both.",
        "lightship": "0.1.0",
        "created": "2025-01-31T09:30:00+00:00",
        "reproduce": Reproduce(command="lightship run demo --seed 0", recipe=RECIPE),
        "history": {
            "baseline": training(0.91, 0.992, 8),
            "pruned": training(0.955, 0.989, 4),
        },
    }
    return build_results(**{**given, **changes})


def with_agreement(results: Results, name: str, share: float) -> Results:
    """Return results in which one variant was trained for int8 and agrees with Keras so often."""
    variants = (
        msgspec.structs.replace(v, keras_agreement=share if v.name == name else None)
        for v in results.variants
    )
    return msgspec.structs.replace(results, variants=tuple(variants))
