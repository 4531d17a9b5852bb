"""Values of a case from before: in the run that lay in the folder of results, and in a history that is a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_llamaperf.errors import UsageError
from pytest_llamaperf.measurements import Source
from pytest_llamaperf.observations import Observation, observations_of
from pytest_llamaperf.records import Result
from pytest_llamaperf.runs import read_run
from pytest_llamaperf.wording import shown_path

# An observation, and where it was found.
Found = tuple[str, Observation]


class Earlier:
    """Read before a session writes: it takes the place of the run that lay there. `notes` say what could not be read."""

    def __init__(self, results: Path) -> None:
        self.notes: list[str] = []
        self._run: Sequence[Found] = ()
        path = results / "run.json"
        if path.is_file():
            try:
                run = read_run(path)
                where = f"the run of {run.header.started} that lay in {shown_path(results)}"
                self._run = tuple((where, each) for each in observations_of(run))
            except UsageError as problem:
                self.notes.append(f"The run before this one could not be read: {problem}")

    def of(self, result: Result) -> list[Found]:
        """Measured values of a result's metric and case, the latest last; of a history they are as its runs came in."""
        return [*self._of_history(result), *(found for found in self._run if _is_of(result, found[1]))]

    def _of_history(self, result: Result) -> list[Found]:
        from pytest_llamaperf.history.database import connect, default_location
        from pytest_llamaperf.history.finding import found

        location = default_location()
        if result.metric is None or "://" in location:  # a test that fails waits for no other machine
            return []
        try:
            database = connect(location, create=False)
            if database is None:
                return []
            try:
                known = found(database, {"case": [str(result.case["id"])], "metric": [result.metric]})
            finally:
                database.close()
        except UsageError as problem:
            self.notes.append(f"The history could not be read: {problem}")
            return []
        where = f"in {shown_path(Path(location))}"
        return [(f"{each.run} of {each.when or 'some day'} {where}", each) for each in known if _is_of(result, each)]


def _is_of(result: Result, observation: Observation) -> bool:
    return (observation.case, observation.metric, observation.source) == (
        result.case["id"],
        result.metric,
        Source.MEASURED,
    )
