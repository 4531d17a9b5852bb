"""Operator tables to test with: copies of the installed ones, slower ones, and a package index that has older ones."""

from __future__ import annotations

import base64
import hashlib
import io
import shutil
import zipfile
from pathlib import Path

import aiconfigurator_core
import pyarrow as pa
from pyarrow import compute, csv, parquet

from pytest_llamaperf.operator_tables import FAMILIES

SYSTEMS = Path(aiconfigurator_core.__path__[0]) / "systems"
INSTALLED = "1.3.0rc20"
SYSTEM = "h200_sxm"

# The catalog's shape, small: one version that was written as CSV, one as parquet.
CATALOG = """
versions:
  "1.0.0rc3":
    gpus: [h200]
    wheel: aiconfigurator 0.4.0
    quantization: "1.3.0rc10"
  "1.3.0rc10":
    gpus: [h200]
    wheel: aiconfigurator 0.10.0
  "1.3.0rc20":
    gpus: [h100, h200, b200]
wheels:
  aiconfigurator 0.4.0: {{format: csv, bytes: {csv.bytes}, sha256: "{csv.sha256}"}}
  aiconfigurator 0.10.0: {{format: parquet, bytes: {parquet.bytes}, sha256: "{parquet.sha256}"}}
"""


def copied_tables(folder: Path, *systems: str) -> Path:
    """Of the installed package: tables of a dense Llama on those GPUs, in the words of aiconfigurator-core (h200_sxm)."""
    for system in systems or (SYSTEM,):
        data = folder / "data" / system
        for family in set(FAMILIES.values()):
            part = Path(family) / "trtllm" / INSTALLED
            shutil.copytree(SYSTEMS / "data" / system / part, data / part)
        shutil.copytree(SYSTEMS / "data" / system / "comm" / "nccl", data / "comm" / "nccl")
        shutil.copy(SYSTEMS / f"{system}.yaml", folder)
    shutil.copy(SYSTEMS / "attention_lane_defaults.yaml", folder)
    return folder


def slower_tables(folder: Path, factor: float = 1.1, *, table: str = "gemm_perf") -> Path:
    """A copy of the installed tables in which one kind of operator takes that much longer, and nothing else changed.

    For `llamaperf predict --tables` and `pytest --engine predicted --tables`: a regression of one operator, planted.
    """
    copied_tables(folder)
    for path in folder.rglob(f"{table}.parquet"):
        times = parquet.read_table(path)
        place = times.column_names.index("latency")
        parquet.write_table(times.set_column(place, "latency", compute.multiply(times["latency"], factor)), path)
    return folder


class Wheel:
    """A file on a package index."""

    def __init__(self, path: Path, members: dict[str, bytes]) -> None:
        project, version = path.name.split("-")[:2]
        info = f"{project}-{version}.dist-info"
        members = members | {
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n".encode(),
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = [f"{name},sha256={_urlsafe(content)},{len(content)}" for name, content in members.items()]
        members[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,"]).encode()
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        self.bytes, self.sha256 = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()


def package_index(folder: Path) -> Path:
    """A folder for pip's --find-links, and beside it the catalog of it: tables.yaml.

    Times are the installed ones, which were not any faster then: as aiconfigurator 0.4 wrote them, and as 0.10 does.
    """
    folder.mkdir(parents=True)
    old, new = {}, {}
    for table, family in FAMILIES.items():
        path = SYSTEMS / "data" / SYSTEM / family / "trtllm" / INSTALLED / f"{table}.parquet"
        place = f"aiconfigurator/systems/data/{SYSTEM}/trtllm"
        new[f"{place}/1.3.0rc10/{table}.parquet"] = path.read_bytes()
        if family != "quantize":
            old[f"{place}/1.0.0rc3/{table}.txt"] = as_written_by_0_4(parquet.read_table(path))
    wheels = {
        "csv": Wheel(folder / "aiconfigurator-0.4.0-py3-none-any.whl", old),
        "parquet": Wheel(folder / "aiconfigurator-0.10.0-cp310-abi3-manylinux_2_28_x86_64.whl", new),
    }
    (folder / "tables.yaml").write_text(CATALOG.format(**wheels))
    return folder


def as_written_by_0_4(table: pa.Table) -> bytes:
    """BF16 was called FP16; there were no windows, one implementation of all-reduce, and other names of kernels."""
    if "window_size" in table.column_names:
        table = table.filter(compute.equal(table["window_size"], 0)).drop_columns(["window_size"])
    if "implementation" in table.column_names:
        table = table.drop_columns(["implementation"])
    for place, column in enumerate(table.column_names):
        if column.endswith("dtype"):
            older = compute.replace_substring(table[column], pattern="bfloat16", replacement="float16")
            table = table.set_column(place, column, older)
        elif column == "kernel_source":
            table = table.set_column(place, column, pa.array(["another_flow"] * table.num_rows))
    written = io.BytesIO()
    csv.write_csv(table, written)
    return written.getvalue()


def _urlsafe(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
