"""Scores of a reference as files, so that the BF16 run of a large model need not be repeated for every candidate.

`<baselines>/accuracy/<engine>/<model>/<recipe>-<task>.json` is reviewed and in git; `<baselines>/local/accuracy/...` is what
`--record` wrote on this machine. A reference is good for candidates that were asked exactly the same: see `Scores.protocol`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pytest_llamaperf.accuracy.scores import Document, Scores
from pytest_llamaperf.cases import Case
from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.files import write_atomically
from pytest_llamaperf.measurements import Fingerprint
from pytest_llamaperf.wording import shown_path

# 1: case, protocol, fingerprint, recorded, documents as [id, score, cluster].
SCHEMA = 1


def reference_file(baselines: Path, case: Case) -> Path | None:
    """The file with scores of a case's model, recipe and task, the reviewed one first; None where there is none."""
    places = (baselines / "accuracy", baselines / "local" / "accuracy")
    return next((path for place in places if (path := place / _name(case)).is_file()), None)


def read_reference(path: Path, case: Case, protocol: Mapping[str, object]) -> Scores:
    """Raises UsageError for a file that is no reference, or one of other questions, naming what is different."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        documents = {each.id: each for each in map(_document, found["documents"])}
        there: dict[str, object] = dict(found["protocol"])
        fingerprint = Fingerprint(dict(found["fingerprint"]["versions"]), dict(found["fingerprint"]["settings"]))
        schema, recorded = found["schema"], str(found["recorded"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
        raise UsageError(
            f"{shown_path(path)}: is no reference of accuracy: {type(problem).__name__}: {problem}"
        ) from None
    if schema != SCHEMA:
        raise UsageError(f"{shown_path(path)}: is of schema {schema}, this version reads {SCHEMA}")
    if not documents or len(documents) != len(found["documents"]):
        raise UsageError(f"{shown_path(path)}: holds no documents, or one of them twice")
    different = [name for name in sorted(there.keys() | protocol.keys()) if there.get(name) != protocol.get(name)]
    if different:
        told = "; ".join(f"{name} is {there.get(name)!r} there and {protocol.get(name)!r} here" for name in different)
        raise UsageError(
            f"{shown_path(path)}: the reference was asked other questions: {told}; remove the file, or record it again "
            "with --record"
        )
    return Scores(case, documents, there, fingerprint, f"{shown_path(path)}, {recorded}")


def write_reference(baselines: Path, scores: Scores) -> Path:
    """What was measured, for this machine. Raises UsageError where it cannot be written."""
    path = baselines / "local" / "accuracy" / _name(scores.case)
    lines = ",\n".join(
        "  " + json.dumps([found.id, found.score, found.cluster], ensure_ascii=False)
        for found in scores.documents.values()
    )
    head = {
        "schema": SCHEMA,
        "case": scores.case.to_dict(),
        "protocol": dict(scores.protocol),
        "fingerprint": scores.fingerprint.to_dict(),
        "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    text = json.dumps(head, indent=1, ensure_ascii=False, allow_nan=False)
    try:
        write_atomically(path, f'{text[:-2]},\n "documents": [\n{lines}\n ]\n}}\n')
    except OSError as problem:
        raise UsageError(f"{shown_path(path)}: cannot be written: {problem.strerror}") from None
    return path


def _name(case: Case) -> Path:
    return Path(case.engine) / case.model.name / f"{case.recipe}-{case.work}.json"


def _document(told: Any) -> Document:
    match told:
        case [str(name), score, str(cluster)]:
            if type(score) not in (int, float) or not 0 <= score <= 1:
                raise ValueError(f"{str(score)[:40]!r} is no score from 0 to 1")
            return Document(name, float(score), cluster)
    raise ValueError(f"{str(told)[:40]!r} is no document, which is its id, its score and its cluster")
