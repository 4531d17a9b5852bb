"""Operator tables of several TensorRT-LLM versions: listed, fetched by pip, kept, used, and told apart."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from packaging.version import Version
from pyarrow import parquet
from table_doubles import SYSTEM, SYSTEMS, copied_tables, package_index, slower_tables

from pytest_llamaperf import metrics
from pytest_llamaperf.catalog import case_of_key, gpus
from pytest_llamaperf.catalog import tables as catalog
from pytest_llamaperf.catalog.tables import timed_version, timed_versions
from pytest_llamaperf.commands import main
from pytest_llamaperf.errors import DocumentError, EngineError, UsageError
from pytest_llamaperf.observations import observations_of
from pytest_llamaperf.operator_tables import INSTALLED, decode_attention, tables_named
from pytest_llamaperf.operator_tables.fetching import fetch, fetched
from pytest_llamaperf.predicting import Prediction, operator_seconds, operators, predict
from pytest_llamaperf.runs import read_run

pytest_plugins = ["pytester"]
KEY = "tensorrt-llm/llama-3.1-8b/{}/tp2/min-latency-128-128"
SUITE = """
import pytest
from pytest_llamaperf import OUTPUT_THROUGHPUT

@pytest.mark.cases(model="llama-3.1-8b", recipe="bf16", layout="tp2", workload="min-latency-128-128")
def test_speed(case, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT)
"""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package_index(tmp_path_factory.mktemp("index") / "packages")


@pytest.fixture
def offline(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An index of our own, its catalog, and an empty cache; the index is a copy that a test may change."""
    packages = shutil.copytree(index, tmp_path / "packages")
    for name, value in environment(packages, tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    with monkeypatch.context() as patch:
        patch.setattr(catalog, "_FILE", packages / "tables.yaml")
        timed_versions.cache_clear()
        yield packages
    timed_versions.cache_clear()


def environment(packages: Path, cache: Path) -> dict[str, str]:
    return {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(packages),
        "PIP_CONFIG_FILE": os.devnull,
        "LLAMAPERF_CACHE": str(cache),
    }


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def llamaperf(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def unfinished(cache: Path) -> list[str]:
    return [path.name for path in (cache / "making").iterdir()]


def predicted(tables: str | Path, recipe: str = "bf16") -> Prediction:
    return predict(case_of_key("h200", KEY.format(recipe)), tables=tables_named(str(tables)))


# The catalog.


def test_the_catalog_knows_the_installed_tables() -> None:
    (installed,) = [version for version in timed_versions().values() if version.wheel is None]

    assert set(installed.gpus) == set(gpus())
    for gpu in gpus().values():
        assert operators.tables_version(gpu.operator_tables)[1] == installed.name


def test_the_catalog_is_in_the_order_of_versions() -> None:
    assert list(timed_versions()) == sorted(timed_versions(), key=Version)


@pytest.mark.parametrize(
    ("written", "instead", "problem"),
    [
        ("format: csv", "format: xls", "wheels, aiconfigurator 0.4.0: unknown format; .*known: csv, parquet"),
        (
            "wheel: aiconfigurator 0.4.0",
            "wheel: aiconfigurator 0.4",
            "unknown wheel; did you mean 'aiconfigurator 0.4.0'",
        ),
        ("gpus: [h200]", "gpu: h200", "unknown key 'gpu'; did you mean 'gpus'"),
    ],
)
def test_a_catalog_with_a_mistake_is_refused(offline: Path, written: str, instead: str, problem: str) -> None:
    path = offline / "tables.yaml"
    path.write_text(path.read_text().replace(written, instead))

    with pytest.raises(DocumentError, match=problem):
        timed_versions()


def test_decode_attention_is_told_apart_where_its_timing_changed() -> None:
    ways = {version: decode_attention(version) for version in timed_versions()}

    assert ways.pop("1.3.0rc20") == decode_attention("1.3.0") == "timed as since 1.3.0rc20"
    assert set(ways.values()) == {"timed as before 1.3.0rc20"}


# Fetching.


def test_what_is_fetched_is_listed_and_not_fetched_again(offline: Path, cache: Path) -> None:
    assert llamaperf("tables").stdout.count("not fetched") == 2

    first = llamaperf("tables", "fetch", "1.0.0rc3", "1.3.0rc10")
    for wheel in offline.glob("*.whl"):
        wheel.unlink()
    again = llamaperf("tables", "fetch", "1.3.0rc10")

    assert (first.exit_code, again.exit_code) == (0, 0), first.output + again.output
    assert first.stderr.count("downloading aiconfigurator ") == 2
    assert again.stderr == ""
    listed = llamaperf("tables").stdout
    assert "1.0.0rc3" in listed
    assert "not fetched" not in listed
    assert unfinished(cache) == []


def test_tables_as_they_were_written_once_are_read_as_today(offline: Path) -> None:
    fetch(timed_version("1.0.0rc3").wheel, lambda text: None)  # type: ignore[arg-type]
    folder = fetched(timed_version("1.0.0rc3")) / "data" / SYSTEM

    for part in ("gemm/{}/gemm_perf", "attention/{}/context_attention_perf", "comm/{}/custom_allreduce_perf"):
        now = parquet.read_table(SYSTEMS / "data" / SYSTEM / f"{part.format('trtllm/1.3.0rc20')}.parquet")
        then = parquet.read_table(folder / f"{part.format('trtllm/1.0.0rc3')}.parquet")
        assert set(then.column_names) == set(now.column_names)
        for column in now.column_names:
            if column.endswith("dtype") or column in ("kernel_source", "implementation"):
                assert set(then[column].to_pylist()) == set(now[column].to_pylist()), column
    lent = "quantize/trtllm/{}/computescale_perf.parquet"
    assert (folder / lent.format("1.0.0rc3")).read_bytes() == (
        SYSTEMS / "data" / SYSTEM / lent.format("1.3.0rc20")
    ).read_bytes()


@pytest.mark.parametrize("version", ["1.0.0rc3", "1.3.0rc10"])
def test_fetched_tables_predict_what_is_in_them(offline: Path, version: str) -> None:
    """Those of the double are the installed ones, by other names."""
    llamaperf("tables", "fetch", version)

    found, installed = predicted(version, "modelopt-fp8"), predicted("1.3.0rc20", "modelopt-fp8")

    assert found.traces == installed.traces
    assert found.fingerprint.versions == {
        "aiconfigurator-core": "0.12.0",
        "tensorrt-llm (operator tables)": version,
    }
    differ = {
        name for name, value in found.fingerprint.settings.items() if installed.fingerprint.settings[name] != value
    }
    assert differ == {"decode_attention"}


def test_what_was_not_timed_is_noted_where_it_counts(offline: Path) -> None:
    llamaperf("tables", "fetch", "1.0.0rc3")
    note = "quantizing activations was not timed in 1.0.0rc3: that of 1.3.0rc10 stands in"

    assert note in predicted("1.0.0rc3", "modelopt-fp8").notes
    assert note not in predicted("1.0.0rc3", "bf16").notes
    assert note not in predicted("1.3.0rc10", "modelopt-fp8").notes


def test_how_far_fetched_tables_go_is_read_from_them(offline: Path) -> None:
    llamaperf("tables", "fetch", "1.0.0rc3")

    assert operators.measured(SYSTEM, tables_named("1.0.0rc3")) == operators.MEASURED


def test_a_wrong_name_is_told_before_anything_is_downloaded(offline: Path, cache: Path) -> None:
    result = llamaperf("tables", "fetch", "1.3.0rc10", "1.0.0rc4")

    assert result.exit_code == 2
    assert "unknown operator tables '1.0.0rc4'; did you mean '1.0.0rc3'?" in result.stderr
    assert not cache.exists()


def test_the_installed_tables_need_no_fetching(offline: Path) -> None:
    result = llamaperf("tables", "fetch", "1.3.0rc20")

    assert (result.exit_code, result.stdout) == (0, "1.3.0rc20: comes with pip install 'pytest-llamaperf[predict]'\n")
    assert tables_named("1.3.0rc20") == INSTALLED


@pytest.mark.parametrize("harm", ["cut off", "another"])
def test_another_file_than_the_catalog_names_is_not_kept(offline: Path, cache: Path, harm: str) -> None:
    (wheel,) = offline.glob("*-0.10.0-*.whl")
    content = wheel.read_bytes()
    wheel.write_bytes(content[:-1000] if harm == "cut off" else content.replace(b"aiconfigurator", b"aiconfigurat0r"))

    result = llamaperf("tables", "fetch", "1.3.0rc10")

    assert result.exit_code == 1
    assert "is not the file of the catalog" in result.stderr or "could not be downloaded by pip" in result.stderr
    assert "Traceback" not in result.output
    assert unfinished(cache) == []
    assert not (cache / "entries").exists()


def test_pip_that_fails_is_quoted(offline: Path, cache: Path) -> None:
    for wheel in offline.glob("*.whl"):
        wheel.unlink()

    result = llamaperf("tables", "fetch", "1.3.0rc10")

    assert result.exit_code == 1
    assert "aiconfigurator 0.10.0 could not be downloaded by pip:" in result.stderr
    assert "No matching distribution found for aiconfigurator==0.10.0" in result.stderr
    assert "the command: " in result.stderr
    assert unfinished(cache) == []


def test_a_full_disk_is_told_and_leaves_nothing(offline: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        late = llamaperf("tables", "fetch", "1.3.0rc10")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 1000))
    early = llamaperf("tables", "fetch", "1.3.0rc10")

    for result in (late, early):
        assert result.exit_code == 1
        assert "no room for aiconfigurator 0.10.0" in result.stderr
        assert "set LLAMAPERF_CACHE to a folder on another disk" in result.stderr
    assert "downloading" not in early.stderr
    assert unfinished(cache) == []
    assert list(cache.glob("entries/*")) == []


def test_a_cache_that_cannot_be_is_named(offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLAMAPERF_CACHE", str(tmp_path / "file" / "cache"))

    result = llamaperf("tables", "fetch", "1.3.0rc10")

    assert result.exit_code == 1
    assert "Not a directory; operator tables are kept in " in result.stderr


# Damage.


def changed(entry: Path) -> None:
    path = next(entry.rglob("gemm_perf.parquet"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def removed(entry: Path) -> None:
    next(entry.rglob("custom_allreduce_perf.parquet")).unlink()


def half_a_manifest(entry: Path) -> None:
    path = entry / "manifest.json"
    path.write_text(path.read_text()[:100])


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (changed, "gemm_perf.parquet was changed"),
        (removed, "custom_allreduce_perf.parquet is missing"),
        (half_a_manifest, "manifest.json: is not JSON"),
    ],
)
def test_damaged_tables_are_refused_until_they_are_fetched_again(
    offline: Path, cache: Path, harm: Callable[[Path], None], told: str
) -> None:
    llamaperf("tables", "fetch", "1.3.0rc10")
    (entry,) = (cache / "entries").iterdir()
    harm(entry)

    refused = llamaperf("predict", "llama-3.1-8b", "--tables", "1.3.0rc10")
    again = llamaperf("tables", "fetch", "1.3.0rc10")

    assert refused.exit_code == 2
    assert "are damaged: " in refused.stderr
    assert f"{told}; run `llamaperf tables fetch 1.3.0rc10`" in refused.stderr
    assert again.exit_code == 0
    assert "is damaged and is made again" in again.stderr
    assert fetched(timed_version("1.3.0rc10")).parent == entry


# Several processes, and those that are killed.

FETCHING = """
import sys
from pathlib import Path
from pytest_llamaperf.catalog import tables
tables._FILE = Path({catalog!r})
sys.executable = {python!r}
from pytest_llamaperf.commands import main
main(["tables", "fetch", "1.3.0rc10"])
"""


def start_fetching(offline: Path, python: Path | str = sys.executable) -> subprocess.Popen[str]:
    program = FETCHING.format(catalog=str(offline / "tables.yaml"), python=str(python))
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_two_at_once_one_downloads(offline: Path, cache: Path) -> None:
    processes = [start_fetching(offline) for _ in range(2)]

    told = [process.communicate(timeout=120) for process in processes]

    assert [process.returncode for process in processes] == [0, 0], told
    assert sum(err.count("downloading") for _, err in told) == 1
    assert len({out for out, _ in told}) == 1
    assert unfinished(cache) == []


def test_one_that_is_killed_leaves_nothing_in_the_way(offline: Path, cache: Path, tmp_path: Path) -> None:
    endless = tmp_path / "python"
    endless.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/pid\nexec sleep 600\n")
    endless.chmod(0o755)
    process = start_fetching(offline, endless)
    until = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        assert time.monotonic() < until
        time.sleep(0.02)
    process.kill()
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    process.communicate(timeout=60)
    assert len(unfinished(cache)) == 1

    assert llamaperf("tables", "fetch", "1.3.0rc10").exit_code == 0
    assert unfinished(cache) == []


# Naming tables.


def test_tables_that_are_not_here_say_how_to_get_them(offline: Path) -> None:
    with pytest.raises(UsageError, match=r"1\.3\.0rc10 were not fetched; run `llamaperf tables fetch 1\.3\.0rc10`"):
        tables_named("1.3.0rc10")


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(
        UsageError, match=r"'1\.3\.0rc1'; did you mean '1\.3\.0rc10'\? known: .*; or a folder of your own"
    ):
        tables_named("1.3.0rc1")


def test_a_copy_of_the_installed_tables_predicts_the_same_and_is_told_apart(tmp_path: Path) -> None:
    own, installed = predicted(copied_tables(tmp_path / "own"), "llama-fp8"), predicted("1.3.0rc20", "llama-fp8")

    assert own.traces == installed.traces
    assert operator_seconds(own) == operator_seconds(installed)
    assert own.fingerprint.settings == installed.fingerprint.settings
    version = Version(own.fingerprint.versions["tensorrt-llm (operator tables)"])
    assert (version.public, version.local[:4] if version.local else None) == ("1.3.0rc20", "own.")


def test_other_content_is_another_version(tmp_path: Path) -> None:
    versions = {
        predicted(folder).fingerprint.versions["tensorrt-llm (operator tables)"]
        for folder in (
            copied_tables(tmp_path / "copy"),
            copied_tables(tmp_path / "the same copy"),
            slower_tables(tmp_path / "slower"),
            slower_tables(tmp_path / "still slower", 1.2),
        )
    }

    assert len(versions) == 3


def nothing(folder: Path) -> None:
    shutil.rmtree(folder / "data")


def two_versions(folder: Path) -> None:
    place = folder / "data" / SYSTEM / "gemm" / "trtllm"
    shutil.copytree(place / "1.3.0rc20", place / "1.3.0rc10")


def half_a_table(folder: Path) -> None:
    path = next(folder.rglob("gemm_perf.parquet"))
    path.write_bytes(path.read_bytes()[:1000])


def no_version(folder: Path) -> None:
    (folder / "data" / SYSTEM / "gemm" / "trtllm" / "1.3.0rc20").rename(
        folder / "data" / SYSTEM / "gemm" / "trtllm" / "nightly"
    )


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (nothing, "holds no operator tables; GPU.yaml and data/GPU/gemm/trtllm/VERSION/gemm_perf.parquet are in one"),
        (two_versions, "holds operator tables of 1.3.0rc10 and 1.3.0rc20; leave those of one version"),
        (half_a_table, "gemm_perf.parquet: is no parquet file, or not a whole one"),
        (no_version, "its operator tables are of 'nightly', which is no version"),
    ],
)
def test_a_folder_that_is_no_tables_is_refused(tmp_path: Path, harm: Callable[[Path], None], problem: str) -> None:
    folder = copied_tables(tmp_path / "own")
    harm(folder)

    result = llamaperf("predict", "llama-3.1-8b", "--tables", str(folder))

    assert result.exit_code == 2
    assert problem in result.stderr


def test_a_gpu_that_the_tables_are_not_of_is_refused(tmp_path: Path) -> None:
    folder = copied_tables(tmp_path / "own")

    result = llamaperf("predict", "llama-3.1-8b", "--tables", str(folder), "--gpu", "h100")

    assert result.exit_code == 2
    assert "have no h100; they have h200" in result.stderr


def test_a_table_without_rows_of_operators_is_an_error_of_the_prediction(tmp_path: Path) -> None:
    folder = copied_tables(tmp_path / "own")
    path = next(folder.rglob("generation_attention_perf.parquet"))
    parquet.write_table(parquet.read_table(path).slice(0, 0), path)

    with pytest.raises(EngineError):
        predicted(folder)


# Which operator got slower.


def test_slower_gemms_cost_throughput_and_are_found_by_operator(tmp_path: Path) -> None:
    slow, installed = predicted(slower_tables(tmp_path / "slow", 1.1)), predicted("1.3.0rc20")
    before, after = operator_seconds(installed), operator_seconds(slow)

    assert slow.values[metrics.OUTPUT_THROUGHPUT] < 0.95 * installed.values[metrics.OUTPUT_THROUGHPUT]
    for phase in ("decode", "prompt"):
        moved = {kind for kind in before[phase] if after[phase][kind] != before[phase][kind]}
        assert moved == {"GEMM"}
        assert after[phase]["GEMM"] == pytest.approx(1.1 * before[phase]["GEMM"])
        assert after[f"{phase} at best"] == before[f"{phase} at best"]


@pytest.mark.parametrize(
    ("table", "kind", "phases"),
    [
        ("generation_attention_perf", "attention", {"decode"}),
        ("context_attention_perf", "attention", {"prompt"}),
        ("custom_allreduce_perf", "all-reduce", {"decode", "prompt"}),
    ],
)
def test_any_slower_operator_is_found_where_it_is_used(tmp_path: Path, table: str, kind: str, phases: set[str]) -> None:
    before = operator_seconds(predicted("1.3.0rc20"))
    after = operator_seconds(predicted(slower_tables(tmp_path / "slow", 1.5, table=table)))

    moved = {(phase, kind) for phase in before for kind in before[phase] if before[phase][kind] != after[phase][kind]}

    assert moved == {(phase, kind) for phase in phases}


def test_seconds_of_operators_add_up_to_the_iterations_of_the_run() -> None:
    """One request at a time: all its iterations are alike but for the KV cache, which grows by half around the mean."""
    found = predicted("1.3.0rc20")
    seconds = operator_seconds(found)

    assert sum(seconds["decode"].values()) == pytest.approx(found.values[metrics.TPOT_MEDIAN], rel=0.01)
    assert set(seconds) == {"decode", "prompt", "decode at best", "prompt at best"}
    for phase in ("decode", "prompt"):
        assert all(best <= seconds[phase][kind] for kind, best in seconds[f"{phase} at best"].items())


# In a session, as its users run it.


def run(pytester: pytest.Pytester, results: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(test_it=SUITE)
    return pytester.runpytest("--gpu=h200", "--engine=predicted", f"--results={results}", *options)


@pytest.mark.parametrize("distribution", [(), ("-n2",)], ids=["one process", "xdist"])
def test_a_planted_regression_is_found_in_the_runs(
    pytester: pytest.Pytester, tmp_path: Path, distribution: tuple[str, ...]
) -> None:
    slower_tables(pytester.path / "slow")
    run(pytester, "before", *distribution)
    run(pytester, "after", "--tables=slow", *distribution)

    (before,), (after,) = (observations_of(read_run(pytester.path / name)) for name in ("before", "after"))

    assert after.value < 0.95 * before.value
    assert (before.version, (after.version or "").partition("+")[0]) == ("1.3.0rc20", "1.3.0rc20")
    assert before.version != after.version
    assert before.settings == after.settings
    moved = {kind for kind, seconds in before.operators["decode"].items() if after.operators["decode"][kind] != seconds}
    assert moved == {"GEMM"}


def test_a_session_by_fetched_tables_says_so(pytester: pytest.Pytester, offline: Path) -> None:
    llamaperf("tables", "fetch", "1.0.0rc3")

    run(pytester, "out", "--tables=1.0.0rc3")

    (found,) = observations_of(read_run(pytester.path / "out"))
    assert (found.version, found.settings["decode_attention"]) == ("1.0.0rc3", "timed as before 1.3.0rc20")


def test_the_predict_fixture_uses_the_tables_of_the_session(pytester: pytest.Pytester) -> None:
    copied_tables(pytester.path / "own")
    pytester.makepyfile(
        "import pytest\n"
        "@pytest.mark.cases(model='llama-3.1-8b', recipe='bf16', layout='tp1', workload='min-latency-128-128')\n"
        "def test_tables(case, predict):\n"
        "    assert '+own.' in predict(case).fingerprint.versions['tensorrt-llm (operator tables)']\n"
    )

    pytester.runpytest("--gpu=h200", "--engine=predicted", "--tables=own").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--gpu=h200", "--engine=predicted", "--tables=1.3.0rc10"], "ERROR: operator tables of 1.3.0rc10 were not *"),
        (["--gpu=h200", "--engine=predicted", "--tables=1.3"], "ERROR: unknown operator tables '1.3'; *"),
        (["--gpu=h200", "--engine=predicted", "--tables=."], "ERROR: *: holds no operator tables; *"),
        (
            ["--gpu=b200", "--engine=predicted", "--tables=own"],
            "ERROR: operator tables of * have no b200; they have h200",
        ),
        (["--gpu=cpu", "--tables=own"], "ERROR: --tables names operator times, of which *: add --engine predicted"),
    ],
)
def test_tables_that_cannot_be_end_a_session_at_its_start(
    pytester: pytest.Pytester, offline: Path, options: list[str], problem: str
) -> None:
    copied_tables(pytester.path / "own")
    pytester.makepyfile(test_it=SUITE)

    result = pytester.runpytest(*options)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([problem])


def test_predict_tells_whose_tables_and_seconds_of_operators(offline: Path) -> None:
    llamaperf("tables", "fetch", "1.3.0rc10")
    wanted = ["predict", "llama-3.1-8b", "--layout", "tp1", "--workload", "min-latency", "--tables", "1.3.0rc10"]

    (found,) = json.loads(llamaperf(*wanted, "--json", "-").stdout)["predictions"]

    assert found["fingerprint"]["versions"]["tensorrt-llm (operator tables)"] == "1.3.0rc10"
    assert set(found["operator_seconds"]) == {"decode", "prompt", "decode at best", "prompt at best"}
    assert found["operator_seconds"]["decode"]["GEMM"] > found["operator_seconds"]["decode at best"]["GEMM"] > 0
    assert "tensorrt-llm (operator tables) 1.3.0rc10" in llamaperf(*wanted).stdout


# The real ones.


def test_the_real_tables_are_fetched_and_as_fast_as_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NVIDIA's performance overview of 1.0: 405B in FP8 on 8 x H200, 456 tok/s at 2048/128."""
    monkeypatch.setenv("LLAMAPERF_CACHE", str(tmp_path))
    try:
        for wheel in dict.fromkeys(version.wheel for version in timed_versions().values() if version.wheel):
            fetch(wheel, lambda text: None)
    except EngineError as problem:
        if "could not be downloaded by pip" in str(problem):
            pytest.skip(f"no package index within reach: {problem}")
        raise
    case = case_of_key("h200", "tensorrt-llm/llama-3.1-405b/modelopt-fp8/tp8/max-throughput-2048-128")

    found = {
        name: predict(case, tables=tables_named(name)).values[metrics.OUTPUT_THROUGHPUT] for name in timed_versions()
    }

    assert found["1.0.0rc3"] == pytest.approx(456, rel=0.1)
    # FP8 GEMMs became faster by a tenth.
    assert found["1.3.0rc10"] > 1.05 * found["1.2.0rc5"]
    assert operators.measured(SYSTEM, tables_named("1.0.0rc3")) == dataclasses.replace(
        operators.MEASURED, gemm_rows=8192
    )
    with pytest.raises(UsageError, match="have no b200; they have h100, h200"):
        tables_named("0.20.0").check("b200")
