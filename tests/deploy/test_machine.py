import platform
import subprocess

import numpy as np
import onnxruntime as ort
import pytest

from deploy import machine
from deploy.machine import (
    SCHEMES,
    parse_cpuinfo,
    parse_sysctl,
    target_of,
    this_environment,
    this_target,
)

RASPBERRY_PI_4 = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

processor\t: 1
Features\t: fp asimd evtstrm crc32 cpuid
CPU part\t: 0xd08

Revision\t: c03114
Serial\t\t: 100000000000abcd
Model\t\t: Raspberry Pi 4 Model B Rev 1.4
"""

RASPBERRY_PI_5 = RASPBERRY_PI_4.replace("crc32 cpuid", "aes crc32 atomics asimdhp asimddp").replace(
    "0xd08", "0xd0b"
)

HASWELL = """\
processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 60
model name\t: Intel(R) Core(TM) i7-4770 CPU @ 3.40GHz
flags\t\t: fpu sse sse2 ssse3 fma sse4_1 sse4_2 avx f16c bmi1 avx2 bmi2 erms
"""

XEON = """\
processor\t: 0
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8480+
flags\t\t: fpu sse2 avx2 avx512f avx512dq avx512bw avx_vnni avx512_vnni amx_bf16 amx_tile amx_int8
"""

APPLE_M2 = """\
machdep.cpu.cores_per_package: 8
machdep.cpu.brand_string: Apple M2
hw.optional.neon: 1
hw.optional.AdvSIMD: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_I8MM: 1
"""

INTEL_MAC = """\
machdep.cpu.brand_string: Intel(R) Core(TM) i9-9880H CPU @ 2.30GHz
hw.optional.avx2_0: 1
hw.optional.avx512f: 0
"""


@pytest.mark.parametrize(
    ("text", "architecture", "name", "isa", "target"),
    [
        (
            RASPBERRY_PI_4,
            "aarch64",
            "Cortex-A72, Raspberry Pi 4 Model B Rev 1.4",
            ("neon",),
            "arm64",
        ),
        (
            RASPBERRY_PI_5,
            "aarch64",
            "Cortex-A76, Raspberry Pi 4 Model B Rev 1.4",
            ("dotprod", "neon"),
            "arm64",
        ),
        (HASWELL, "x86_64", "Intel(R) Core(TM) i7-4770 CPU @ 3.40GHz", ("avx2",), "x86-avx2"),
        (
            XEON,
            "x86_64",
            "Intel(R) Xeon(R) Platinum 8480+",
            ("amx_bf16", "amx_int8", "avx2", "avx512_vnni", "avx512f", "avx_vnni"),
            "x86-vnni",
        ),
    ],
)
def test_linux_says_the_processor_its_instructions_and_so_the_target(
    text, architecture, name, isa, target
):
    cpu = parse_cpuinfo(text)
    assert (cpu.name, cpu.isa) == (name, isa)
    assert target_of(architecture, cpu.isa) == target


@pytest.mark.parametrize(
    ("flags", "target"),
    [
        ("sse2", "x86-avx2"),
        ("avx2 avx512f avx512bw", "x86-avx2"),  # Skylake-X
        ("avx2 avx_vnni", "x86-vnni"),  # Alder Lake
        ("avx2 avx512f avx512_vnni", "x86-vnni"),  # Cascade Lake
    ],
)
def test_only_vnni_makes_an_x86_a_vnni_target(flags, target):
    assert target_of("AMD64", parse_cpuinfo(f"flags : {flags}").isa) == target


def test_an_unlisted_arm_core_keeps_its_number():
    assert parse_cpuinfo("CPU part : 0xABC\n").name == "Arm part 0xabc"


@pytest.mark.parametrize("text", ["", "nonsense", ":::\n\n: :", "flags"])
def test_a_silent_cpuinfo_is_an_unknown_processor(text):
    assert parse_cpuinfo(text) == machine.Cpu(name="unknown", isa=())


def test_macos_says_the_processor_and_only_instructions_that_are_on():
    m2, intel = parse_sysctl(APPLE_M2), parse_sysctl(INTEL_MAC)
    assert (m2.name, m2.isa) == ("Apple M2", ("dotprod", "i8mm", "neon"))
    assert intel.isa == ("avx2",)
    assert target_of("arm64", m2.isa) == "arm64"
    assert target_of("x86_64", intel.isa) == "x86-avx2"


def test_every_target_has_a_scheme_and_only_avx2_reduces_the_range():
    described = {
        target: f"{s.activations}{s.weights}{' reduced' if s.reduce_range else ''}"
        for target, s in SCHEMES.items()
    }
    assert described == {"x86-vnni": "u8s8", "x86-avx2": "u8s8 reduced", "arm64": "s8s8"}


def test_this_machine_is_recorded_with_what_it_runs_on():
    environment = this_environment()
    assert environment.cores >= 1
    assert environment.target == this_target() == target_of(platform.machine(), environment.isa)
    assert environment.versions.items() >= {
        ("numpy", np.__version__),
        ("onnxruntime", ort.__version__),
    }


def test_a_mac_without_sysctl_and_proc_is_still_described(monkeypatch):
    def refuse(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(machine, "_read", lambda _: None)
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(subprocess, "run", refuse)
    environment = this_environment()
    assert (environment.cpu, environment.isa) == ("unknown", ("neon",))
    assert (environment.governor, environment.target) == (None, "arm64")


def test_a_system_without_posix_calls_is_still_described(monkeypatch):
    for name in ("sched_getaffinity", "sysconf", "getloadavg"):
        monkeypatch.delattr(machine.os, name, raising=False)
    monkeypatch.setattr(machine, "_read", lambda _: None)
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    environment = this_environment()
    assert (environment.load_average, environment.memory_bytes) == (None, 0)
