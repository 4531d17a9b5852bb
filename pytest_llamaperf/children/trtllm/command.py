"""trtllm-bench as a subprocess: run to its end, or to its report where it writes that and does not end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Report = Callable[..., None]

GLANCE = 0.1  # seconds
KEPT_LINES = 200  # of what it printed last, for whoever has to tell what went wrong


def run(command: Sequence[str], cwd: str, report_path: str, patience: float, report: Report) -> dict[str, Any]:
    """Exit status (negative for a signal; None if it had to be ended after its report) and its last lines.

    `patience` is seconds between a whole report and the end of the process, which may wait for workers for ever.
    """
    process = subprocess.Popen(
        list(command), cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        encoding="utf-8", errors="replace", start_new_session=True,
    )  # fmt: skip
    lines: deque[str] = deque(maxlen=KEPT_LINES)
    reader = threading.Thread(target=_copy, args=(process, lines), daemon=True)
    reader.start()
    began = time.monotonic()
    ended_by: float | None = None
    while process.poll() is None:
        report("trtllm-bench has run for seconds", int(time.monotonic() - began))
        if ended_by is None and _is_whole(Path(report_path)):
            ended_by = time.monotonic() + patience
        if ended_by is not None and time.monotonic() > ended_by:
            _end_group(process)
            process.wait()
            return {"status": None, "lines": list(lines)}
        time.sleep(GLANCE)
    _end_group(process)  # workers that outlived it would hold the GPUs of the next run
    reader.join(timeout=1.0)  # what it forked may hold the pipe open
    return {"status": process.returncode, "lines": list(lines)}


def _end_group(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _copy(process: subprocess.Popen[str], lines: deque[str]) -> None:
    assert process.stdout is not None
    with process.stdout as output:
        for line in output:
            lines.append(line.rstrip("\n"))
            sys.stderr.write(line)
            sys.stderr.flush()


def _is_whole(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
