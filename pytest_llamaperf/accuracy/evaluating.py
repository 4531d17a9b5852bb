"""A task asked of an open engine: lm-eval in one process has the questions, the engine in another the answers."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytest_llamaperf.accuracy import canary
from pytest_llamaperf.accuracy.given import missing_documents
from pytest_llamaperf.accuracy.scores import Document, Scores
from pytest_llamaperf.answers import answering
from pytest_llamaperf.cases import Case
from pytest_llamaperf.catalog.tasks import Evaluation, evaluation_named
from pytest_llamaperf.checkpoints import Checkpoint
from pytest_llamaperf.engines import AnsweringEngine, Engine, EngineSpec, Fingerprinted, Surroundings, Until
from pytest_llamaperf.engines.hosted import checkpoint_for, fingerprint
from pytest_llamaperf.errors import EngineError, UsageError, nearest
from pytest_llamaperf.hosting.failures import EngineFailure, FailureKind
from pytest_llamaperf.hosting.host import Host
from pytest_llamaperf.hosting.phases import Phase
from pytest_llamaperf.measurements import Fingerprint

# What runs in the child process: a package of `children/`.
DRIVER = "evaluator"
TASKS = Path(__file__).parent  # those that are not lm-eval's own are in its folders
OFFLINE = TASKS / "offline"
SEED = 20261124  # of the documents that are drawn, and of few-shot examples

Tell = Callable[[str, int, int | None], None]

AT_ONCE = 512  # questions in one call of an engine, between two signs of progress


class Evaluator:
    """lm-eval in a process that is started once a session, for importing it takes longer than most tasks; see `close`."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._host: Host | None = None
        self._told: Tell = surroundings.on_progress
        self._sound: weakref.WeakSet[AnsweringEngine] = weakref.WeakSet()

    def scores(self, case: Case, engine: Engine) -> Scores:
        """Scores of the case's task. The engine must pass the canary first.

        Raises Unsupported for an engine that cannot be asked, UsageError for a task that is unknown or whose documents
        are not here, EngineError for answers that cannot be used, among them those to a document that is too long.
        """
        engine = answering(case, engine)
        spec = EngineSpec.of(case)
        wanted = evaluation_named(str(case.work))
        if missing := missing_documents(case):
            raise UsageError(f"{case}: {missing}")
        checkpoint = checkpoint_for(spec, self._surroundings)
        if engine not in self._sound:
            canary.check(engine)
            self._sound.add(engine)

        def tell(text: str, done: int, total: int | None) -> None:
            self._surroundings.on_progress(f"{case}: {text}", done, total)

        self._told = tell
        host = self._opened()
        try:
            asked = host.call("evaluate", _arguments(wanted, checkpoint.path, spec), Phase.RUN)
            while "done" not in asked:
                asked = host.call("reply", {"values": _answered(engine, asked, tell)}, Phase.RUN)
        except EngineFailure as failure:
            self._host = None  # it has been ended
            raise _explained(case, wanted, failure) from None
        except BaseException:
            self.close()  # lm-eval waits for a reply that will not come
            raise
        return _scores(case, wanted, asked["done"], _of_engine(engine, checkpoint))

    def close(self) -> None:
        host, self._host = self._host, None
        if host is not None:
            host.kill()  # there is nothing to save

    def _opened(self) -> Host:
        if self._host is None:
            if importlib.util.find_spec("lm_eval") is None:
                raise EngineFailure(
                    FailureKind.NOT_INSTALLED,
                    Phase.LOAD,
                    "lm-eval is missing: pip install 'pytest-llamaperf[accuracy]'",
                )
            self._host = Host(
                DRIVER,
                log=self._surroundings.logs / "lm-eval.log",
                deadlines=self._surroundings.deadlines,
                environment={"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"},
                on_progress=lambda progress: self._told(progress.text, progress.done, progress.total),
            )
        return self._host


def _arguments(wanted: Evaluation, checkpoint: Path, spec: EngineSpec) -> dict[str, Any]:
    return {
        "task": wanted.lm_eval,
        "metric": wanted.metric,
        "filter": wanted.filter,
        "shots": wanted.shots,
        "documents": wanted.documents,
        "seed": SEED,
        "include": str(TASKS / wanted.folder) if wanted.folder else None,
        "checkpoint": str(checkpoint),
        "longest": spec.limits.max_seq_len or spec.model.context,
    }


def _answered(engine: AnsweringEngine, asked: Mapping[str, Any], tell: Tell) -> list[Any]:
    if "score" in asked:
        sequences, tails = asked["score"]["sequences"], asked["score"]["tails"]
        replies: list[Any] = []
        for start in range(0, len(sequences), AT_ONCE):
            tell("log-likelihoods", start, len(sequences))
            part = slice(start, start + AT_ONCE)
            for found, sequence, tail in zip(
                engine.score(sequences[part], tails=tails[part]), sequences[part], tails[part], strict=True
            ):
                replies.append([math.fsum(found.logprobs), list(found.likely) == sequence[-tail:]])
        return replies
    prompts, tokens, ends = (asked["generate"][name] for name in ("prompts", "tokens", "until"))
    until = Until(ends["token"], tuple(ends["texts"]))
    answers: list[Any] = []
    for start in range(0, len(prompts), AT_ONCE):
        tell("answers", start, len(prompts))
        answers += engine.generate(prompts[start : start + AT_ONCE], tokens, until=until)
    return answers


def _explained(case: Case, wanted: Evaluation, failure: EngineFailure) -> Exception:
    """What a user can do something about is no failure of an engine."""
    text = failure.problem
    name, _, told = text.partition(": ")
    match name:
        case "UnknownTask":
            return UsageError(f"{case}: {told}; {nearest(wanted.lm_eval, (wanted.lm_eval.partition('_')[0],))}")
        case "NoData":
            return UsageError(
                f"{case}: {told}; where there is a network, `lm-eval run --tasks {wanted.lm_eval} --limit 1` fetches them, "
                "or take an offline task"
            )
        case "BadDocument":
            return UsageError(f"{case}: {told}")
        case "ModuleNotFoundError":
            return UsageError(f"{case}: {told}, which {wanted.lm_eval} needs: pip install 'pytest-llamaperf[accuracy]'")
        case "TooLong":
            return EngineError(f"{case}: {told}")
    return failure


def _scores(case: Case, wanted: Evaluation, done: Mapping[str, Any], engine: Fingerprint) -> Scores:
    documents: dict[str, Document] = {}
    seen: Counter[str] = Counter()
    for row in done["rows"]:
        score = row["score"]
        if not (math.isfinite(score) and 0 <= score <= 1):
            raise EngineError(f"{case}: document {row['id'][:12]} has the score {score}; scores are from 0 to 1")
        # Data sets repeat documents, MMLU does: each is kept, in the order of the task, and all of them are one group.
        seen[row["id"]] += 1
        name = row["id"] if seen[row["id"]] == 1 else f"{row['id']}-{seen[row['id']]}"
        documents[name] = Document(name, score, row["cluster"], row["text"], row["target"], row["answer"])
    if not documents:
        raise EngineError(f"{case}: no document was scored")
    measures = {name: float(value) for name, value in done["measures"].items()}
    protocol = {
        **done["protocol"],
        "task": wanted.lm_eval,
        "metric": wanted.metric,
        "filter": wanted.filter,
        "documents": len(documents),
        "seed": SEED,
    }
    return Scores(case, documents, protocol, _of_scores(engine, protocol, documents), measures=measures)


def _of_engine(engine: Engine, checkpoint: Checkpoint) -> Fingerprint:
    """Of one that does not say what it is, as one of a conftest may not: the checkpoint that it was given."""
    return engine.fingerprint if isinstance(engine, Fingerprinted) else fingerprint({}, {}, checkpoint, {})


def _of_scores(engine: Fingerprint, protocol: Mapping[str, Any], documents: Mapping[str, Document]) -> Fingerprint:
    """What answered, and who asked what."""
    asked = hashlib.sha256("\n".join(documents).encode("utf-8")).hexdigest()
    return Fingerprint(
        {**engine.versions, "lm_eval": protocol["lm_eval"]}, {**engine.settings, "seed": SEED, "dataset": asked}
    )
