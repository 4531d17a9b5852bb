"""MLPerf's questions to Llama 2 70B, from a file that the user brings, and how near to GPT-4's answers ours come.

Imports nothing of this package: lm-eval loads it by its path, in the process and with the interpreter that evaluate.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from rouge_score.rouge_scorer import RougeScorer

FIELDS = {"prompt", "answer"}
ROUGE = ("rouge1", "rouge2", "rougeL")

# MLPerf's evaluate-accuracy.py computes these by `evaluate`, which calls this package with the stemmer. It also breaks lines
# between sentences, which ROUGE-Lsum alone looks at: for these three a line break is a blank like any other.
_SCORER = RougeScorer(ROUGE, use_stemmer=True)


class BadDocument(Exception):
    """A file of documents says something it may not say; the message begins with file and line."""


def documents(variable: str, **metadata: Any) -> dict[str, Dataset]:
    """Of the file that an environment variable names; lm-eval passes the task's metadata as well."""
    return {"test": Dataset.from_list(read(Path(os.environ[variable])))}


def read(path: Path) -> list[dict[str, Any]]:
    """One document a line, as JSON: {"prompt": ..., "answer": ...}. Raises BadDocument.

    Each gets its line as a number: of two that are alike lm-eval would make one.
    """
    try:
        lines = path.read_bytes().splitlines()  # of bytes: those of text end at more than line feeds
    except OSError as problem:
        raise BadDocument(f"{path}: cannot be read: {problem.strerror}") from None
    if not lines:
        raise BadDocument(f"{path}: holds no documents")
    return [{**_document(path, number, line), "number": number} for number, line in enumerate(lines, 1)]


def rouge(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """F-measures from 0 to 1, which MLPerf multiplies by 100; their mean over all documents is its figure."""
    found = _SCORER.score(document["answer"].strip(), results[0].strip())
    return {name: float(found[name].fmeasure) for name in ROUGE}


def _document(path: Path, number: int, line: bytes) -> dict[str, str]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as problem:  # not JSON, or not UTF-8
        raise BadDocument(f"{path}:{number}: is not JSON: {problem}") from None
    if not isinstance(found, dict) or found.keys() != FIELDS:
        shown = ", ".join(sorted(map(str, found))) if isinstance(found, dict) else type(found).__name__
        raise BadDocument(f"{path}:{number}: a document has the fields prompt and answer, found: {shown or 'none'}")
    for name, value in found.items():
        if not isinstance(value, str) or not value.strip():
            raise BadDocument(f"{path}:{number}: {name!r} must be a text that is not empty")
    return found
