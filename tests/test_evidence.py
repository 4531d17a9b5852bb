"""What is kept of a failure: it can be run again, it says what has changed, it holds no secret, and changes no result."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from builders import KEY, result
from engine_sessions import Folder, fake_engine, tiny_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pytest_llamaperf.environment import NAMES, is_kept
from pytest_llamaperf.evidence import scripts
from pytest_llamaperf.evidence.bundles import LAST_BYTES, LAST_LINES, Bundles, name_of
from pytest_llamaperf.evidence.earlier import Earlier
from pytest_llamaperf.evidence.environment import HIDDEN, TOLD, without_secrets
from pytest_llamaperf.evidence.scripts import Rerun
from pytest_llamaperf.history import open_history
from pytest_llamaperf.observations import observations_of
from pytest_llamaperf.records import Result, TestRecord
from pytest_llamaperf.runs import Run, RunHeader, read_run

DOUBLES = Path(__file__).parent / "doubles"
NODEID = "suites/test_a.py::test_b[it's $(touch pwned) `touch pwned`]"
CASE = f"h200/{KEY}"
HEADER = RunHeader("8a1c", "2026-11-26T10:00:00Z", "h200", "tensorrt-llm", {}, {"driver": "570.1"})
PROMISED = {
    "value": 463.1, "tolerance": 0.1, "source": "measured", "reference": "", "file": "b.yaml", "line": 4,
    "recorded": {"date": "2026-11-01", "version": "1.2.0", "restarts": "3", "commit": "abc1234"},
}  # fmt: skip

SUITE = """
import pytest
from pytest_llamaperf import OUTPUT_THROUGHPUT

@pytest.mark.cases(model="smollm2-135m", layout="tp1", workload="max-throughput-16-8", hardware="cpu", recipe=["bf16", "modelopt-fp8"])
@pytest.mark.parametrize("word", ["it's; touch pwned # $(touch pwned)"])
def test_speed(case, word, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT)

@pytest.mark.cases(model="smollm2-135m", layout="tp1", workload="max-throughput-16-8", hardware="cpu", recipe="bf16")
def test_of_something_else(case):
    print("a test that ran")
"""
PROMISE = """schema: 1
promises:
  torch/smollm2-135m/bf16/tp1/max-throughput-16-8:
    output_throughput: {value: 100.0, unit: tok/s, tolerance: 0.05, source: measured,
      recorded: {date: "2026-11-01", version: "2.12", restarts: 3, commit: "abc1234"}}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A suite of which one case lost a tenth, and another has an engine that fails; in a folder with a difficult name."""
    monkeypatch.setenv("LLAMAPERF_HISTORY", str(tmp_path / "none.sqlite"))
    folder = Folder(tmp_path / "it's $HOME")
    (folder.path / "baselines" / "cpu").mkdir(parents=True)
    (folder.path / "baselines" / "cpu" / "smollm2-135m.yaml").write_text(PROMISE)
    folder.write(test_suite=SUITE, conftest=fake_engine(**{"bf16_tp1": [90.0, 90.1], "modelopt-fp8_tp1": [0.0]}))
    return folder


def run(folder: Folder, *options: str) -> pytest.RunResult:
    return folder.run("--gpu=cpu", "--restarts=2", "--results=out", *options)


def bundle_of(folder: Folder, recipe: str = "bf16") -> Path:
    (found,) = (folder.path / "out" / "evidence").glob(f"smollm2-135m-{recipe}-*")
    return found


def test_a_failure_names_a_folder_in_the_terminal_in_junit_in_the_run_and_in_its_summary(project: Folder) -> None:
    ended = run(project, "--junitxml=junit.xml")

    assert ended.ret == pytest.ExitCode.TESTS_FAILED
    for recipe in ("bf16", "modelopt-fp8"):
        bundle = bundle_of(project, recipe)
        shown = f"out/evidence/{bundle.name}: reproduce.sh there runs this test again"
        ended.stdout.fnmatch_lines([shown])
        junit = ElementTree.parse(project.path / "junit.xml").iter("failure")
        assert sum(shown in str(failure.text) for failure in junit) == 1
        assert (
            f"Evidence in the folder of the run: evidence/{bundle.name}\n"
            in (project.path / "out/summary.md").read_text()
        )
    kept = {test.nodeid: test.evidence for test in read_run(project.path / "out").tests}
    assert sorted(filter(None, kept.values())) == sorted(
        f"evidence/{bundle_of(project, r).name}" for r in ("bf16", "modelopt-fp8")
    )
    assert [nodeid for nodeid, evidence in kept.items() if evidence is None] == [
        "test_suite.py::test_of_something_else[cpu/torch/smollm2-135m/bf16/tp1/max-throughput-16-8]"
    ]


def test_without_results_nothing_is_kept(project: Folder) -> None:
    ended = project.run("--gpu=cpu", "--restarts=2")

    assert ended.ret == pytest.ExitCode.TESTS_FAILED
    assert "evidence" not in str(ended.stdout)
    assert not list(project.path.rglob("reproduce.sh"))


def test_the_script_runs_exactly_that_test_with_its_options_and_environment(
    project: Folder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    project.write(other="def pytest_configure(config): print('other', __name__)")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    project.ini("python_functions = none")
    (project.path / "moved").mkdir()
    (project.path / "baselines").rename(project.path / "moved" / "here's")
    project.run(
        "-o", "python_functions=test_*", "--gpu=cpu", "--baselines=moved/here's", "--restarts=4", "--rounds=1",
        "--results=out", "-p", "other", "--gate", "-k", "test_speed", "-x", "test_suite.py",
    )  # fmt: skip
    script = bundle_of(project) / "reproduce.sh"
    # By somebody else, from elsewhere, with another environment.
    environment = {
        "PATH": os.environ["PATH"],
        "OMP_NUM_THREADS": "9",
        "TRANSFORMERS_OFFLINE": "1",
        "HOME": str(tmp_path),
    }

    again = subprocess.run(
        [script, "--junitxml", "again.xml"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120
    )  # fmt: skip

    assert again.returncode == pytest.ExitCode.TESTS_FAILED, again.stdout + again.stderr
    assert "1 failed in" in again.stdout
    assert "other other" in again.stdout
    first, second = read_run(project.path / "out"), read_run(bundle_of(project) / "again")
    (before,) = (each for each in first.results if each.case["recipe"] == "bf16")
    (after,) = second.results
    assert (after.nodeid, after.outcome, len(after.values)) == (before.nodeid, "regression", 4)
    assert [test.nodeid for test in second.tests] == [before.nodeid]
    assert (second.header.gpu, second.header.engine) == ("cpu", "torch")
    assert not list(tmp_path.rglob("pwned"))
    text = script.read_text()
    assert "export OMP_NUM_THREADS=1\n" in text  # as the session had it
    assert "unset TRANSFORMERS_OFFLINE\n" in text
    assert "--rounds 1" in text
    assert "--gate" not in text.partition("exec ")[2]


def test_a_test_that_fails_in_its_setup_or_after_its_end_leaves_evidence_too(project: Folder) -> None:
    project.write(
        test_suite="""
import pytest

@pytest.fixture
def broken():
    raise RuntimeError("no machine")

@pytest.fixture
def late():
    yield
    raise RuntimeError("left over")

CASES = pytest.mark.cases(model="smollm2-135m", layout="tp1", workload="max-throughput-16-8", hardware="cpu", recipe="bf16")

@CASES
def test_setup(case, broken): ...

@CASES
def test_teardown(case, late): ...

def test_without_a_case():
    assert False
"""
    )

    ended = run(project)

    assert len(list((project.path / "out" / "evidence").iterdir())) == 2
    assert str(ended.stdout).count(": reproduce.sh there runs this test again") == 2
    told = [(path / "difference.md").read_text() for path in (project.path / "out" / "evidence").iterdir()]
    assert sorted("no machine" in text for text in told) == [False, True]


def test_each_worker_of_xdist_has_its_failures_kept(project: Folder) -> None:
    (project.path / "baselines" / "h200").mkdir()
    out_of_reach = PROMISE.replace("torch/smollm2-135m/bf16/tp1/max-throughput-16-8", KEY).replace("100.0", "9e6")
    (project.path / "baselines" / "h200" / "llama-3.1-8b.yaml").write_text(out_of_reach.replace("9e6", "9000000.0"))
    project.write(
        test_suite="""
import pytest
from pytest_llamaperf import OUTPUT_THROUGHPUT

@pytest.mark.promised(metric="output_throughput")
@pytest.mark.parametrize("number", [1, 2])
def test_speed(case, number, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT)
"""
    )

    ended = project.run("-p", "xdist", "-n", "2", "--gpu=h200", "--engine=predicted", "--results=out")

    assert ended.parseoutcomes() == {"failed": 2}
    assert len(list((project.path / "out" / "evidence").iterdir())) == 2
    for bundle in (project.path / "out" / "evidence").iterdir():
        ended.stdout.fnmatch_lines([f"out/evidence/{bundle.name}: reproduce.sh *"])


def test_a_worker_of_xdist_that_dies_leaves_evidence_of_the_test_it_ran(project: Folder) -> None:
    project.write(
        test_suite="""
import os, pytest

@pytest.mark.cases(model="llama-3.1-8b", layout="tp1", workload="max-throughput-128-128", hardware="h200", recipe="bf16")
def test_speed(case):
    os._exit(3)
"""
    )

    ended = project.run("-p", "xdist", "-n", "1", "--gpu=h200", "--engine=predicted", "--results=out")

    (bundle,) = (project.path / "out" / "evidence").iterdir()
    ended.stdout.fnmatch_lines([f"evidence: out/evidence/{bundle.name}: reproduce.sh there runs this test again"])
    assert "test_suite.py::test_speed[h200/" in (bundle / "reproduce.sh").read_text()


def test_evidence_of_an_earlier_run_is_gone_but_for_one_that_goes_on(project: Folder) -> None:
    project.write(
        test_suite="""
import pytest

CASES = pytest.mark.cases(model="smollm2-135m", layout="tp1", workload="max-throughput-16-8", hardware="cpu", recipe="bf16")

@CASES
def test_first(case):
    assert False

@CASES
def test_second(case): ...
"""
    )
    against = ("--gpu=cpu", f"--against={sys.executable}", "--restarts=3", "--results=out")
    project.run(*against, "--maxfail=1")  # a run that is whole is not gone on with
    old = bundle_of(project).with_name("of-another-test")
    old.mkdir()

    project.run(*against, "--resume")
    assert old.exists()
    project.run(*against, "-k", "second")
    assert not old.exists()


def test_what_cannot_be_kept_is_told_and_changes_no_result(project: Folder) -> None:
    whole = run(project)
    outcomes = [(each.nodeid, each.outcome, each.message) for each in read_run(project.path / "out").results]
    project.write(
        spoiling=f"""
from pathlib import Path
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logstart():
    Path({str(project.path / "out" / "evidence")!r}).write_text("in the way")
"""
    )

    ended = run(project, "-p", "spoiling")

    assert ended.ret == whole.ret
    assert ended.parseoutcomes() == whole.parseoutcomes()
    run_again = read_run(project.path / "out")
    assert [(each.nodeid, each.outcome) for each in run_again.results] == [each[:2] for each in outcomes]
    assert [test.evidence for test in run_again.tests] == [None, None, None]
    assert run_again.decision is not None
    assert not any("evidence" in reason for reason in run_again.decision.reasons)
    ended.stdout.fnmatch_lines(["could not be kept: *test_speed*File exists", "evidence is not complete: *File exists"])


def test_a_link_in_the_place_of_the_folder_is_refused(project: Folder) -> None:
    (project.path / "out").mkdir()
    elsewhere = project.path / "precious"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("")
    (project.path / "out" / "evidence").symlink_to(elsewhere)

    ended = run(project)

    assert ended.ret == pytest.ExitCode.USAGE_ERROR
    ended.stdout.fnmatch_lines(["ERROR: --results *out: cannot be written: *"])
    assert [path.name for path in elsewhere.iterdir()] == ["file"]


def test_a_bundle_is_for_its_owner_and_holds_no_secret(project: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "HF_TOKEN": "hf_AbCdEf123456", "AWS_SECRET_ACCESS_KEY": "aws/secret+12345", "DATABASE_PASSWORD": "it's a 'password'",
        "MY_API_KEY": "key-0123456789", "PIP_INDEX_URL": "https://someone:pass-word@packages.example.com/simple",
    }  # fmt: skip
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", f"{os.environ.get('PYTHONPATH', '')}:/data/hf_AbCdEf123456")
    (project.path / "out" / "engines").mkdir(parents=True)
    log = project.path / "out" / "engines" / "cpu_torch_smollm2-135m_bf16_tp1.log"
    log.write_text("\n".join(["started with", *secrets.values(), "the last word"]))

    run(project)

    bundle = bundle_of(project)
    files = [path for path in bundle.rglob("*") if path.is_file()]
    assert {path.relative_to(bundle).as_posix() for path in files} == {
        "reproduce.sh", "profile.sh", "difference.md", "difference.json", "versions.txt", f"logs/{log.name}",
    }  # fmt: skip
    for path in [bundle.parent, *bundle.rglob("*"), bundle]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    for path in files:
        text = path.read_text()
        assert not [name for name, value in secrets.items() if value in text or "pass-word" in text], path
    assert f"https://{HIDDEN}@packages.example.com/simple\nthe last word\n" in (bundle / "logs" / log.name).read_text()
    exported = re.findall(r"^(?:export|unset) (\w+)", (bundle / "reproduce.sh").read_text(), re.MULTILINE)
    assert set(exported) == {*TOLD, *NAMES, "LLAMAPERF_OPENORCA", *filter(is_kept, os.environ)}


def test_no_variable_that_is_told_is_called_like_a_secret() -> None:
    assert without_secrets("12345678", dict.fromkeys(TOLD, "12345678")) == "12345678"
    assert without_secrets("12345678", {"HF_TOKEN": "12345678"}) == HIDDEN
    assert without_secrets("true", {"USE_AUTH": "true"}) == "true"


@pytest.fixture
def bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bundles]:
    monkeypatch.setenv("LLAMAPERF_HISTORY", str(tmp_path / "history.sqlite"))
    monkeypatch.setenv("LLAMAPERF_CACHE", str(tmp_path / "cache"))

    def made(**changes: Any) -> Bundles:
        results = tmp_path / "out"
        results.mkdir(exist_ok=True)
        rerun = Rerun(sys.executable, "/a root", ("--gpu", "h200"), {"PATH": os.environ["PATH"], "HF_HOME": None})
        return dataclasses.replace(Bundles(results, HEADER, rerun, "f00f00f", Earlier(results)), **changes)

    return made


def slow(**changes: Any) -> Result:
    fingerprint = {"versions": {"tensorrt_llm": "1.2.1"}, "settings": {"max_batch_size": 64, "dataset": "d1"}}
    return dataclasses.replace(
        result("regression", nodeid=NODEID), baseline=PROMISED, fingerprint=fingerprint, **changes
    )


def failed(*results: Result, **changes: Any) -> TestRecord:
    return dataclasses.replace(TestRecord(NODEID, "failed", 1.0, "it lost", results, CASE), **changes)


def earlier_run(path: Path, value: Result, started: str) -> Run:
    return Run(
        dataclasses.replace(HEADER, id=started, started=started),
        (TestRecord(NODEID, "passed", 1.0, results=(value,), case=CASE),),
    )


def differing(bundle: Path) -> dict[str, dict[str, Any]]:
    document = json.loads((bundle / "difference.json").read_text())
    return {
        kind: {row["field"]: (row["before"], row["after"]) for row in document["results"][0][kind]}
        for kind in ("promise", "settings")
    }


def test_what_the_record_of_the_promise_says_stands_beside_what_is_now(bundles: Callable[..., Bundles]) -> None:
    made = bundles()

    bundle = made.results / made.write(failed(slow()))

    assert differing(bundle)["promise"] == {
        "value": ("463.1 tok/s", "472.8 tok/s"),
        "source": ("measured", "measured"),
        "version": ("1.2.0", "1.2.1"),
        "date": ("2026-11-01", "2026-11-26"),
        "restarts": ("3", "2"),
        "commit": ("abc1234", "f00f00f"),
    }
    text = (bundle / "difference.md").read_text()
    assert "| version | 1.2.0 | 1.2.1 |\n" in text
    assert "No earlier run of this case is known here" in text
    assert "$(touch" not in text.replace("&#36;(touch", "")
    assert "  tensorrt_llm 1.2.1\n" in (bundle / "versions.txt").read_text()


def test_settings_and_machine_are_compared_with_the_day_of_the_promise_in_the_history(
    bundles: Callable[..., Bundles], tmp_path: Path
) -> None:
    def before(size: int, started: str, outcome: str) -> Run:
        fingerprint = {"versions": {"tensorrt_llm": "1.2.0"}, "settings": {"max_batch_size": size, "dataset": "d1"}}
        value = dataclasses.replace(slow(), outcome=outcome, fingerprint=fingerprint)
        return earlier_run(tmp_path, value, started)

    with open_history(str(tmp_path / "history.sqlite"), create=True) as history:
        for size, started, outcome in (
            (1, "2026-11-01T09:00:00Z", "regression"), (2, "2026-11-02T09:00:00Z", "pass"), (3, "2026-11-03T09:00:00Z", "error"),
        ):  # fmt: skip
            history.add(observations_of(before(size, started, outcome)))
    made = bundles()

    of_the_day = made.results / made.write(failed(slow()))
    unrecorded = dataclasses.replace(slow(), baseline={**PROMISED, "recorded": {}})
    told = differing(of_the_day)["settings"]
    assert told == {"tensorrt_llm": ("1.2.0", "1.2.1"), "max_batch_size": (1, 64)}
    assert differing(made.results / made.write(failed(unrecorded)))["settings"]["max_batch_size"] == (2, 64)


def test_settings_are_compared_with_the_run_that_lay_in_the_folder(project: Folder) -> None:
    run(project)
    project.write(
        conftest=fake_engine(**{"bf16_tp1": [90.0, 90.1], "modelopt-fp8_tp1": [0.0]}).replace("2.13.0", "2.14.0")
    )

    run(project)

    assert differing(bundle_of(project))["settings"] == {"torch": ("2.13.0", "2.14.0")}
    text = (bundle_of(project) / "difference.md").read_text()
    assert re.search(r"In what it differs from the run of \S+ that lay in out:", text)


def test_an_earlier_run_or_a_history_that_cannot_be_read_is_told(
    bundles: Callable[..., Bundles], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text("{")
    (tmp_path / "history.sqlite").write_text("no database, and long enough to be taken for one" * 100)
    made = bundles()

    text = (made.results / made.write(failed(slow())) / "difference.md").read_text()

    assert "The run before this one could not be read: " in text
    assert "The history could not be read: " in text


def test_of_logs_the_end_is_kept_and_nothing_of_what_lm_eval_printed(
    bundles: Callable[..., Bundles], tmp_path: Path
) -> None:
    made = bundles()
    engines = made.results / "engines"
    engines.mkdir()
    stem = "h200_tensorrt-llm_llama-3.1-8b_modelopt-fp8_tp1"
    for name in (stem, f"{stem}_under_old", f"{stem}6", "llama-3.1-8b-quantizer", "lm-eval"):
        (engines / f"{name}.log").write_text("".join(f"{name} {n}\n" for n in range(9000)))
    (engines / "secret").write_text("elsewhere")
    (engines / f"{stem}_under_link.log").symlink_to(engines / "secret")
    error = Result.of_error(
        NODEID, slow().case, "crashed\nlog: out/engines/llama-3.1-8b-quantizer.log, out/engines/lm-eval.log"
    )

    bundle = made.results / made.write(failed(error))

    logs = bundle / "logs"
    assert {path.stem for path in logs.iterdir()} == {stem, f"{stem}_under_old", "llama-3.1-8b-quantizer"}
    lines = (logs / f"{stem}.log").read_text().splitlines()
    assert lines[-1] == f"{stem} 8999"
    assert len(lines) == LAST_LINES
    assert (logs / f"{stem}.log").stat().st_size <= LAST_BYTES
    assert "lm-eval.log and was not copied" in (bundle / "difference.md").read_text()


def test_hostile_text_is_text_in_what_people_read(bundles: Callable[..., Bundles]) -> None:
    hostile = "<script>alert(1)</script> | [a](javascript:x) ![b](http://x) `c` \x1b[31m\u202e\ud800"
    made = bundles()
    lost = slow(message=hostile, metric=hostile, nodeid=hostile)
    promised = {
        **PROMISED,
        "reference": hostile,
        "source": hostile,
        "recorded": dict.fromkeys(PROMISED["recorded"], hostile),
    }
    test = failed(dataclasses.replace(lost, baseline=promised), nodeid=hostile, reason=hostile)

    text = (
        made.results / made.write(dataclasses.replace(test, nodeid=hostile.replace("\ud800", ""))) / "difference.md"
    ).read_text()

    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    kinds = {child.type for token in tokens for child in (token, *(token.children or ()))}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "code_inline"}
    assert all(len(row.split(" | ")) == 3 for row in text.splitlines() if row.startswith("| "))
    assert text.replace("\n", "").isprintable()


def test_traces_of_gpus_are_copied(bundles: Callable[..., Bundles]) -> None:
    made = bundles()
    (made.results / "gpus").mkdir()
    stem = "h200_tensorrt-llm_llama-3.1-8b_modelopt-fp8_tp1"
    (made.results / "gpus" / f"{stem}-1.jsonl").write_text('{"clock": 1980}\n')
    (made.results / "gpus" / "h200_other.jsonl").write_text("")

    bundle = made.results / made.write(failed(slow()))

    assert [path.name for path in (bundle / "gpus").iterdir()] == [f"{stem}-1.jsonl"]
    assert (bundle / "gpus" / f"{stem}-1.jsonl").read_text() == '{"clock": 1980}\n'


def test_a_bundle_is_there_whole_or_not_at_all(
    bundles: Callable[..., Bundles], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bundles()
    first = made.results / made.write(failed(slow()))
    before = (first / "difference.md").read_text()
    monkeypatch.setattr(
        "pytest_llamaperf.evidence.differences.told", lambda *_: (_ for _ in ()).throw(OSError(28, "full"))
    )

    with pytest.raises(OSError, match="full"):
        made.write(failed(slow(), reason="another"))

    assert [path.name for path in first.parent.iterdir()] == [first.name]
    assert (first / "difference.md").read_text() == before

    monkeypatch.undo()
    monkeypatch.setenv("LLAMAPERF_HISTORY", str(made.results / "none.sqlite"))
    assert made.results / made.write(failed(slow(), outcome="error")) == first
    assert (first / "difference.md").read_text().startswith("# error: ")


@given(nodeid=st.text(), case=st.text(), other=st.text())
def test_names_of_folders_stay_in_their_folder_and_apart(nodeid: str, case: str, other: str) -> None:
    name = name_of(TestRecord(nodeid, "failed", 0.0, case=case))

    assert Path(name).name == name
    assert name not in ("", ".", "..")
    assert not name.startswith(".")
    assert len(os.fsencode(name)) < 200
    assert re.fullmatch(r"[A-Za-z0-9.=@_-]+", name)
    assert nodeid == other or name != name_of(TestRecord(other, "failed", 0.0, case=case))


@given(word=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_whatever_stands_in_a_script_is_one_word_to_the_shell(word: str) -> None:
    rerun = Rerun("/bin/echo", word, (word,), {"VALUE": word})

    text = scripts.reproduce(rerun, word)

    code = [line for line in text.split("\n") if not line.startswith("#")]
    *_, command = shlex.split("\n".join(code), posix=True)[:-1], shlex.split(text.partition("exec ")[2])
    assert command == ["/bin/echo", "-m", "pytest", word, word, "--results", "$here/again", "$@"]
    assert shlex.split(text.partition("cd -- ")[2])[0] if word.startswith("-") else True
    assert shlex.split(text.partition("export VALUE=")[2])[0] == word


HOSTILE = ["it's", "$(touch pwned)", "a\nb", "`touch pwned`", "-n", "*", "; touch pwned #", "é\udce4", '"$HOME"', "\\"]


@pytest.mark.parametrize("word", HOSTILE)
def test_a_shell_takes_them_as_they_are(word: str, tmp_path: Path) -> None:
    root = tmp_path / word
    root.mkdir()
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\nprintf "%s\\0" "$PWD" "$VALUE" "$@"\n')
    program.chmod(0o700)
    rerun = Rerun(str(program), str(root), (word,), {"VALUE": word, "GONE": None})
    script = tmp_path / "reproduce.sh"
    script.write_text(scripts.reproduce(rerun, f"a.py::t[{word}]"), errors="surrogateescape")

    for shell in ("sh", "bash"):
        subprocess.run([shell, "-n", script], check=True, timeout=10)
        said = subprocess.run(
            [shell, script, "one more"], check=True, capture_output=True, timeout=10, cwd=tmp_path
        ).stdout
        assert [os.fsdecode(part) for part in said.split(b"\0")[:-1]] == [
            str(root), word, "-m", "pytest", f"a.py::t[{word}]", word, "--results", str(tmp_path / "again"), "one more",
        ]  # fmt: skip
    assert not list(tmp_path.rglob("pwned"))


NSYS = """#!/bin/sh
printf '%s\\n' "$@" > "$TRACED"
while [ "${1#-}" != "$1" ] || [ "$1" = profile ]; do shift; done
exec "$@"
"""


@pytest.fixture
def nsys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A profiler that writes down its words and runs what it is given. The file of words."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nsys"
    program.write_text(NSYS)
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TRACED", str(tmp_path / "traced"))
    return tmp_path / "traced"


def test_the_profile_of_a_torch_engine_is_that_of_its_test_and_is_run_by_nobody(project: Folder, nsys: Path) -> None:
    run(project)
    assert not nsys.exists()
    script = bundle_of(project) / "profile.sh"

    traced = subprocess.run([script, "--rounds", "1"], capture_output=True, text=True, check=False, timeout=120)

    assert traced.returncode == pytest.ExitCode.TESTS_FAILED, traced.stdout + traced.stderr
    words = nsys.read_text().splitlines()
    assert words[:2] == ["profile", "--force-overwrite=true"]
    assert "--trace=nvtx,osrt" in words
    assert (script.parent / "profiled" / "run.json").exists()  # and not taken for a measurement
    assert not (script.parent / "again").exists()


def test_without_a_profiler_the_script_says_where_to_get_it(project: Folder) -> None:
    run(project)

    told = subprocess.run(
        ["/bin/sh", bundle_of(project) / "profile.sh"], capture_output=True, text=True, check=False, env={"PATH": "/nowhere"}, timeout=10
    )  # fmt: skip

    assert (told.returncode, told.stderr) == (127, "nsys is not on the PATH: it comes with Nsight Systems\n")


def test_of_a_gpu_kernels_are_traced_and_of_several_nodes_each_process(tmp_path: Path) -> None:
    rerun = Rerun("python", "/", (), {})

    torch = scripts.profile(None, engine="torch", hardware="h200", rerun=rerun)
    rate = scripts.profile(None, engine="tensorrt-llm", hardware="h200", rerun=rerun)
    line = "srun -N 2 --ntasks-per-node=8 --mpi=pmix trtllm-llmapi-launch trtllm-bench --model a throughput"
    nodes = scripts.profile(line, engine="tensorrt-llm", hardware="h200", rerun=rerun)

    assert "--trace=cuda,nvtx,osrt" in torch
    assert "cudaProfilerApi" not in torch
    assert 'sh "$here/reproduce.sh"' in rate
    assert "--trace=cuda,nvtx,python-gil" in rate
    assert "srun -N 2 --ntasks-per-node=8 --mpi=pmix nsys profile " in nodes
    assert '--output="$here/profile.%q{SLURM_PROCID}" trtllm-llmapi-launch trtllm-bench --model a throughput\n' in nodes
    for text in (torch, rate, nodes):
        subprocess.run(["bash", "-n"], input=text, text=True, check=True, timeout=10)


TRTLLM = """
import pytest
from pytest_llamaperf import OUTPUT_THROUGHPUT

@pytest.mark.cases(model=CHECKPOINT, hardware="cpu", recipe="bf16", layout="tp1", workload="max-throughput-16-8")
def test_speed(case, measure, baseline):
    baseline.check(measure(case), OUTPUT_THROUGHPUT)
    assert False, "whatever it did"
"""


def test_for_tensorrt_llm_its_own_tool_repeats_the_measurement_and_can_be_traced(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, nsys: Path
) -> None:
    version = DOUBLES / "v1_2"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(version), os.environ.get("PYTHONPATH")])))
    programs = [str(version / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(programs))
    monkeypatch.setenv("LLAMAPERF_HISTORY", str(tmp_path / "none.sqlite"))
    folder = Folder(tmp_path / "project")
    folder.write(test_suite=TRTLLM.replace("CHECKPOINT", repr(str(tiny_checkpoint(tmp_path_factory)))))
    folder.ini("llamaperf_deadlines = load=60 run=60 close=10")

    folder.run("--gpu=cpu", "--engine=tensorrt-llm", "--restarts=1", "--rounds=1", "--results=out", "--gate")

    (bundle,) = (folder.path / "out" / "evidence").iterdir()
    said = subprocess.run(
        [bundle / "by-hand.sh"], capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path
    )
    assert said.returncode == 0, said.stdout + said.stderr
    report = json.loads((bundle / "report.json").read_text())
    assert report["request_info"]["num_requests"] == 8
    (bundle / "report.json").unlink()
    traced = subprocess.run(
        [bundle / "profile.sh"], capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path
    )
    assert traced.returncode == 0, traced.stdout + traced.stderr
    assert (bundle / "report.json").exists()
    words = nsys.read_text().splitlines()
    assert {"--trace=cuda,nvtx,python-gil", "--capture-range=cudaProfilerApi", f"--output={bundle}/profile"} <= set(
        words
    )
    assert "--env-var=TLLM_PROFILE_RECORD_GC=1,TLLM_LLMAPI_ENABLE_NVTX=1" in words


def test_an_engine_that_never_opened_has_a_command_with_a_checkpoint_to_be_named(
    bundles: Callable[..., Bundles],
) -> None:
    made = bundles()
    error = Result.of_error(NODEID, slow().case, "the engine ran out of memory (load)")

    bundle = made.results / made.write(failed(error))

    text = (bundle / "by-hand.sh").read_text()
    assert '--model_path "$CHECKPOINT"' in text
    unnamed = subprocess.run(
        ["sh", bundle / "by-hand.sh"],
        capture_output=True,
        text=True,
        check=False,
        timeout=10,
        env={"PATH": os.environ["PATH"]},
    )
    assert unnamed.returncode != 0
    assert "set it to the folder of the checkpoint" in unnamed.stderr
    words = shlex.split(text.partition("trtllm-bench ")[2])
    for option in ("--dataset", "--extra_llm_api_options"):
        assert Path(words[words.index(option) + 1]).is_file()


def test_a_prediction_has_nothing_to_trace_and_no_command_of_another_tool(bundles: Callable[..., Bundles]) -> None:
    made = bundles(header=dataclasses.replace(HEADER, engine="predicted"))

    bundle = made.results / made.write(failed(slow(source="predicted")))

    assert {path.suffix for path in bundle.iterdir()} == {".sh", ".md", ".json", ".txt"}
    assert [path.name for path in bundle.glob("*.sh")] == ["reproduce.sh"]
