"""Temporary folders of processes that were killed are removed by the next one, and nobody else's."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_llamaperf.leftovers import OWNED, OwnedFolder, sweep

OWNING = """
from pytest_llamaperf.leftovers import OwnedFolder
owned = OwnedFolder.new("llamaperf-engine-")
(owned.path / "scratch").write_text("x")
print(owned.path, flush=True)
input()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@pytest.fixture
def owner() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    process = subprocess.Popen([sys.executable, "-c", OWNING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process, Path(process.stdout.readline().strip())
    process.kill()
    process.communicate()


def test_a_folder_of_a_living_process_stays_and_that_of_a_killed_one_goes(
    owner: tuple[subprocess.Popen[str], Path],
) -> None:
    process, path = owner

    sweep("llamaperf-engine")
    assert (path / "scratch").read_text() == "x"

    process.send_signal(signal.SIGKILL)
    process.wait()
    sweep("llamaperf-engine")
    assert not path.exists()


def test_a_folder_of_this_process_stays_until_it_is_removed(temporary: Path) -> None:
    owned = OwnedFolder.new("llamaperf-engine-")

    sweep("llamaperf-engine")
    assert owned.path.is_dir()

    owned.remove()
    owned.remove()
    assert list(temporary.iterdir()) == []


def test_what_was_kept_for_people_stays(temporary: Path) -> None:
    owned = OwnedFolder.new("llamaperf-engine-")
    (owned.path / "log").write_text("why it failed")

    owned.keep()
    sweep("llamaperf-engine")

    assert [path.name for path in owned.path.iterdir()] == ["log"]


def test_what_is_nobodys_or_called_otherwise_or_only_a_link_stays(temporary: Path, tmp_path: Path) -> None:
    """A folder that is just being made has no file of its owner yet."""
    (temporary / "llamaperf-engine-new").mkdir()
    (temporary / "llamaperf-engine-file").write_text("")
    (temporary / "other").mkdir()
    (temporary / "other" / OWNED).write_text("")
    (temporary / "llamaperf-engine-link").symlink_to(temporary / "other")
    (temporary / "llamaperf-engine-odd").mkdir()
    (temporary / "llamaperf-engine-odd" / OWNED).symlink_to(temporary / "other" / OWNED)

    sweep("llamaperf-engine")

    assert len(list(temporary.iterdir())) == 5
    assert (temporary / "other" / OWNED).exists()


def test_a_place_for_temporary_files_that_is_gone_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
    tempfile.gettempdir()
    (tmp_path / "gone").rmdir()

    sweep("llamaperf-engine")
