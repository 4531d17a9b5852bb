"""The text that static scales are measured on: shipped with the package, so that calibration needs no data set.

How it was written stands in `benchmarks/calibration/write_calibration.py`. It is read in windows of one length that are
evenly spread over it, so that two machines see the same tokens in the same order, and all kinds of text.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

TEXT = Path(__file__).with_name("calibration.txt")


@dataclass(frozen=True)
class Calibration:
    """`windows` windows of `tokens` tokens of `text`; where it is shorter, as many as it fills."""

    text: Path = TEXT
    windows: int = 12
    tokens: int = 256

    @property
    def digest(self) -> str:
        """Of everything that decides what a model sees."""
        what = hashlib.sha256(self.text.read_bytes())
        what.update(f"{self.windows} {self.tokens}".encode())
        return what.hexdigest()

    def to_dict(self) -> dict[str, object]:
        return {"text": str(self.text), "windows": self.windows, "tokens": self.tokens}
