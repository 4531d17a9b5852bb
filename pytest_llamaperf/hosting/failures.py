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
    DIED = "died"  # by a signal, or a worker of it
    HANG = "hang"
    CRASHED = "crashed"  # an exception, or an exit status other than 0
    PROTOCOL = "protocol"  # something else than was agreed came out of the process
    NOT_INSTALLED = "not-installed"
    DISK_FULL = "disk-full"
    INTERRUPTED = "interrupted"  # it ended as if all were well, with an answer outstanding
    USAGE = "usage"  # it does not take an option it was given
    CHECKPOINT = "checkpoint"  # it cannot read the weights, or they are not what was asked for
    GPU_COUNT = "gpu-count"
    GPU_FAULT = "gpu-fault"  # an error of CUDA or NCCL that a new process may meet again
    REQUEST = "request"  # one request was refused or failed
    BAD_REPORT = "bad-report"  # it ran something else than was asked, or does not say what it ran
    UNSTABLE = "unstable"  # the machine was not fit to measure on
    LEAK = "leak"  # it left processes or GPU memory behind
    BUSY = "busy"  # another session measures here


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
    FailureKind.USAGE: (
        "the engine refuses an option",
        "this version takes other options than the adapter gives; docs/first-run-on-h200.md says where to change them",
    ),
    FailureKind.CHECKPOINT: (
        "the engine cannot use the checkpoint",
        "check its quantization and its files, or let this project make one: model and recipe by name",
    ),
    FailureKind.GPU_COUNT: (
        "the engine found too few GPUs",
        "look at CUDA_VISIBLE_DEVICES and at what else runs here, or use a smaller layout",
    ),
    FailureKind.GPU_FAULT: (
        "a GPU or the links between GPUs failed",
        "take this node out of use until it is checked: nothing measured on it after this can be trusted",
    ),
    FailureKind.REQUEST: (
        "the engine failed a request",
        "the request and its reason stand in the log; a result without it would be of another workload",
    ),
    FailureKind.BAD_REPORT: (
        "what the engine reports is not what was asked",
        "nothing of it was used; compare its log with the command in it",
    ),
    FailureKind.UNSTABLE: (
        "the machine was not fit to measure on",
        "see to that, then run again; a slower result here would have said nothing about the engine",
    ),
    FailureKind.LEAK: (
        "the engine left something behind",
        "end what is left before anything else is measured here; what this engine measured is not used",
    ),
    FailureKind.BUSY: (
        "another session measures on this machine",
        "wait until it has ended, or let this one wait for it: -o llamaperf_wait=SECONDS",
    ),
}

# Files of a checkpoint, which are also named where all is well, and how it is told that one is missing.
_FILES = r"(hf_quant_config|tokenizer(_config)?)\.(json|model)"
_GONE = r"([Nn]ot found|[Nn]ot find|No such file|[Mm]issing)"

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
    # Of CUDA these are sticky: every later call of the process fails with them, and often of the next process too.
    (FailureKind.GPU_FAULT, r"illegal memory access|unspecified launch failure|CUDA error: .*(ECC|hardware stack)"),
    (FailureKind.GPU_FAULT, r"NCCL\b.*(error|time(d )?out|timing out|failed)|ncclSystemError|ncclUnhandledCudaError"),
    (FailureKind.GPU_COUNT, r"Only \d+ GPUs are available, but \d+ are required"),
    (FailureKind.DIED, r"\bdied by signal \d+"),  # what drivers say of their ranks
    (FailureKind.DIED, r"Executor worker died|MPI_ABORT|MPI_Abort"),
    (FailureKind.CHECKPOINT, r"Unsupported quantization_config|Specified quant_algo .* conflict"),
    (FailureKind.CHECKPOINT, rf"{_FILES}\b.*{_GONE}|{_GONE}\b.*{_FILES}|Can't load (the )?tokenizer"),
    (FailureKind.USAGE, r"got invalid argument|[Ee]xtra inputs are not permitted|extra_forbidden"),
    (FailureKind.USAGE, r"got an unexpected keyword argument|No such option|Usage: trtllm-bench"),
    (FailureKind.USAGE, r"^Error: (No such|Missing|Invalid value|Option|Got unexpected)"),  # click, after the usage
    (FailureKind.REQUEST, r"^(RequestError|WrongOutput)\b|Requests failed:|exceeds? .*max_num_tokens"),
    (FailureKind.BAD_REPORT, r"^WrongLogprobs\b"),  # of children/trtllm/scoring.py
)

# What one failure makes of another: a worker that is gone, a request that was lost with it.
_CONSEQUENCES = (FailureKind.DIED, FailureKind.REQUEST)

# Texts that are only written while an engine is starting, wherever they are read.
_STARTING = r"Executor creation failed|died during initialization|Only \d+ GPUs are available|Unsupported quantization"


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

    @property
    def after_the_work(self) -> bool:
        """It only would not end, and has been ended: what it had answered before is as good as ever."""
        return self.kind is FailureKind.HANG and self.phase is Phase.CLOSE and not self.remains

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
    lines = text.splitlines()
    problem = "\n".join(lines[:MOST_LINES] + ["..."] * (len(lines) > MOST_LINES))
    return EngineFailure(_kind_of(text), phase, problem, log=log)


def classify_output(phase: Phase, status: int, lines: Sequence[str], *, log: Path | None = None) -> EngineFailure:
    """The failure that the end of a program amounts to, by its exit status (negative: a signal) and its last lines.

    The line that tells is the last one that gives a kind away, a cause before its consequences; a traceback's, of its
    exceptions the last.
    """
    lines = [line.strip() for line in lines if line.strip()]
    telling = [line for line in lines if _kind_of(line) is not FailureKind.CRASHED]
    # What could not be imported is often only a line in the log, of something that is not needed.
    telling = [line for line in telling if _kind_of(line) is not FailureKind.NOT_INSTALLED] or telling[-1:]
    causes = [line for line in telling if _kind_of(line) not in _CONSEQUENCES]
    raised = [line for line in lines if re.match(r"^[\w.]*(Error|Exception|Interrupt)(:|$)", line)]
    problem = (causes or telling or raised or lines or [""])[-1]
    kind = _kind_of(problem)
    if any(re.search(_STARTING, line) for line in lines):
        phase = Phase.LOAD
    if status < 0 or 128 < status < 160:  # as a shell tells of signals
        number = -status if status < 0 else status - 128
        told = f"died by signal {number}" + (f" after: {problem}" if problem else "")
        return EngineFailure(FailureKind.DIED if kind is FailureKind.CRASHED else kind, phase, told, log=log)
    if status == 2 and kind is FailureKind.CRASHED:  # click's, for a command line it does not understand
        kind = FailureKind.USAGE
    return EngineFailure(kind, phase, f"exit status {status}: {problem}", log=log)


def _kind_of(text: str) -> FailureKind:
    """Qualified names of exceptions count by their last part: `tensorrt_llm.executor.RequestError`."""
    text = re.sub(r"^(?:\w+\.)+(\w+(?:Error|Exception)\b)", r"\1", text)
    return next((kind for kind, pattern in _SIGNATURES if re.search(pattern, text)), FailureKind.CRASHED)
