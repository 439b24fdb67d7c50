"""Peak memory of a script in a process of its own: that of a test session is high and never falls."""

import os
import subprocess
import sys
from pathlib import Path

from data_makers import ROOT


def peaks_of(script: str, folder: Path) -> list[int]:
    """KiB that the script prints, a line each; it is given the project's root and a folder to write to."""
    done = subprocess.run(
        [sys.executable, "-c", script, str(ROOT), str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        # Freed arrays go back to the system at once: the peak is that of the work, not of the allocator.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": str(4 << 20)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [int(line) for line in done.stdout.splitlines() if line.isdigit()]
