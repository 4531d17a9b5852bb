"""Whose operator times a prediction is made of: the installed package's, an older TensorRT-LLM's, or one's own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

from pytest_llamaperf.catalog import gpu_named, gpus
from pytest_llamaperf.catalog.tables import timed_versions
from pytest_llamaperf.errors import UsageError, nearest
from pytest_llamaperf.wording import shown_path

# Tables that a dense Llama needs, and the folder of aiconfigurator-core they belong in.
FAMILIES = {
    "gemm_perf": "gemm",
    "context_attention_perf": "attention",
    "generation_attention_perf": "attention",
    "custom_allreduce_perf": "comm",
    "computescale_perf": "quantize",
    "scale_matrix_perf": "quantize",
}

# Up to 1.3.0rc10 decode attention over more than 0.5 GB of KV cache was timed faster than the memory can deliver it (110 %
# of its bandwidth on H200, 140 % on H100), from 1.3.0rc20 on at 81 to 86 %: the timing changed, not TensorRT-LLM.
DECODE_ATTENTION_SINCE = "1.3.0rc20"


@dataclass(frozen=True)
class Tables:
    """Operator times of one version of TensorRT-LLM, in a folder that aiconfigurator-core calls `systems`.

    folder        None for the installed package's own
    timed         the version in that folder; `current` is what the installed package holds to be
    own           of a folder that somebody brought: what its content is identified by
    quantization  the version whose times of quantization stand in, where they are of another
    """

    folder: Path | None = None
    timed: str = "current"
    own: str = ""
    quantization: str = ""

    @property
    def systems_path(self) -> str | None:
        """As aiconfigurator-core is told."""
        return None if self.folder is None else str(self.folder)

    def version(self, timed: str) -> str:
        """How results call them, where `timed` is the version in the folder: what is changed is no longer that version."""
        return f"{timed}+own.{self.own}" if self.own else timed

    def check(self, gpu: str) -> None:
        """Refuse a GPU of the catalog that these tables are not of. Raises UsageError."""
        if self.folder is None:
            return
        of = [name for name in gpus() if _is_timed(self.folder, gpu_named(name).operator_tables, self.timed)]
        if gpu not in of:
            raise UsageError(
                f"operator tables of {self.version(self.timed)} have no {gpu}; they have {', '.join(of) or 'no GPU we know'}"
            )


INSTALLED = Tables()


def tables_named(name: str, base: Path = Path()) -> Tables:
    """Those of a version of TensorRT-LLM, or of a folder, which is looked for from `base`.

    Raises UsageError for what is neither, was not fetched, or is damaged.
    """
    if version := timed_versions().get(name):
        if version.wheel is None:
            return INSTALLED
        from pytest_llamaperf.operator_tables.fetching import fetched

        return Tables(fetched(version), name, quantization=version.quantization)
    folder = base / name
    if not _is_folder(folder):
        raise UsageError(
            f"unknown operator tables {name!r}; {nearest(name, timed_versions())}; or a folder of your own"
        )
    return _own(folder.resolve())


def decode_attention(timed: str) -> str:
    """What decode attention was timed by: times of one kind do not compare with those of the other."""
    newer = Version(timed) >= Version(DECODE_ATTENTION_SINCE)
    return f"timed as {'since' if newer else 'before'} {DECODE_ATTENTION_SINCE}"


def _own(folder: Path) -> Tables:
    where = shown_path(folder)
    timed = sorted({path.parent.name for path in folder.glob("data/*/gemm/trtllm/*/gemm_perf.parquet")})
    if not timed:
        raise UsageError(
            f"{where}: holds no operator tables; GPU.yaml and data/GPU/gemm/trtllm/VERSION/gemm_perf.parquet are in one that "
            "does, as in the folder `systems` of aiconfigurator-core"
        )
    if len(timed) > 1:
        raise UsageError(f"{where}: holds operator tables of {' and '.join(timed)}; leave those of one version")
    try:
        Version(timed[0])
    except InvalidVersion:
        raise UsageError(f"{where}: its operator tables are of {timed[0]!r}, which is no version") from None
    return Tables(folder, timed[0], own=_content(folder, _used(folder, timed[0])))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name too long for a path
        return False


def _used(folder: Path, timed: str) -> list[Path]:
    """The files that predictions are made of."""
    families = sorted(set(FAMILIES.values()))
    tables = [path for family in families for path in folder.glob(f"data/*/{family}/trtllm/{timed}/*.parquet")]
    return sorted([*folder.glob("*.yaml"), *tables])


def _content(folder: Path, files: Iterable[Path]) -> str:
    """Eight digits that tell tables from others. Raises UsageError for a file that is no whole table."""
    total = hashlib.sha256()
    for path in files:
        try:
            content = path.read_bytes()
        except OSError as problem:
            raise UsageError(f"{shown_path(path)}: cannot be read: {problem.strerror}") from None
        if path.suffix == ".parquet" and not (content[:4] == content[-4:] == b"PAR1"):
            raise UsageError(f"{shown_path(path)}: is no parquet file, or not a whole one")
        total.update(f"{path.relative_to(folder)} {hashlib.sha256(content).hexdigest()}\n".encode())
    return total.hexdigest()[:8]


def _is_timed(folder: Path, system: str, timed: str) -> bool:
    table = folder / "data" / system / "gemm" / "trtllm" / timed / "gemm_perf.parquet"
    return table.is_file() and (folder / f"{system}.yaml").is_file()
