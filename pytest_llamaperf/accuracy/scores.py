"""What an engine got right: a score for every document, and everything that must be alike before two are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_llamaperf.cases import Case
from pytest_llamaperf.measurements import Fingerprint


@dataclass(frozen=True)
class Document:
    """One document of a task, as it was answered.

    id       hash of its content, by lm-eval; with a number at the end where a data set repeats it
    score    0 to 1
    cluster  the template it was made from; documents of one are not independent. Its own id where it has none
    text, target, answer   the end of the prompt, what was wanted, what came; shortened, for people
    """

    id: str
    score: float
    cluster: str
    text: str = ""
    target: str = ""
    answer: str = ""


@dataclass(frozen=True)
class Scores:
    """All documents of one evaluation, by their id. `protocol` decides whether another one asked the same questions.

    `stored` is the file they were read from and since when it is there; empty for those of this session. `measures` are the
    means over all documents of every metric of the task; none of those that were read from a file.
    """

    case: Case
    documents: Mapping[str, Document]
    protocol: Mapping[str, object]
    fingerprint: Fingerprint = field(default_factory=Fingerprint)
    stored: str = ""
    measures: Mapping[str, float] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        return sum(document.score for document in self.documents.values()) / len(self.documents)
