"""Published figures as CSV: one row for each value of each configuration, with what it was measured by and where it stands.

Its columns are those of `published.csv` beside `history`, where the figures that come with this project are.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pytest_llamaperf.errors import UsageError, nearest
from pytest_llamaperf.importing.reading import LeftOut, part
from pytest_llamaperf.measurements import Source
from pytest_llamaperf.metrics import OUTPUT_THROUGHPUT
from pytest_llamaperf.observations import Observation
from pytest_llamaperf.wording import shown_path

COLUMNS = (
    "source", "source_ref", "trtllm_version", "model", "gpu", "num_gpus", "tp", "pp", "precision", "recipe", "isl", "osl",
    "scenario", "metric", "unit", "value",
)  # fmt: skip
# Names under which output tokens per second of all GPUs together were published.
_THROUGHPUT = ("output_throughput", "total_output_throughput", "token_throughput", "output_throughput_per_gpu")
# What says which FP8 it is. The pages of gptManagerBenchmark have engine configurations with an FP8 KV cache.
_FP8 = {
    "Official Llama FP8": "llama-fp8",
    "ModelOpt": "modelopt-fp8",
    "FP8 KV cache": "modelopt-fp8",
    "gptManagerBenchmark IFB": "modelopt-fp8",
}
_SCENARIOS = {"max_throughput": "max-throughput", "min_latency": "min-latency"}


def is_header(fields: Sequence[str]) -> bool:
    """Whether a line names columns of this format: a few, so that one with a column too few is told what is missing."""
    return len(set(fields) & set(COLUMNS)) > len(COLUMNS) // 2


def observations(path: Path, left_out: LeftOut) -> Iterator[Observation]:
    """Row by row. Raises UsageError with the line of what is wrong."""
    where = shown_path(path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, strict=True)
        try:
            columns = next(rows)
            _check_columns(where, columns)
            for fields in rows:
                if len(fields) != len(columns):
                    raise UsageError(
                        f"{where}:{rows.line_num}: has {len(fields)} of {len(columns)} columns; was it cut off?"
                    )
                row = dict(zip(columns, fields, strict=True))
                if reason := _no_case(row):
                    left_out[reason] += 1
                else:
                    yield _observation(f"{where}:{rows.line_num}", row)
        except (csv.Error, UnicodeDecodeError) as problem:
            raise UsageError(f"{where}:{rows.line_num}: cannot be read: {problem}") from None


def _check_columns(where: str, columns: Sequence[str]) -> None:
    if missing := [name for name in COLUMNS if name not in columns]:
        raise UsageError(f"{where}:1: without the columns {', '.join(missing)}; needed: {', '.join(COLUMNS)}")
    for name in columns:
        if name not in COLUMNS:
            raise UsageError(f"{where}:1: unknown column {name[:40]!r}; {nearest(name, COLUMNS)}")
        if columns.count(name) > 1:
            raise UsageError(f"{where}:1: the column {name!r} stands twice")


def _no_case(row: Mapping[str, str]) -> str | None:
    """Why a row cannot be kept: most publications leave open what a case has to say."""
    if row["metric"] not in _THROUGHPUT:
        return f"metric {row['metric'][:40]!r}, which is none of this project"
    if _scenario(row) is None:
        return f"scenario {row['scenario'][:40]!r}, which does not say how requests arrived"
    unsaid = [name for name in ("model", "gpu", "precision", "isl", "osl") if not row[name]]
    if not row["tp"] and not row["num_gpus"]:
        unsaid.append("tp")
    return f"no {unsaid[0]} published" if unsaid else None


def _scenario(row: Mapping[str, str]) -> str | None:
    """Requests per second stand in the recipe, `QPS=8`; without a limit all come at once."""
    if row["scenario"] != "server":
        return _SCENARIOS.get(row["scenario"])
    rate = re.search(r"\bQPS=(\d+|INF)\b", row["recipe"])
    if rate is None:
        return None
    return "max-throughput" if rate[1] == "INF" else f"rate-{rate[1]}"


def _observation(where: str, row: Mapping[str, str]) -> Observation:
    value = _number(where, row, "value")
    gpus = _count(where, row, "num_gpus") if row["num_gpus"] else _count(where, row, "tp")
    tp = _count(where, row, "tp") if row["tp"] else gpus  # those that give GPUs alone used tensor parallelism
    layout = f"tp{tp}" + (f"-pp{row['pp']}" if row["pp"] and _count(where, row, "pp") > 1 else "")
    lengths = f"{_count(where, row, 'isl')}-{_count(where, row, 'osl')}"
    harness, settings = f"{row['source']}: {row['recipe']}", {}
    if row["unit"] == "tokens/s/GPU":
        # In the unit of the metric, and not to be compared with what was published of all GPUs together.
        harness, settings = f"{harness}; published per GPU", {"published": f"{row['value']} {row['unit']}"}
        value *= gpus
    elif row["unit"] != "tokens/s":
        raise UsageError(
            f"{where}: unknown unit {row['unit'][:40]!r} of {row['metric']}; known: tokens/s, tokens/s/GPU"
        )
    version, _, note = row["trtllm_version"].partition(" (")
    if note:
        settings["note"] = note.removesuffix(")")
    return Observation(
        case="/".join(
            (part(row["gpu"]), "tensorrt-llm", part(row["model"]), _recipe(row), layout, f"{_scenario(row)}-{lengths}")
        ),
        metric=OUTPUT_THROUGHPUT.name,
        unit=OUTPUT_THROUGHPUT.unit,
        better=OUTPUT_THROUGHPUT.better.value,
        source=Source.PUBLISHED.value,
        value=value,
        run=" ".join(filter(None, (row["source"], version))),
        harness=harness,
        version=version or None,
        versions={"tensorrt_llm": version} if version else {},
        settings=settings,
        reference=row["source_ref"],
    )


def _recipe(row: Mapping[str, str]) -> str:
    """A recipe of the catalog where the publication says enough, else the precision in its own word."""
    if row["precision"] == "FP8":
        return next((recipe for words, recipe in _FP8.items() if words in row["recipe"]), "fp8")
    return part(row["precision"])


def _number(where: str, row: Mapping[str, str], column: str) -> float:
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UsageError(f"{where}: {column} is {row[column][:40]!r}, and should be a number above 0")
    return value


def _count(where: str, row: Mapping[str, str], column: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,8}", row[column]):
        raise UsageError(f"{where}: {column} is {row[column][:40]!r}, and should be a whole number above 0")
    return int(row[column])
