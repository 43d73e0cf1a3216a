"""Processors that this machine is not, played by qemu: right numbers, at no speed worth a word."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MADE = ROOT / ".emulated"

RASPBERRY_PI = {"4": "cortex-a72", "5": "cortex-a76"}
"""The processors of the boards: without and with instructions for sums of four int8 products."""


def on_arm64(*words, pi="4") -> subprocess.CompletedProcess[str]:
    """Run the Python of Debian's arm64 with the device's packages; skip where there is none."""
    qemu = shutil.which("qemu-aarch64-static")
    if qemu is None or not (MADE / ".made").exists():
        pytest.skip("no arm64 to play: scripts/emulated makes it")
    root = MADE / "arm64"
    python = [qemu, "-cpu", RASPBERRY_PI[pi], "-L", root, root / "usr/bin/python3"]
    return _run(python, words, [MADE / "wheels", ROOT])


def on_haswell(*words) -> subprocess.CompletedProcess[str]:
    """Run this very Python on an x86 with AVX2 and without VNNI; skip where there is none."""
    qemu = shutil.which("qemu-x86_64-static")
    if qemu is None or platform.machine() != "x86_64":
        pytest.skip("no x86 to play: needs qemu-x86_64-static, and an x86 that runs this test")
    return _run([qemu, "-cpu", "Haswell", sys.executable], words, [ROOT])


def said_by(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a process that must not fail printed."""
    assert done.returncode == 0, done.stderr
    return done.stdout


def _run(python, words, path):
    return subprocess.run(
        [str(word) for word in (*python, *words)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
