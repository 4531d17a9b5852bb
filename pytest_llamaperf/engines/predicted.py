"""The simulator in the place of an engine: runs workloads in virtual time."""

from __future__ import annotations

from pytest_llamaperf.cases import Case, Workload
from pytest_llamaperf.engines import EngineSpec, Run
from pytest_llamaperf.measurements import Source
from pytest_llamaperf.operator_tables import INSTALLED, Tables
from pytest_llamaperf.predicting import operator_seconds, predict


class PredictedEngine:
    """Predicts workloads of one specification."""

    source = Source.PREDICTED

    def __init__(self, spec: EngineSpec, tables: Tables = INSTALLED) -> None:
        self._spec, self._tables = spec, tables

    def run(self, workload: Workload) -> Run:
        spec = self._spec
        case = Case(spec.hardware, spec.kind, spec.model, spec.recipe, spec.layout, workload)
        prediction = predict(case, limits=spec.limits, tables=self._tables)
        return Run(
            prediction.traces,
            notes=prediction.notes,
            fingerprint=prediction.fingerprint,
            operators=operator_seconds(prediction),
        )

    def close(self) -> None:
        """Nothing is held."""
