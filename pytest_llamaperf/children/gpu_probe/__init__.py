"""A fixed piece of work on every GPU: how fast is it today? It imports torch, and nothing of the engines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

SIZE = {"cuda": 8192, "cpu": 256}  # rows and columns of the product; the copy is of 16 times as many elements
TYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}

Report = Callable[..., None]


def open_driver(report: Report) -> Driver:
    return Driver()


class Driver:
    def handle(self, name: str, arguments: Mapping[str, Any]) -> dict[str, float]:
        if name != "probe":
            raise ValueError(f"unknown command {name!r}")
        kind, repeats = arguments["device"], arguments["repeats"]
        count = torch.cuda.device_count() if kind == "cuda" else 1
        if not count:
            raise RuntimeError("torch sees no GPU")
        found: dict[str, float] = {}
        for number in range(count):
            found |= _probed(kind, number, repeats)
        return found

    def close(self) -> None:
        """Nothing is open between two commands."""


@torch.inference_mode()
def _probed(kind: str, number: int, repeats: int) -> dict[str, float]:
    device = torch.device(kind, number)
    size = SIZE[kind]
    ones = torch.ones(size, size, dtype=TYPES[kind], device=device)
    source = torch.ones(16 * size * size, dtype=TYPES[kind], device=device)
    product, copy = torch.empty_like(ones), torch.empty_like(source)
    pieces: dict[str, Callable[[], object]] = {
        f"a matrix product on {kind.upper()} {number}": lambda: torch.mm(ones, ones, out=product),
        f"a copy on {kind.upper()} {number}": lambda: copy.copy_(source),
    }
    # The first one of each loads kernels and raises the clocks, and is not the fastest.
    return {name: min(_seconds(work, device) for _ in range(repeats)) for name, work in pieces.items()}


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
