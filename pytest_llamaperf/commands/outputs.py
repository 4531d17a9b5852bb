"""Files that options name: `-` is standard output."""

from __future__ import annotations

import codecs
import io
import json
import sys
from pathlib import Path

import click

from pytest_llamaperf.errors import UsageError


def escape_what_no_locale_encodes() -> None:
    """Standard output of LC_ALL=C, or of Latin-1, holds no ellipsis and no arrow: they are written as JSON escapes them."""
    codecs.register_error("llamaperf", _escaped)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="llamaperf")


def _escaped(problem: UnicodeError) -> tuple[str, int]:
    assert isinstance(problem, UnicodeEncodeError)
    return json.dumps(problem.object[problem.start : problem.end])[1:-1], problem.end


def write(option: str, path: str, text: str) -> None:
    """Raises UsageError where it cannot be written."""
    from pytest_llamaperf.files import write_atomically

    if path == "-":
        click.echo(text, nl=False)
        return
    try:
        write_atomically(Path(path), text)
    except OSError as problem:
        raise UsageError(f"{option} {path}: cannot be written: {problem.strerror}") from None
