"""`llamaperf confirm`: what an earlier run left in doubt, settled on fresh restarts of two builds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

# Of an earlier run; an error is none: it says nothing about speed.
IN_DOUBT = ("regression", "suspect", "inconclusive")
NO, NOT_ENOUGH = 1, 3


@click.command(
    short_help="Settle the suspects of a run on fresh restarts of two builds.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": True},
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--against", required=True, metavar="RUNTIME", help="the other build, as for pytest --against")
@click.option("--results", type=click.Path(path_type=Path), help="folder of the new run (default: RUN/confirmed)")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def confirm(run: Path, against: str, results: Path | None, options: tuple[str, ...]) -> None:
    """Measure again the tests of RUN that found a regression, could not tell, or were not watched, against another build.

    RUN is a folder that --results wrote. Both builds are started fresh and in turn until each is told apart or not, by
    the rule of `pytest --against`; nothing of RUN's own values is used. To be run where RUN was, with its suites.
    OPTIONS go to pytest: --restarts 4, --allow-difference SETTING, and --resume after an interruption.

    \b
      llamaperf confirm out --against ../trtllm-1.1/venv

    Exit status: 0 nothing got slower, 1 something did, 2 wrong usage, 3 it cannot be told, as where RUN is not whole.
    """
    from pytest_llamaperf.errors import UsageError
    from pytest_llamaperf.runs import read_run

    earlier = read_run(run)
    doubtful = list(dict.fromkeys(r.nodeid for r in earlier.results if r.outcome in IN_DOUBT or r.blind))
    if not doubtful and earlier.incomplete:
        click.echo(f"nothing to confirm in what {run} has, and it is not whole: {earlier.incomplete}")
        sys.exit(NOT_ENOUGH)
    if not doubtful:
        click.echo(f"nothing to confirm: {run} has no regression, and nothing it could not tell")
        return
    if strange := [name for name in doubtful if name.startswith(("-", "@"))]:
        raise UsageError(
            f"{run}: {strange[0]!r} is no name of a test, and would be an option of pytest; nothing was run"
        )
    folder = results or (run if run.is_dir() else run.parent) / "confirmed"
    asked = [f"--gpu={earlier.header.gpu}", f"--engine={earlier.header.engine}", "--against", against]
    command = [sys.executable, "-m", "pytest", *doubtful, *asked, "--results", str(folder), *options]
    status = subprocess.run(command, check=False).returncode
    if status not in (0, 1):
        raise UsageError(f"pytest ended with exit status {status}; what it said stands above")
    outcomes = {result.outcome for result in read_run(folder).results}
    if "regression" in outcomes:
        sys.exit(NO)
    if earlier.incomplete:
        click.echo(f"{run} is not whole: {earlier.incomplete}")
    if outcomes != {"pass"} or earlier.incomplete:
        sys.exit(NOT_ENOUGH)
