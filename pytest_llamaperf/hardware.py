"""Which GPUs are in this machine, asked of the driver (NVML) and never guessed."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pytest_llamaperf.boards import Board, board_of, cuda_version, topology
from pytest_llamaperf.cases import CPU
from pytest_llamaperf.catalog import gpus
from pytest_llamaperf.fingerprints import FORMAT
from pytest_llamaperf.system import container, kernel, processor


@dataclass(frozen=True)
class FoundGpu:
    """One GPU as the driver reports it; `name` is the catalog's, or None for a product it does not list."""

    name: str | None
    product: str
    memory: int
    uuid: str
    board: Board = field(default_factory=Board)


@dataclass(frozen=True)
class Machine:
    """`problem` says why the driver could not be asked, if it could not.

    cuda      the newest CUDA that the driver runs
    topology  between each two GPUs, by their numbers of all in the machine: see `boards.topology`
    """

    gpus: tuple[FoundGpu, ...]
    driver: str | None
    processor: str
    problem: str | None = None
    cores: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    cuda: str | None = None
    topology: Mapping[str, str] = field(default_factory=dict)
    kernel: str = field(default_factory=kernel)
    container: str | None = field(default_factory=container)

    @property
    def hardware(self) -> str:
        """What `--gpu auto` means here: the most numerous GPU of the catalog, else cpu."""
        known = Counter(gpu.name for gpu in self.gpus if gpu.name)
        return known.most_common(1)[0][0] if known else CPU

    @property
    def slug(self) -> str:
        """A name for machines like this one, for a file: processor, its cores, and GPUs if there are any."""
        gpus = "-".join(f"{count}x{name}" for name, count in sorted(Counter(g.product for g in self.gpus).items()))
        words = f"{self.processor} {self.cores} cores {gpus}"
        return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")

    def count(self, name: str) -> int:
        """GPUs of this catalog name."""
        return sum(gpu.name == name for gpu in self.gpus)

    def to_dict(self) -> dict[str, object]:
        """The machine's part of run.json; what each field means for a comparison: docs/fingerprint.md."""
        return {"format": FORMAT, **asdict(self)}

    def __str__(self) -> str:
        """For the sentence `found: ...`."""
        products = Counter(gpu.product for gpu in self.gpus)
        listed = ", ".join(f"{count} x {product}" for product, count in products.items()) or "no NVIDIA GPU"
        return f"{listed} ({self.problem})" if self.problem else listed


def find_machine() -> Machine:
    """The GPUs this process may use: those of CUDA_VISIBLE_DEVICES, where a scheduler has set it, else all.

    Never raises for a machine without GPU or driver, or for a GPU that is lost: says so in `problem`.
    """
    import pynvml

    found: dict[int, FoundGpu] = {}
    handles: dict[int, Any] = {}
    lost = []
    try:
        with _nvml():
            driver, cuda = str(pynvml.nvmlSystemGetDriverVersion()), cuda_version()
            for index in range(pynvml.nvmlDeviceGetCount()):
                try:
                    gpu = _found(index)
                    if _is_visible(index, gpu):
                        handles[index] = pynvml.nvmlDeviceGetHandleByIndex(index)
                        found[index] = replace(gpu, board=board_of(handles[index]))
                except pynvml.NVMLError as problem:
                    lost.append(f"GPU {index}: {problem}")
            ways = topology({index: handles[index] for index in found})
    except pynvml.NVMLError as problem:
        return Machine((), None, processor(), str(problem))
    return Machine(tuple(found.values()), driver, processor(), "; ".join(lost) or None, cuda=cuda, topology=ways)


@contextlib.contextmanager
def devices(name: str) -> Iterator[dict[int, Any]]:
    """NVML's handles by number, of GPUs of this catalog name that this process may use.

    Raises NVMLError, also where one is lost that may be of them.
    """
    import pynvml

    with _nvml():
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                found.append((index, _found(index)))
            except pynvml.NVMLError:
                if _may_be_visible(index):
                    raise
        yield {
            index: pynvml.nvmlDeviceGetHandleByIndex(index)
            for index, gpu in found
            if gpu.name == name and _is_visible(index, gpu)
        }


def _is_visible(index: int, gpu: FoundGpu) -> bool:
    """By number or by the beginning of the UUID, as CUDA reads the variable."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return True
    entries = [entry.strip() for entry in listed.split(",") if entry.strip()]
    return any(entry == str(index) or (entry.startswith("GPU-") and gpu.uuid.startswith(entry)) for entry in entries)


def _may_be_visible(index: int) -> bool:
    """Of a GPU that tells nothing of itself: one that is listed by its UUID is not counted, and so is missed elsewhere."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return listed is None or str(index) in [entry.strip() for entry in listed.split(",")]


@contextlib.contextmanager
def _nvml() -> Iterator[None]:
    import pynvml

    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def _found(index: int) -> FoundGpu:
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    product = str(pynvml.nvmlDeviceGetName(handle))
    name = next((gpu.name for gpu in gpus().values() if product in gpu.nvml_names), None)
    return FoundGpu(
        name, product, int(pynvml.nvmlDeviceGetMemoryInfo(handle).total), str(pynvml.nvmlDeviceGetUUID(handle))
    )
