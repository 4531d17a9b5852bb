"""The simulator in the place of an engine: runs workloads in virtual time."""

from __future__ import annotations

import dataclasses

from pytest_llamaperf.cases import Case, Workload
from pytest_llamaperf.engines import Run
from pytest_llamaperf.measurements import Source
from pytest_llamaperf.predicting import predict


class PredictedEngine:
    """Predicts workloads of the model, recipe and layout of one case."""

    source = Source.PREDICTED

    def __init__(self, case: Case) -> None:
        self._case = case

    def run(self, workload: Workload) -> Run:
        prediction = predict(dataclasses.replace(self._case, work=workload))
        return Run(prediction.traces, notes=prediction.notes, fingerprint=prediction.fingerprint)

    def close(self) -> None:
        """Nothing is held."""
