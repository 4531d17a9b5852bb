"""Files that options name: `-` is standard output."""

from __future__ import annotations

from pathlib import Path

import click

from pytest_llamaperf.errors import UsageError


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
