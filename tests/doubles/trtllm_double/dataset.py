"""The requests of a benchmark: JSON lines, read strictly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .percentiles import percentiles
from .tokens import Tokenizer


@dataclass(frozen=True)
class Entry:
    task_id: int
    input_ids: list[int]
    output_tokens: int


def read(path: Path, most: int, tokenizer: Tokenizer) -> list[Entry]:
    """The first `most` entries, or all for 0. Raises KeyError for one that lacks something."""
    entries = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if most and len(entries) == most:
                break
            said = json.loads(line)
            tokens = said.get("input_ids", said.get("logits"))
            if tokens is None:
                tokens = tokenizer.encode(said["prompt"])
            entries.append(Entry(said["task_id"], tokens, said["output_tokens"]))
    if not entries:
        raise ValueError(f"the dataset {path} is empty")
    return entries


def described(entries: Sequence[Entry], path: Path) -> dict[str, Any]:
    """The block `dataset` of a report."""
    inputs = [len(entry.input_ids) for entry in entries]
    outputs = [entry.output_tokens for entry in entries]
    wholes = [a + b for a, b in zip(inputs, outputs, strict=True)]
    described: dict[str, Any] = {
        "isl_stats": percentiles(inputs),
        "osl_stats": percentiles(outputs),
        "seq_len_stats": percentiles(wholes),
        "num_requests": len(entries),
        "dataset_path": str(path),
    }
    for name, lengths in (("isl", inputs), ("osl", outputs), ("sequence_length", wholes)):
        described[f"max_{name}"] = max(lengths)
        described[f"avg_{name}"] = int(sum(lengths) / len(lengths))
    return described
