"""Small disks that are really full, or really read-only: a tmpfs in a mount namespace of its own, gone with its processes.

Root may make one, and so may everybody where the kernel lets users have namespaces.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

_NAMESPACES = (["unshare", "--mount"], ["unshare", "--mount", "--user", "--map-root-user"])
_SECONDS = 240


@functools.cache
def _namespace() -> list[str] | None:
    for command in _NAMESPACES:
        tried = [*command, "mount", "-t", "tmpfs", "none", "/mnt"]
        if shutil.which(command[0]) and subprocess.run(tried, capture_output=True, check=False).returncode == 0:
            return command
    return None


@dataclass(frozen=True)
class Ran:
    """Exit status of the last command, what all of them printed, and what is on the disk now."""

    status: int
    output: str
    disk: Path


class Disk:
    """Of so many kilobytes, beside a project's `folder`. Scripts find it at $DISK, and start from that folder."""

    def __init__(self, folder: Path, size: int = 256) -> None:
        self._folder, self._size = folder, size

    def run(self, script: str) -> Ran:
        """A script of bash, to which `fill` fills the disk, `protect` makes it read-only, and `llamaperf` is the command.

        The test skips where nobody may mount anything.
        """
        namespace = _namespace()
        if namespace is None:
            pytest.skip("no disk can be mounted here: neither root nor namespaces of users")
        left = self._folder / "left"
        shutil.rmtree(left, ignore_errors=True)
        mount = self._folder / "disk"
        mount.mkdir(exist_ok=True)
        whole = f"""
            mount -t tmpfs -o size={self._size}k,huge=never none "$DISK" 2>/dev/null || mount -t tmpfs -o size={self._size}k none "$DISK"
            fill() {{ dd if=/dev/zero of="$DISK/filler" bs=1k status=none 2>/dev/null; true; }}
            protect() {{ mount -o remount,ro "$DISK"; }}
            llamaperf() {{ "$PYTHON" -c 'from pytest_llamaperf.commands import main; main()' "$@"; }}
            tests() {{ "$PYTHON" -m pytest -W error -p llamaperf -p no:cacheprovider "$@"; }}
            ({script}
            )
            status=$?
            rm -f "$DISK/filler" 2>/dev/null
            cp -a "$DISK" "$LEFT"
            exit $status
        """
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))},
            "DISK": str(mount), "LEFT": str(left), "PYTHON": sys.executable, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "LLAMAPERF_CACHE": str(self._folder / "cache"), "HF_HUB_OFFLINE": "1", "COLUMNS": "200",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]), "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        done = subprocess.run(
            [*namespace, "bash", "-c", whole], cwd=self._folder, env=environment, text=True, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_SECONDS,
        )  # fmt: skip
        print(done.stdout)
        assert "Traceback" not in done.stdout
        assert "INTERNALERROR" not in done.stdout
        return Ran(done.returncode, done.stdout, left)
