"""The command `llamaperf`: one module for each subcommand, heavy imports only inside the functions that need them.

Exit status of all subcommands: 0 yes; 1 no; 2 wrong usage; 3 not enough evidence.
"""

from __future__ import annotations

import errno
from typing import Any

import click

from pytest_llamaperf.commands.accept import accept
from pytest_llamaperf.commands.compare import compare
from pytest_llamaperf.commands.confirm import confirm
from pytest_llamaperf.commands.doctor import doctor
from pytest_llamaperf.commands.gate import gate
from pytest_llamaperf.commands.history import history
from pytest_llamaperf.commands.launch import launch
from pytest_llamaperf.commands.merge import merge
from pytest_llamaperf.commands.outputs import escape_what_no_locale_encodes
from pytest_llamaperf.commands.plan import plan
from pytest_llamaperf.commands.predict import predict
from pytest_llamaperf.commands.report import report
from pytest_llamaperf.commands.run import run
from pytest_llamaperf.commands.summary import summary
from pytest_llamaperf.commands.tables import tables
from pytest_llamaperf.errors import LlamaperfError, UsageError

_LONGEST = 400  # characters of a path that a message shows


class _WrongUsage(click.ClickException):
    exit_code = 2


class _PlainErrors(click.Group):
    """Messages meant for people are shown as such, with their exit status, and never as a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        escape_what_no_locale_encodes()
        try:
            return super().invoke(ctx)
        except LlamaperfError as problem:
            raise (_WrongUsage if isinstance(problem, UsageError) else click.ClickException)(str(problem)) from None
        except OSError as problem:
            if problem.errno == errno.EPIPE:
                raise  # whoever reads the output has seen enough; click ends quietly
            named = f"{str(problem.filename)[:_LONGEST]}: " if problem.filename else ""
            raise _WrongUsage(f"{named}{problem.strerror or problem}") from None


@click.group(cls=_PlainErrors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="pytest-llamaperf")
def main() -> None:
    """Llama on NVIDIA TensorRT-LLM: what it should reach, and what this machine can test.

    The tests themselves are run by pytest:  pytest suites/ --gpu h200

    Completion of names in bash:  eval "$(_LLAMAPERF_COMPLETE=bash_source llamaperf)"   (zsh_source, fish_source alike)
    """


main.add_command(predict)
main.add_command(doctor)
main.add_command(launch)
main.add_command(confirm)
main.add_command(compare)
main.add_command(history)
main.add_command(report)
main.add_command(tables)
main.add_command(accept)
main.add_command(summary)
main.add_command(gate)
main.add_command(plan)
main.add_command(run)
main.add_command(merge)
