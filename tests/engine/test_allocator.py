import platform
import subprocess
import sys
from pathlib import Path

import pytest

COUNT_FAULTS = """
import resource
import torch
from codemae.engine.allocator import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
def use():
    for _ in range(20):
        torch.ones(64 << 18).add_(1)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    faults = {
        keep: int(
            subprocess.run(
                [sys.executable, "-c", COUNT_FAULTS.format(keep=keep)],
                capture_output=True,
                check=True,
                text=True,
            ).stdout
        )
        for keep in (False, True)
    }
    assert faults[False] > 20 * 64, "64 MiB mapped anew 20 times; nothing to prevent"
    assert faults[True] < faults[False] / 20


COUNT_HUGE = """
import re
from pathlib import Path
import torch
from codemae.engine.allocator import keep_freed_memory
if {keep}:
    keep_freed_memory()
tensors = [torch.ones(16 << 18) for _ in range(16)]
print(re.search(r"AnonHugePages: +([0-9]+) kB", Path("/proc/self/smaps_rollup").read_text())[1])
"""
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[madvise]" not in HUGE_PAGES.read_text(),
    reason="the kernel gives huge pages to all or to none",
)
def test_tensors_lie_in_huge_pages() -> None:
    kilobytes = {
        keep: int(
            subprocess.run(
                [sys.executable, "-c", COUNT_HUGE.format(keep=keep)],
                capture_output=True,
                check=True,
                text=True,
            ).stdout
        )
        for keep in (False, True)
    }
    assert kilobytes[True] - kilobytes[False] > 128 << 10, "256 MiB of tensors, most of them in huge pages"
