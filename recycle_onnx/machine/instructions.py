"""Instruction sets that ONNX Runtime's kernels for the CPU choose by."""

from __future__ import annotations

import ctypes
import subprocess
import sys

from recycle_onnx.machine import processor

LINUX = {
    "AVX2": "avx2", "FMA": "fma", "F16C": "f16c", "AVX-VNNI": "avx_vnni", "AVX512": "avx512f",
    "AVX512-VNNI": "avx512_vnni", "AVX512-BF16": "avx512_bf16", "AMX-INT8": "amx_int8",
    "AMX-BF16": "amx_bf16", "NEON BF16": "bf16",
    "NEON": "asimd", "NEON dotprod": "asimddp", "NEON i8mm": "i8mm", "SVE": "sve",
}  # fmt: skip
"""By name: the flag in /proc/cpuinfo."""
MACOS = {
    "AVX2": "hw.optional.avx2_0", "AVX512": "hw.optional.avx512f", "NEON": "hw.optional.neon",
    "NEON dotprod": "hw.optional.arm.FEAT_DotProd", "NEON i8mm": "hw.optional.arm.FEAT_I8MM",
}  # fmt: skip
"""By name: the sysctl that is 1."""
WINDOWS = {"AVX2": 40, "AVX512": 41, "NEON": 19, "NEON dotprod": 43}
"""By name: the number for IsProcessorFeaturePresent (winnt.h)."""


def names() -> list[str]:
    """Return the instruction sets of this processor; empty where the platform does not tell."""
    if sys.platform == "darwin":
        return [name for name, key in MACOS.items() if _sysctl(key) == "1"]
    if sys.platform == "win32":
        kernel = ctypes.windll.kernel32
        return [name for name, number in WINDOWS.items() if kernel.IsProcessorFeaturePresent(number)]
    flags = processor.flags()
    return [name for name, flag in LINUX.items() if flag in flags]


def _sysctl(key: str) -> str:
    process = subprocess.run(["/usr/sbin/sysctl", "-n", key], capture_output=True, text=True, check=False)
    return process.stdout.strip()
