"""JSON of pytest-benchmark (`--benchmark-json`): of its benchmarks those that name a case, with the metrics beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.importing.reading import LeftOut, Told, at, digest_of, number
from pytest_llamaperf.measurements import Source
from pytest_llamaperf.metrics import metric_named
from pytest_llamaperf.observations import Observation

_MACHINE = ("node", "processor", "machine", "system", "release", "python_version")


def observations(where: str, document: Mapping[str, Any], told: Told, left_out: LeftOut) -> Iterator[Observation]:
    benchmarks = document["benchmarks"]
    if not isinstance(benchmarks, list) or not all(isinstance(each, dict) for each in benchmarks):
        raise UsageError(f"{where}: 'benchmarks' is no list of objects")
    run = f"pytest-benchmark-{digest_of(document)}"
    machine = {name: str(found) for name in _MACHINE if (found := at(document, "machine_info", name))}
    when = at(document, "datetime")
    for each in benchmarks:
        case = at(each, "extra_info", "case")
        if not isinstance(case, str) or case.count("/") != 5:
            left_out["benchmark that names no case of this project"] += 1
            continue
        for name in sorted(each["extra_info"]):
            if name == "case":
                continue
            try:
                metric = metric_named(name)
            except UsageError:
                left_out[f"extra_info {name[:40]!r}, which is no metric"] += 1
                continue
            value = number(where, each, "extra_info", name)
            if value is None:
                raise UsageError(f"{where}: {metric} of {case} is missing")
            yield Observation(
                case=case,
                metric=metric.name,
                unit=metric.unit,
                better=metric.better.value,
                source=Source.MEASURED.value,
                value=value,
                run=run,
                harness=f"pytest-llamaperf/{case.split('/')[1]}",  # it is our engine that was timed
                when=str(when) if when else None,
                machine=machine,
            )
