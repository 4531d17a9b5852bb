"""How much memory does a command hold, with every process it starts?

    python benchmarks/embedded/memory.py pytest suites/

Runs the command and prints the most that all of its processes held together: their proportional set sizes (what they
share counts once), looked at every second. Ends with the command's own exit status.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys

import psutil

INTERVAL = 1.0  # seconds


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    command = subprocess.Popen(sys.argv[1:])
    most = 0
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            command.wait(INTERVAL)
            break
        most = max(most, held(command.pid))
    print(f"at most {most / 1e9:.1f} GB")
    sys.exit(command.returncode)


def held(pid: int) -> int:
    """Bytes of a process and its descendants; those that end meanwhile hold none."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += one.memory_full_info().pss
    return total


if __name__ == "__main__":
    main()
