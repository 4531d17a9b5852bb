"""Versions of libraries that a process has loaded, asked of libraries that answer as CUDA's do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_llamaperf.children import libraries
from pytest_llamaperf.hosting.host import Host

CHILDREN = Path(libraries.__file__).parent
# As the headers declare them: three fill a number and return 0, cuDNN's returns the number.
SOURCES = {
    "libcudart.so.12": "int cudaRuntimeGetVersion(int *v) { *v = 12080; return 0; }",
    "libcublas.so.12": "int cublasGetProperty(int part, int *v) { int all[] = {12, 8, 4}; *v = all[part]; return 0; }",
    "libcudnn.so.9": "#include <stddef.h>\nsize_t cudnnGetVersion(void) { return 90100; }",
    "libcudnn_ops.so.9": "int nothing_to_ask(void) { return 0; }",
    "libnccl.so.2": "int ncclGetVersion(int *v) { *v = 22602; return 0; }",
}
LOADING = """
import ctypes, json, sys
sys.path.insert(0, sys.argv[1])
import libraries
kept = [ctypes.CDLL(path) for path in sys.argv[2:]]
print(json.dumps(libraries.loaded()))
"""


def built(folder: Path, sources: dict[str, str]) -> list[str]:
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    for name, source in sources.items():
        (folder / "source.c").write_text(source, encoding="utf-8")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / name, folder / "source.c"], check=True)
    return [str(folder / name) for name in sources]


def loaded(paths: list[str]) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", LOADING, str(CHILDREN), *paths], capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_each_library_that_is_loaded_says_its_version(tmp_path: Path) -> None:
    assert loaded(built(tmp_path, SOURCES)) == {"cuda": "12.8", "cublas": "12.8.4", "cudnn": "9.1.0", "nccl": "2.26.2"}


def test_what_is_not_loaded_is_left_out(tmp_path: Path) -> None:
    paths = built(tmp_path, SOURCES)

    assert loaded([path for path in paths if "nccl" in path]) == {"nccl": "2.26.2"}
    assert loaded([path for path in paths if "cudnn_ops" in path]) == {}


@pytest.mark.parametrize(
    "source", ["int ncclGetVersion(int *v) { return 1; }", "int another(void) { return 0; }"], ids=["fails", "unknown"]
)
def test_a_library_that_does_not_say_its_version_is_left_out(tmp_path: Path, source: str) -> None:
    assert loaded(built(tmp_path, {"libnccl.so.2": source})) == {}


@pytest.mark.parametrize(
    ("name", "function", "number", "told"),
    [("libcudnn.so.8", "size_t cudnnGetVersion(void) {{ return {}; }}", 8902, "8.9.2"),
     ("libnccl.so.2", "int ncclGetVersion(int *v) {{ *v = {}; return 0; }}", 2804, "2.8.4")],
)  # fmt: skip
def test_older_libraries_wrote_their_numbers_shorter(
    tmp_path: Path, name: str, function: str, number: int, told: str
) -> None:
    source = "#include <stddef.h>\n" + function.format(number)

    assert list(loaded(built(tmp_path, {name: source})).values()) == [told]


def test_a_process_that_cannot_read_its_maps_tells_its_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Package:
        __version__ = "2.13.0+cu128"

    monkeypatch.setitem(sys.modules, "torch", Package)
    monkeypatch.delitem(sys.modules, "transformers", raising=False)

    found = libraries.loaded(tmp_path / "maps")

    assert found["torch"] == "2.13.0+cu128"
    assert "transformers" not in found


def test_a_host_answers_for_every_driver(tmp_path: Path) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text("class torch: __version__ = '2.13.0'\nimport sys; sys.modules['torch'] = torch\n"
                      "class Driver:\n    def handle(self, command, arguments): raise ValueError(command)\n"
                      "    def close(self): pass\ndef open_driver(report): return Driver()\n")  # fmt: skip

    with Host(driver, log=tmp_path / "log") as host:
        assert host.versions() == {"torch": "2.13.0"}
