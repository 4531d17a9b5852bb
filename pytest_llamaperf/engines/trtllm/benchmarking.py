"""`--engine trtllm-bench`: NVIDIA's own tool, a process for every run, believed when its report is whole and as asked."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from pytest_llamaperf.cases import CPU, Workload
from pytest_llamaperf.catalog import gpu_named
from pytest_llamaperf.engines import EngineSpec, Run, Surroundings, Untraced
from pytest_llamaperf.engines.hosted import fingerprint, started
from pytest_llamaperf.engines.trtllm import command, inputs, reproducing
from pytest_llamaperf.engines.trtllm.command import LATENCY, THROUGHPUT, Paths, Takes
from pytest_llamaperf.engines.trtllm.contract import version_of
from pytest_llamaperf.engines.trtllm.nodes import found_nodes
from pytest_llamaperf.engines.trtllm.opening import DRIVER, Quantization, checkpoint_of, refuse_what_cannot_be
from pytest_llamaperf.engines.trtllm.report import Asked, BadReport, Reported, read_report, read_requests
from pytest_llamaperf.hosting.failures import EngineFailure, FailureKind, classify_output
from pytest_llamaperf.hosting.phases import Phase
from pytest_llamaperf.lengths import request_lengths
from pytest_llamaperf.measurements import Source
from pytest_llamaperf.traces import Trace


class BenchEngine:
    """Opened when trtllm-bench has said what it takes. Each run loads the model anew, and warms it up itself."""

    source = Source.MEASURED
    starts_with_every_run = True

    def __init__(self, spec: EngineSpec, surroundings: Surroundings) -> None:
        self._spec, self._nodes = spec, found_nodes()
        refuse_what_cannot_be(spec, self._nodes)
        deadlines = surroundings.deadlines_of(spec)
        # One process loads, runs and ends: its deadline is that of all three.
        whole = dataclasses.replace(
            deadlines,
            run=deadlines.load + deadlines.run + 2 * deadlines.close,
            origins={**deadlines.origins, Phase.RUN: f"load, run and twice close; run: {deadlines.origin(Phase.RUN)}"},
        )
        self._patience = deadlines.close
        with contextlib.ExitStack() as ending:
            self._host = started(DRIVER, spec, surroundings, ending, deadlines=whole)
            probe = self._host.call("probe_bench", {}, Phase.LOAD)
            self._path, self._versions = probe["path"], probe["versions"]
            texts = probe["help"]
            self._takes = {kind: Takes.of_help(texts["group"], texts[kind]) for kind in (THROUGHPUT, LATENCY)}
            self._checkpoint = checkpoint_of(spec, surroundings, self._versions)
            self._ending = ending.pop_all()

    def run(self, workload: Workload) -> Run:
        spec, kind = self._spec, command.kind_of(workload)
        takes = self._takes[kind]
        requests = inputs.dataset(workload, spec.model.vocabulary)
        options = inputs.options_file(command.options(spec, kind))
        with tempfile.TemporaryDirectory(prefix="llamaperf-bench-") as scratch:
            paths = Paths(
                checkpoint=str(self._checkpoint.path),
                dataset=str(requests.path),
                options=str(options),
                workspace=scratch,
                report=f"{scratch}/report.json",
                requests=f"{scratch}/requests.json",
            )
            line = command.words(spec, workload, paths, takes)
            ended = self._host.call(
                "bench",
                {
                    "command": [self._path, *line[1:]],
                    "cwd": scratch,
                    "report_path": paths.report,
                    "patience": self._patience,
                },
                Phase.RUN,
            )
            self._refuse_what_failed(ended, Path(paths.report))
            reported, traces = self._read(workload, paths, kind)
        notes = []
        if ended["status"] is None:
            notes.append(
                f"trtllm-bench did not end within {self._patience:g} s after its report and was ended; the report is whole"
            )
        if not command.told_in_a_file(kind, takes):
            notes.append(f"this trtllm-bench takes no options in a file for {kind}: CUDA graphs are as it chooses")
        settings = {
            **reported.settings,
            "dataset": requests.digest,
            "streaming": True,
            "warmup": command.WARMUP,
            "command": kind,
        }
        versions = {**self._versions, "tensorrt_llm": str(version_of(reported.version))}
        return Run(
            traces,
            readings=reported.figures,
            notes=tuple(notes),
            fingerprint=fingerprint(versions, settings, self._checkpoint, self._host.environment),
            reproduce=reproducing.line(
                spec, workload, str(self._checkpoint.path), self._nodes, self._takes.__getitem__
            ),
            untraced=None if traces else Untraced(tuple(request_lengths(workload)), reported.elapsed),
        )

    def close(self) -> None:
        with self._ending:
            self._host.close()

    def _refuse_what_failed(self, ended: dict[str, Any], report: Path) -> None:
        """Raises EngineFailure unless there is a report to read."""
        status, log = ended["status"], self._host.log
        if status:
            raise classify_output(Phase.RUN, status, ended["lines"], log=log)
        if not report.is_file():  # Ctrl-C, which trtllm-bench takes for a good end
            raise EngineFailure(
                FailureKind.INTERRUPTED, Phase.RUN, "trtllm-bench ended with status 0 and wrote no report", log=log
            )

    def _read(self, workload: Workload, paths: Paths, kind: str) -> tuple[Reported, tuple[Trace, ...]]:
        """Raises EngineFailure for a report that is not of what was asked."""
        asked = self._asked(workload, kind)
        try:
            reported = read_report(Path(paths.report), asked)
            traces = read_requests(Path(paths.requests), asked, reported) if kind == THROUGHPUT else ()
        except BadReport as problem:
            raise EngineFailure(FailureKind.BAD_REPORT, Phase.RUN, str(problem), log=self._host.log) from None
        return reported, traces

    def _asked(self, workload: Workload, kind: str) -> Asked:
        spec, quantization = self._spec, Quantization.of(self._spec)
        return Asked(
            lengths=request_lengths(workload),
            tp=spec.layout.tp,
            pp=spec.layout.pp,
            max_batch_size=spec.limits.max_batch_size if kind == THROUGHPUT else 1,
            max_num_tokens=spec.limits.max_num_tokens if kind == THROUGHPUT else None,
            quantization=quantization.weights,
            kv_cache=quantization.kv_cache,
            gpu=None if spec.hardware == CPU else gpu_named(spec.hardware).name,
            version=self._versions.get("tensorrt_llm"),
        )
