"""`llamaperf summary`: a run for the summary page of a CI job, and for services that chart benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pytest_llamaperf.commands.outputs import write

_FILE = click.Path(path_type=Path, dir_okay=False, allow_dash=True)


@click.command(short_help="Write a run as Markdown for CI, and as JSON for services that chart benchmarks.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--markdown", type=_FILE, metavar="FILE", help="decision, failures, every value; at most 1 MB")
@click.option(
    "--bigger-is-better", type=_FILE, metavar="FILE", help="github-action-benchmark, tool customBiggerIsBetter"
)
@click.option(
    "--smaller-is-better", type=_FILE, metavar="FILE", help="github-action-benchmark, tool customSmallerIsBetter"
)
@click.option("--bencher", type=_FILE, metavar="FILE", help="Bencher Metric Format, for `bencher run --adapter json`")
def summary(
    run: Path,
    markdown: Path | None,
    bigger_is_better: Path | None,
    smaller_is_better: Path | None,
    bencher: Path | None,
) -> None:
    """Write RUN, a folder that --results wrote, as others read it; without options, as Markdown to standard output.

    FILE may be - for standard output.

    \b
      llamaperf summary out >> "$GITHUB_STEP_SUMMARY"
      llamaperf summary out --bigger-is-better out/bigger.json --smaller-is-better out/smaller.json

    Exit status: 0 written, whatever the run decided; 2 wrong usage.
    """
    from pytest_llamaperf.metrics import Better
    from pytest_llamaperf.runs import read_run
    from pytest_llamaperf.summaries import benchmarks
    from pytest_llamaperf.summaries.markdown import markdown_of

    read = read_run(run)
    texts = []
    if markdown or not (bigger_is_better or smaller_is_better or bencher):
        texts.append(("--markdown", markdown or Path("-"), markdown_of(read)))
    if bigger_is_better:
        texts.append(
            ("--bigger-is-better", bigger_is_better, _json(benchmarks.github_action_benchmark(read, Better.HIGHER)))
        )
    if smaller_is_better:
        texts.append(
            ("--smaller-is-better", smaller_is_better, _json(benchmarks.github_action_benchmark(read, Better.LOWER)))
        )
    if bencher:
        texts.append(("--bencher", bencher, _json(benchmarks.bencher(read))))
    for option, path, text in texts:  # all of them could be made
        write(option, str(path), text)


def _json(document: Any) -> str:
    import json

    return json.dumps(document, indent=1, allow_nan=False) + "\n"
