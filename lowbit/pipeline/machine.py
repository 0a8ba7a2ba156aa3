"""What a number was measured on: processor, its integer instructions, threads, versions."""

import contextlib
import functools
import importlib.metadata
import os
import platform

import cpuinfo
import psutil

PACKAGES = ("torch", "transformers", "onnx", "onnxruntime", "scikit-learn", "Sastrawi")


def versions() -> dict[str, str]:
    """Python's and the packages' versions; OpenVINO's where it is installed."""
    found = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found["openvino"] = importlib.metadata.version("openvino")
    return found


@functools.cache
def machine() -> dict:
    """Processor name, usable cores, memory in GB and the instructions that INT8 speed depends on."""
    info = cpuinfo.get_cpu_info()
    flags = set(info.get("flags", []))
    return {
        "cpu": info.get("brand_raw", platform.processor() or platform.machine()),
        "arch": info.get("arch", platform.machine()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "avx2": "avx2" in flags,
        "avx512": "avx512f" in flags,
        "vnni": bool(flags & {"avx512_vnni", "avx512vnni", "avx_vnni"}),
        "amx_int8": "amx_int8" in flags,
        "bf16": bool(flags & {"avx512_bf16", "amx_bf16"}),
        "system": platform.platform(terse=True),
    }


def integer_advice(here: dict | None = None) -> str:
    """One sentence: whether a processor multiplies U8 by S8 without saturating, and what to set if not.

    `here` is what machine() said of it; without it, this machine.
    """
    here = here or machine()
    if here["arch"].upper().startswith("X86"):
        if here["vnni"] or here["amx_int8"]:
            return "this CPU has VNNI: 8-bit weights are exact here (REDUCE_RANGE False)"
        return ("this CPU has no VNNI: sums of U8 x S8 products saturate at 16 bits; "
                "train and quantize with REDUCE_RANGE True (7-bit weights) if the file is to run here")
    return "not an x86 CPU: the saturation that REDUCE_RANGE avoids does not occur (REDUCE_RANGE False)"
