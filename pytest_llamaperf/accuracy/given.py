"""Documents that nobody may pass on: a user brings them, in a file that an environment variable names."""

from __future__ import annotations

import os
from pathlib import Path

from pytest_llamaperf.cases import Case
from pytest_llamaperf.catalog.tasks import evaluations
from pytest_llamaperf.errors import UsageError


def missing_documents(case: Case) -> str | None:
    """What a case's task needs and nobody has named; None where there is nothing to bring, or it is there.

    So it is known before an engine is opened. Raises UsageError for a file that is named and not there.
    """
    wanted = evaluations().get(str(case.work))
    if wanted is None or not wanted.data:
        return None
    named = os.environ.get(wanted.data)
    if not named:
        return f"needs the documents of {wanted.name}: {wanted.data} names their file; {wanted.source}"
    if not Path(named).is_file():
        raise UsageError(f"{wanted.data}={named}: there is no such file; it holds the documents of {wanted.name}")
    return None
