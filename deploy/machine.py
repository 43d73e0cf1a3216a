"""What this machine is: its processor, its system and the quantization scheme that fits it."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from deploy.record import Environment, Record

Target = Literal["x86-vnni", "x86-avx2", "arm64"]


class Scheme(Record, frozen=True):
    """The 8-bit integers that a target's kernels are fast and exact on."""

    activations: Literal["u8", "s8"]
    weights: Literal["s8"] = "s8"
    reduce_range: bool = False
    """Keep weights to 7 bits, because the kernel adds pairs of products in 16 bits."""

    @property
    def levels(self) -> int:
        """Largest stored weight; the smallest is its negative. 2 × 255 × 64 fits into 16 bits."""
        return 64 if self.reduce_range else 127


SCHEMES: Mapping[Target, Scheme] = {
    # VNNI multiplies unsigned by signed bytes and adds in 32 bits; S8S8 has no fast kernel.
    "x86-vnni": Scheme(activations="u8"),
    # vpmaddubsw adds two products in 16 bits and saturates: 2 × 255 × 127 > 32767.
    "x86-avx2": Scheme(activations="u8", reduce_range=True),
    "arm64": Scheme(activations="s8"),
}
"""What fits each target, measured on it (docs of ONNX Runtime, "Quantize ONNX models")."""

# As Linux spells them in /proc/cpuinfo, mapped to the names that we record.
_X86_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")
_ARM_FEATURES = {"asimd": "neon", "neon": "neon", "asimddp": "dotprod", "i8mm": "i8mm"}
# As macOS spells them under `sysctl hw.optional`.
_SYSCTL_FLAGS = {
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.avx512vnni": "avx512_vnni",
    "hw.optional.neon": "neon",
    "hw.optional.AdvSIMD": "neon",
    "hw.optional.arm.FEAT_DotProd": "dotprod",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
}
# Arm cores that small devices and servers carry; 64-bit kernels print these numbers, not a name
# (util-linux, sys-utils/lscpu-arm.c).
_ARM_PARTS = {
    "0xd03": "Cortex-A53",
    "0xd04": "Cortex-A35",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
}


class Cpu(Record, frozen=True):
    """A processor's name and the instruction sets that matter to int8 kernels, sorted."""

    name: str
    isa: tuple[str, ...]


def parse_cpuinfo(text: str) -> Cpu:
    r"""Read the text of Linux's ``/proc/cpuinfo``; of unequal cores, the first one counts.

    >>> parse_cpuinfo("model name\t: Old CPU\nflags\t\t: fpu sse2 avx avx2\n")
    Cpu(name='Old CPU', isa=('avx2',))
    """
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags", "").split()
    features = fields.get("Features", "").split()
    isa = {flag for flag in _X86_FLAGS if flag in flags}
    isa |= {name for feature, name in _ARM_FEATURES.items() if feature in features}
    return Cpu(name=_linux_cpu_name(fields), isa=tuple(sorted(isa)))


def _linux_cpu_name(fields: Mapping[str, str]) -> str:
    part = fields.get("CPU part", "").lower()
    core = _ARM_PARTS.get(part, f"Arm part {part}" if part else "")
    # Boards name themselves under "Model"; "model" with a small letter is a number on x86.
    names = (fields.get("model name", ""), core, fields.get("Model", ""))
    return ", ".join(name for name in names if name) or "unknown"


def parse_sysctl(text: str) -> Cpu:
    r"""Read what macOS prints for ``sysctl machdep.cpu hw.optional``.

    >>> parse_sysctl("machdep.cpu.brand_string: Apple M1\nhw.optional.arm.FEAT_DotProd: 1\n")
    Cpu(name='Apple M1', isa=('dotprod',))
    """
    fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    isa = {name for key, name in _SYSCTL_FLAGS.items() if fields.get(key, "").strip() == "1"}
    name = fields.get("machdep.cpu.brand_string", "").strip()
    return Cpu(name=name or "unknown", isa=tuple(sorted(isa)))


def target_of(architecture: str, isa: tuple[str, ...]) -> Target:
    """Return the quantization target of a machine.

    An x86 processor older than AVX2 counts as ``x86-avx2``, whose saturation it shares; a
    processor that is neither x86 nor Arm counts as ``arm64``, whose scheme saturates nowhere.

    Args:
        architecture: as ``platform.machine()`` says it.
        isa: as in ``Cpu``.

    >>> target_of("x86_64", ("avx2", "avx_vnni")), target_of("aarch64", ("neon",))
    ('x86-vnni', 'arm64')
    """
    if architecture.lower() not in {"x86_64", "amd64", "i386", "i686", "x86"}:
        return "arm64"
    return "x86-vnni" if {"avx512_vnni", "avx_vnni"} & set(isa) else "x86-avx2"


def this_target() -> Target:
    """Return the quantization target that this machine is."""
    return target_of(platform.machine(), _this_cpu().isa)


def this_environment() -> Environment:
    """Return what this machine and its software are, as far as the system says it."""
    import onnxruntime as ort  # here: a recipe that names a target need not pay for it

    cpu = _this_cpu()
    return Environment(
        cpu=cpu.name,
        architecture=platform.machine(),
        isa=cpu.isa,
        target=target_of(platform.machine(), cpu.isa),
        cores=usable_cores(),
        memory_bytes=memory_bytes(),
        governor=_read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        load_average=_load_average(),
        os=platform.platform(),
        python=platform.python_version(),
        versions={"numpy": np.__version__, "onnxruntime": ort.__version__, **_other_versions()},
    )


def _this_cpu() -> Cpu:
    cpuinfo = _read(Path("/proc/cpuinfo"))
    if cpuinfo is not None:
        cpu = parse_cpuinfo(cpuinfo)
    elif platform.system() == "Darwin":
        cpu = parse_sysctl(_sysctl("machdep.cpu", "hw.optional"))
    else:
        cpu = Cpu(name=platform.processor() or "unknown", isa=())
    # An emulated or guarded /proc may be silent, but NEON is part of every 64-bit Arm.
    if platform.machine().lower() in {"aarch64", "arm64"} and "neon" not in cpu.isa:
        return Cpu(name=cpu.name, isa=tuple(sorted({*cpu.isa, "neon"})))
    return cpu


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _sysctl(*names: str) -> str:
    import subprocess  # here: opening a model needs none of it

    try:
        return subprocess.run(
            ["/usr/sbin/sysctl", *names], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def usable_cores() -> int:
    """Return how many cores this process may use: a container may see fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Return how much memory the machine has, 0 if it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no sysconf, or one that does not know the name
        return 0


def _load_average() -> float | None:
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows has none, a sandbox may hide it
        return None


def _other_versions() -> dict[str, str]:
    """Return the versions of lightship, unless run from a checkout, and of LiteRT, where it is."""
    import importlib.metadata  # here: it takes longer to import than a small model to open

    found = {}
    for name in ("lightship", "ai-edge-litert"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
