"""Which machine this is, as far as quantization cares."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Literal

Target = Literal["x86-vnni", "x86-avx2", "arm64"]


def this_target() -> Target:
    """Return the quantization target that this machine is."""
    if platform.machine().lower() in {"aarch64", "arm64"}:
        return "arm64"
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.is_file() else set()
    return "x86-vnni" if flags & {"avx512_vnni", "avx_vnni"} else "x86-avx2"
