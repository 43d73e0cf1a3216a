"""What this machine is good for, and what it lacks."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from deploy.machine import SCHEMES, Scheme, this_environment, this_target
from deploy.record import Environment, Record

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "compress": (
        "tensorflow",
        "tf_keras",
        "tensorflow_model_optimization",
        "tf2onnx",
        "onnx",
        "sklearn",
        "PIL",
        "rich",
        "tomli_w",
    ),
    "report": ("matplotlib", "jinja2"),
    "litert": ("ai_edge_litert",),
    "tune": ("optuna",),
    "cluster": ("ray",),
    "images": ("PIL",),
    "serve": ("starlette", "uvicorn", "httptools", "prometheus_client"),
    "sign": ("cryptography",),
}
"""The modules that each extra brings, as pyproject.toml lists them; ``dev`` is for who works on lightship."""


class Diagnosis(Record, frozen=True):
    """What ``lightship doctor`` found."""

    environment: Environment
    scheme: Scheme
    """The quantization scheme that fits this machine."""
    missing: dict[str, tuple[str, ...]]
    """Modules that are not installed, by the extra that brings them."""
    advice: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the diagnosis as lines for a person."""
        here, scheme = self.environment, self.scheme
        versions = ", ".join(f"{name} {version}" for name, version in sorted(here.versions.items()))
        memory = f"{here.memory_bytes / 2**30:.1f} GiB"
        kind = f"{scheme.activations.upper()}{scheme.weights.upper()}"
        rows = {
            "processor": f"{here.cpu}, {here.cores} cores, {memory}",
            "instructions": " ".join(here.isa) or "nothing that helps int8",
            "system": f"{here.os}, Python {here.python}",
            "versions": versions,
            "int8 scheme": f"{kind}, target {here.target}"
            + (", 7-bit weights (reduce_range)" if scheme.reduce_range else ""),
        }
        return [
            *(f"{name:13} {value}" for name, value in rows.items()),
            *(f"{'extra':13} {extra}: {_state(extra, self.missing[extra])}" for extra in EXTRAS),
            *(f"{'advice':13} {line}" for line in self.advice),
        ]


def _state(extra: str, lacks: tuple[str, ...]) -> str:
    if not lacks:
        return "installed"
    return f"lacks {', '.join(lacks)}; install it with: pip install 'lightship[{extra}]'"


def examine() -> Diagnosis:
    """Look at this machine."""
    environment = this_environment()
    missing = {
        extra: tuple(name for name in modules if importlib.util.find_spec(name) is None)
        for extra, modules in EXTRAS.items()
    }
    return Diagnosis(
        environment=environment,
        scheme=SCHEMES[this_target()],
        missing=missing,
        advice=_advice(environment),
    )


def _advice(environment: Environment) -> tuple[str, ...]:
    advice = []
    if environment.target == "x86-avx2":
        advice.append(
            "no VNNI here: fast int8 kernels overflow with 8-bit weights, so 7 bits are used"
        )
    if environment.governor not in {None, "performance"}:
        advice.append(
            f"the CPU governor is {environment.governor}: clocks will wander while timing; "
            "set it to performance"
        )
    busy = environment.load_average
    if busy is not None and busy > environment.cores / 2:
        advice.append(f"the load average is {busy:.1f}: time models when the machine is idle")
    return tuple(advice)
