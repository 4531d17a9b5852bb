"""A folder for each test that failed: how to run it again, what has changed, what its engine said last.

Everything in it is for its owner alone, and without secrets. It is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from pytest_llamaperf.cases import Workload
from pytest_llamaperf.catalog import case_of_key
from pytest_llamaperf.engines import PREDICTED, EngineSpec
from pytest_llamaperf.engines.hosted import log_name
from pytest_llamaperf.engines.trtllm import command, inputs, reproducing
from pytest_llamaperf.engines.trtllm.nodes import found_nodes
from pytest_llamaperf.engines.trtllm.plan import CHECKPOINT, version_here
from pytest_llamaperf.errors import LlamaperfError
from pytest_llamaperf.evidence import differences, scripts
from pytest_llamaperf.evidence.earlier import Earlier
from pytest_llamaperf.evidence.environment import without_secrets
from pytest_llamaperf.evidence.scripts import Rerun
from pytest_llamaperf.files import make_private, write_private
from pytest_llamaperf.records import Result, TestRecord
from pytest_llamaperf.runs import RunHeader, to_json
from pytest_llamaperf.verdicts import Outcome
from pytest_llamaperf.wording import shown_path

FOLDER = "evidence"
GPUS = "gpus"  # traces of GPUs, beside `engines` in the folder of results

LAST_LINES, LAST_BYTES = 400, 2**16  # of a log
MOST_BYTES = 2**24  # of a trace of GPUs


@dataclass(frozen=True)
class Bundles:
    """Those of one session, under `results`. `commit` is that of the baselines, `earlier` what is known of before."""

    results: Path
    header: RunHeader
    rerun: Rerun
    commit: str
    earlier: Earlier

    def clear(self) -> None:
        """Take away what an earlier session left, which nobody is to take for this one's. Raises OSError."""
        folder = self.results / FOLDER
        if folder.is_symlink() or folder.exists():
            shutil.rmtree(folder)  # which refuses a link

    def write(self, test: TestRecord) -> str:
        """The folder, from that of the results. Written again for a test that fails again; raises OSError, ValueError."""
        make_private(self.results / FOLDER)
        place = self.results / FOLDER / name_of(test)
        making = Path(tempfile.mkdtemp(prefix=".", dir=place.parent))
        try:
            self._fill(making, test)
            if place.exists():
                shutil.rmtree(place)
            making.rename(place)
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise
        return f"{FOLDER}/{place.name}"

    def _fill(self, folder: Path, test: TestRecord) -> None:
        found = [differences.compared(each, self.header, self.commit, self.earlier.of(each)) for each in _wrong(test)]
        notes = list(dict.fromkeys(self.earlier.notes))
        self._write_scripts(folder, test, notes)
        versions = "".join(f"{line}\n" for line in _versions(test.results, self.header))
        self._write(folder / "versions.txt", versions)
        notes += self._copy_logs(folder, test)
        notes += self._copy_traces(folder, test)
        document = differences.document(test, found)
        self._write(folder / "difference.json", to_json(document, indent=1) + "\n")
        self._write(folder / "difference.md", differences.told(test, found, notes))

    def _write_scripts(self, folder: Path, test: TestRecord, notes: list[str]) -> None:
        self._write(folder / scripts.REPRODUCE, scripts.reproduce(self.rerun, test.nodeid), program=True)
        if self.header.engine == PREDICTED:
            return
        hardware, engine, *_ = str(test.case).split("/")
        lines = next((each.reproduce for each in test.results if each.reproduce), None)
        if lines is None and engine != "torch":
            try:
                lines = _line_for(str(test.case))
            except LlamaperfError as problem:
                notes.append(f"No command of trtllm-bench repeats this: {problem}")
        if lines is not None:
            self._write(folder / scripts.BY_HAND, scripts.by_hand(lines, self.rerun), program=True)
        profile = scripts.profile(lines, engine=engine, hardware=hardware, rerun=self.rerun)
        self._write(folder / scripts.PROFILE, profile, program=True)

    def _copy_logs(self, folder: Path, test: TestRecord) -> Iterator[str]:
        """The ends of logs of the test's engine, and of logs that its messages name."""
        said = " ".join([test.reason, *(each.message for each in test.results)])
        stem = _stem(test)
        for path in _files(self.results / "engines"):
            if path.stem == stem or path.stem.startswith(f"{stem}_under_") or path.name in said:
                if path.stem == "lm-eval":  # it may hold documents that nobody may pass on
                    yield f"What lm-eval printed stands in {shown_path(path)} and was not copied: it may quote documents."
                    continue
                make_private(folder / "logs")
                self._write(folder / "logs" / path.name, _end_of(path))

    def _copy_traces(self, folder: Path, test: TestRecord) -> Iterator[str]:
        """Of GPUs, by the names that logs of the test's engine have."""
        stem = _stem(test)
        for path in _files(self.results / GPUS):
            if not path.name.startswith(stem):
                continue
            if path.stat().st_size > MOST_BYTES:
                yield f"The trace of the GPUs, {shown_path(path)}, is too large to be copied."
                continue
            make_private(folder / GPUS)
            self._write(folder / GPUS / path.name, path.read_text(encoding="utf-8", errors="replace"))

    def _write(self, path: Path, text: str, *, program: bool = False) -> None:
        write_private(path, without_secrets(text, os.environ), program=program)


def name_of(test: TestRecord) -> str:
    """What people call the case, and what tells tests of it apart; a plain name, whatever stands in either."""
    shown = "-".join(str(test.case).split("/")[2:])
    plain = re.sub(r"[^A-Za-z0-9.=@_-]+", "-", shown).strip("-.")[:80]
    digest = hashlib.sha256(test.nodeid.encode("utf-8", errors="surrogatepass")).hexdigest()
    return f"{plain}-{digest[:10]}"


def _wrong(test: TestRecord) -> list[Result]:
    return [each for each in test.results if each.outcome != Outcome.PASS]


def _stem(test: TestRecord) -> str:
    """What the name of the log of a test's engine begins with."""
    return Path(log_name("/".join(str(test.case).split("/")[:5]))).stem


def _files(folder: Path) -> list[Path]:
    """No links: they may lead anywhere."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if path.is_file() and not path.is_symlink())


def _end_of(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return "".join(f"{line}\n" for line in lines[-LAST_LINES:])


def _versions(results: Iterable[Result], header: RunHeader) -> Iterator[str]:
    """As loaded by the engines first, then of everything that is installed for this Python."""
    loaded = {name: value for each in results for name, value in each.fingerprint.get("versions", {}).items()}
    yield "as loaded by the engine:"
    yield from (f"  {name} {value}" for name, value in sorted(loaded.items())) if loaded else ("  nobody says",)
    yield "the machine:"
    yield f"  Python {platform.python_version()}, {platform.platform()}"
    yield from (f"  {name}: {value}" for name, value in header.fingerprint.items() if value)
    yield f"installed for {sys.executable}:"
    installed = {(found.metadata["Name"] or "?", found.version) for found in distributions()}
    yield from (f"  {name} {number}" for name, number in sorted(installed, key=lambda each: each[0].lower()))


def _line_for(identity: str) -> str | None:
    """The command of trtllm-bench for a case that failed before its engine had one; writes the files that it reads.

    None for what trtllm-bench cannot do. Raises LlamaperfError for a model of no catalog, or files that cannot be written.
    """
    hardware, _, key = identity.partition("/")
    case = case_of_key(hardware, key)
    if not isinstance(case.work, Workload) or case.work.arrival_rate is not None:
        return None
    spec, (version, _) = EngineSpec.of(case), version_here()
    inputs.dataset(case.work, spec.model.vocabulary)
    inputs.options_file(command.options(spec, command.kind_of(case.work)))
    return reproducing.line(spec, case.work, CHECKPOINT, found_nodes(), lambda kind: command.known(version, kind))
