"""Versions of what this process has loaded: libraries of CUDA say theirs themselves, packages of Python too.

Imported by `program`, beside which it lies; it needs the standard library only, under any Python from 3.10 on.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# Module -> the name of its distribution: packages that decide speed or answers.
PACKAGES = {
    "tensorrt_llm": "tensorrt_llm",
    "torch": "torch",
    "transformers": "transformers",
    "modelopt": "nvidia-modelopt",
}


def loaded(maps: Path = Path("/proc/self/maps")) -> dict[str, str]:
    """By name: torch, cuda, cublas, cudnn, nccl ...; what is not loaded, or does not say its version, is left out."""
    found = {name: said for module, name in PACKAGES.items() if (said := _package(module, name))}
    files = _files(maps)
    for name, (file, ask) in LIBRARIES.items():
        if file in files:
            try:
                found[name] = ask(ctypes.CDLL(files[file]))  # loaded already: this only finds it again
            except (OSError, AttributeError, ValueError):
                continue
    return found


def _package(module: str, distribution: str) -> str | None:
    """As it says itself once it is imported; its metadata says what is installed meanwhile."""
    there = sys.modules.get(module)
    if there is None:
        return None
    said = getattr(there, "__version__", None)
    if said is not None:
        return str(said)
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _files(maps: Path) -> dict[str, str]:
    """`libnccl` -> the file that is mapped. Of libcudnn_ops and other parts nothing: libcudnn speaks for them."""
    try:
        text = maps.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    found: dict[str, str] = {}
    for path in re.findall(r"\s(/\S.*)$", text, re.MULTILINE):
        if named := re.match(r"(lib\w+)\.so(\.|$)", path.rpartition("/")[2]):
            found.setdefault(named[1], path)
    return found


def _cuda(library: ctypes.CDLL) -> str:
    """12080 is 12.8."""
    number = _filled(library.cudaRuntimeGetVersion)
    return f"{number // 1000}.{number % 1000 // 10}"


def _cublas(library: ctypes.CDLL) -> str:
    return ".".join(str(_filled(library.cublasGetProperty, part)) for part in range(3))


def _cudnn(library: ctypes.CDLL) -> str:
    """90100 is 9.1.0; up to 8 it was written 8902."""
    ask = library.cudnnGetVersion
    ask.restype = ctypes.c_size_t
    number = int(ask())
    major, rest = divmod(number, 10000 if number >= 90000 else 1000)
    return f"{major}.{rest // 100}.{rest % 100}"


def _nccl(library: ctypes.CDLL) -> str:
    """22602 is 2.26.2; up to 2.8 it was written 2804."""
    number = _filled(library.ncclGetVersion)
    major, rest = divmod(number, 10000 if number >= 10000 else 1000)
    return f"{major}.{rest // 100}.{rest % 100}"


def _filled(call: Callable[..., int], *before: int) -> int:
    """The number that a call writes. Raises ValueError where it says that it failed."""
    number = ctypes.c_int()
    if call(*before, ctypes.byref(number)) != 0:
        raise ValueError("the library does not say its version")
    return number.value


# Name of a version -> the library that is asked, and how.
LIBRARIES: dict[str, tuple[str, Callable[[ctypes.CDLL], str]]] = {
    "cuda": ("libcudart", _cuda),
    "cublas": ("libcublas", _cublas),
    "cudnn": ("libcudnn", _cudnn),
    "nccl": ("libnccl", _nccl),
}
