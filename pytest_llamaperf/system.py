"""The machine without its GPUs: processor, kernel and container, as Linux tells them."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from pathlib import Path

from pytest_llamaperf.environment import looks_secret

# Containers do not know their image; whoever starts one may say it.
IMAGE = "LLAMAPERF_IMAGE"

_IN_CGROUP = re.compile(r"(docker|libpod|kubepods|containerd|crio|lxc)")


def processor() -> str:
    """The product's name where Linux tells it, else its architecture."""
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def kernel() -> str:
    return platform.release()


def container(root: Path = Path("/")) -> str | None:
    """`podman`, or `docker, nvcr.io/nvidia/tensorrt-llm/release:1.2.1` where LLAMAPERF_IMAGE says so; None outside of one.

    By the files that podman and docker leave, and by the name of the first process's control group. An image that looks
    as if it held a credential is not told.
    """
    kind = _kind(root)
    image = os.environ.get(IMAGE, "")
    return f"{kind}, {image}" if kind and image and not looks_secret(image) else kind


def _kind(root: Path) -> str | None:
    if (root / "run" / ".containerenv").exists():
        return "podman"
    if (root / ".dockerenv").exists():
        return "docker"
    found = _IN_CGROUP.search(_text(root / "proc" / "1" / "cgroup"))
    return found[1] if found else None


def _text(path: Path) -> str:
    """Empty where it cannot be read."""
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""
