"""What can go wrong with an engine, told apart. None of it says anything about how fast the engine is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from pytest_llamaperf.errors import EngineError
from pytest_llamaperf.hosting.phases import SETTING, Phase
from pytest_llamaperf.wording import shown_path


class FailureKind(StrEnum):
    OUT_OF_MEMORY = "out-of-memory"
    DIED = "died"  # by a signal
    HANG = "hang"
    CRASHED = "crashed"  # an exception, or an exit status other than 0
    PROTOCOL = "protocol"  # something else than was agreed came out of the process
    NOT_INSTALLED = "not-installed"
    DISK_FULL = "disk-full"
    INTERRUPTED = "interrupted"  # it ended as if all were well, with an answer outstanding


MOST_LINES = 8  # of an exception's message: PyTorch's may go on with all frames of C++

# How each kind is told, and what to do about it.
_TOLD = {
    FailureKind.OUT_OF_MEMORY: (
        "the engine ran out of memory",
        "use fewer slots, shorter requests or a smaller model, or spread it over more GPUs",
    ),
    FailureKind.DIED: ("the engine died", "what it wrote last stands in its log"),
    FailureKind.HANG: ("the engine hangs", f"if it is only slow, raise {{phase}}= in {SETTING}"),
    FailureKind.CRASHED: ("the engine crashed", "the whole error stands in its log"),
    FailureKind.PROTOCOL: (
        "the engine's driver broke the protocol",
        "this is an error of the driver; please report it",
    ),
    FailureKind.NOT_INSTALLED: ("the engine is not installed", "install what is missing for the Python that runs it"),
    FailureKind.DISK_FULL: (
        "the disk is full",
        "free some space where caches and results are kept, in /tmp, or in /dev/shm",
    ),
    FailureKind.INTERRUPTED: ("the engine ended by itself", "look in its log for who asked it to stop"),
}

# What gives a kind away in `TypeName: message`; the first that fits counts, and what fits none has crashed.
# Texts are of CPython 3.10 to 3.14, PyTorch 2.4 to 2.13, CUDA, Rust (safetensors, tokenizers) and TensorRT-LLM 1.x.
_SIGNATURES = (
    (FailureKind.OUT_OF_MEMORY, r"^\w*MemoryError\b"),  # also OutOfMemoryError of torch, _ArrayMemoryError of NumPy
    (FailureKind.OUT_OF_MEMORY, r"DefaultCPUAllocator: (can't allocate|not enough) memory"),
    (FailureKind.OUT_OF_MEMORY, r"CUDA out of memory|CUDA error: out of memory|CUDA_ERROR_OUT_OF_MEMORY"),
    (FailureKind.OUT_OF_MEMORY, r"CUBLAS_STATUS_ALLOC_FAILED|std::bad_alloc"),
    (FailureKind.OUT_OF_MEMORY, r"Executor creation failed due to insufficient GPU memory"),
    (FailureKind.OUT_OF_MEMORY, r"Cannot allocate memory"),  # ENOMEM, of fork and mmap
    (FailureKind.DISK_FULL, r"No space left on device|Disk quota exceeded"),
    (FailureKind.NOT_INSTALLED, r"^(ModuleNotFoundError|ImportError)\b"),  # the latter where a library of it is missing
    (FailureKind.PROTOCOL, r"^NotJson\b"),  # of children/program.py
    (FailureKind.DIED, r"\bdied by signal \d+"),  # what drivers say of their ranks
)


class EngineFailure(EngineError):
    """An engine could not do its work; it and all its processes have been ended.

    `problem` is what happened, on one line or more; `last_lines` are the log's; `remains` are numbers of processes that
    could not be ended.
    """

    def __init__(
        self,
        kind: FailureKind,
        phase: Phase,
        problem: str,
        *,
        log: Path | None = None,
        last_lines: Sequence[str] = (),
        remains: Sequence[int] = (),
    ) -> None:
        self.kind, self.phase, self.problem = kind, phase, problem
        self.log, self.last_lines, self.remains = log, tuple(last_lines), tuple(remains)
        super().__init__(self._text())

    def _text(self) -> str:
        """What happened and when, what to do, where more stands."""
        happened, advice = _TOLD[self.kind]
        lines = [f"{happened} ({self.phase}): {self.problem}", advice.format(phase=self.phase)]
        if self.remains:
            lines.append(f"could not be ended: {', '.join(f'process {pid}' for pid in self.remains)}")
        if self.log:
            lines.append(f"log: {shown_path(self.log)}{', which ends with' if self.last_lines else ''}")
        return "\n".join([*lines, *(f"    {line}" for line in self.last_lines)])


def classify(phase: Phase, type_name: str, message: str, *, log: Path | None = None) -> EngineFailure:
    """The failure that an exception in the engine's process amounts to, by its type's name and its message."""
    text = f"{type_name}: {message.strip()}".removesuffix(": ")
    kind = next((kind for kind, pattern in _SIGNATURES if re.search(pattern, text)), FailureKind.CRASHED)
    lines = text.splitlines()
    problem = "\n".join(lines[:MOST_LINES] + ["..."] * (len(lines) > MOST_LINES))
    return EngineFailure(kind, phase, problem, log=log)
