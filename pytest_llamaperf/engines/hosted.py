"""What engines in a child process have in common: how they start, how they are asked and closed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pytest_llamaperf.checkpoints import Checkpoint, CheckpointStore
from pytest_llamaperf.engines import TEMPORARY, Distributions, EngineSpec, Scored, Surroundings, Until
from pytest_llamaperf.environment import kept
from pytest_llamaperf.hosting.host import Host, Progress
from pytest_llamaperf.hosting.phases import Deadlines, Phase
from pytest_llamaperf.leftovers import OwnedFolder
from pytest_llamaperf.measurements import Fingerprint


def checkpoint_for(spec: EngineSpec, surroundings: Surroundings) -> Checkpoint:
    """Made if it has to be. Raises EngineError where it cannot be had."""

    def tell(progress: Progress) -> None:
        surroundings.on_progress(f"{spec.model} {spec.recipe}: {progress.text}", progress.done, progress.total)

    store = CheckpointStore(deadlines=surroundings.deadlines, on_progress=tell, logs=surroundings.logs)
    return store.get(spec.model, spec.recipe)


def started(
    driver: str,
    spec: EngineSpec,
    surroundings: Surroundings,
    ending: contextlib.ExitStack,
    *,
    deadlines: Deadlines | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Host:
    """A host that `ending` kills, with a folder for temporary files that goes with it. Raises EngineFailure."""

    def tell(progress: Progress) -> None:
        surroundings.on_progress(f"{spec}: {progress.text}", progress.done, progress.total)

    # What processes leave in their folder for temporary files when they are killed goes with it.
    scratch = OwnedFolder.new(f"{TEMPORARY}-")
    ending.callback(scratch.remove)
    host = Host(
        driver,
        log=surroundings.logs / log_name(str(spec)),
        deadlines=deadlines or surroundings.deadlines_of(spec),
        python=None if spec.runtime is None else spec.runtime.python,
        environment={**(spec.runtime.variables() if spec.runtime else {}), "TMPDIR": str(scratch.path), **environment},
        on_progress=tell,
    )
    ending.callback(lambda: surroundings.durations.add(spec.key, host.longest))
    ending.callback(host.kill)
    return host


def log_name(engine: str) -> str:
    """Of the file that keeps what an engine prints, by what the engine is called; always a plain name."""
    return re.sub(r"[^-.@=\w]+", "_", engine) + ".log"


def fingerprint(
    versions: Mapping[str, str],
    settings: Mapping[str, str | int | float | bool],
    checkpoint: Checkpoint | None,
    environment: Mapping[str, str],
) -> Fingerprint:
    """The checkpoint by its content, not by where it lies; of the engine's environment what may be kept.

    Who wrote the checkpoint is a setting: recipes that are compared were written by different libraries.
    """
    effective = {
        **settings,
        **kept(environment),
        "checkpoint": "random weights" if checkpoint is None else checkpoint.digest,
    }
    if checkpoint is not None and checkpoint.versions:
        written_by = [f"{name} {version}" for name, version in sorted(checkpoint.versions.items())]
        effective["checkpoint written by"] = ", ".join(written_by)
    return Fingerprint(versions=dict(versions), settings=effective)


class Hosted:
    """An engine whose driver in the child takes `encode`, `decode`, `generate`, `score` and `distributions`."""

    _host: Host
    _ending: contextlib.ExitStack
    _fingerprint: Fingerprint

    @property
    def fingerprint(self) -> Fingerprint:
        """Of the engine as it is open, whatever it is asked."""
        return self._fingerprint

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(ids) for ids in self._host.call("encode", {"texts": list(texts)}, Phase.RUN)]

    def decode(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        return list(self._host.call("decode", {"sequences": _lists(sequences)}, Phase.RUN))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        *,
        until: Until | None = None,
        concurrency: int | None = None,
    ) -> list[list[int]]:
        arguments: dict[str, Any] = {"prompts": _lists(prompts), "tokens": tokens, "concurrency": concurrency}
        if until is not None:
            arguments["until"] = {"token": until.token, "texts": list(until.texts)}
        return [list(ids) for ids in self._host.call("generate", arguments, Phase.RUN)]

    def close(self) -> None:
        with self._ending:
            self._host.close()

    def _scored(self, sequences: Sequence[Sequence[int]], **how: Any) -> list[Scored]:
        found = self._host.call("score", {"sequences": _lists(sequences), **how}, Phase.RUN)
        return [
            Scored(tuple(logprobs), tuple(likely))
            for logprobs, likely in zip(found["logprobs"], found["likely"], strict=True)
        ]

    def _distributions(self, sequences: Sequence[Sequence[int]], **how: Any) -> list[Distributions]:
        found = self._host.call("distributions", {"sequences": _lists(sequences), **how}, Phase.RUN)
        return [
            Distributions(
                tuple(one["logprobs"]),
                tuple(
                    dict(zip(tokens, logprobs, strict=True))
                    for tokens, logprobs in zip(one["tokens"], one["token_logprobs"], strict=True)
                ),
            )
            for one in found
        ]


def _lists(sequences: Sequence[Sequence[int]]) -> list[list[int]]:
    return [list(sequence) for sequence in sequences]
