"""Waivers: strictly read, covering one measured loss each, and saying why when they cover none."""

from __future__ import annotations

import dataclasses
import math
import re
import textwrap
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import case, promise, record, result
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packaging.version import InvalidVersion, Version

from pytest_llamaperf.errors import DocumentError
from pytest_llamaperf.gates import decide
from pytest_llamaperf.records import Result
from pytest_llamaperf.verdicts import Outcome
from pytest_llamaperf.waivers import Waiver, Waivers, read_waivers

CASE = case().id
TODAY = date(2026, 11, 26)
ENTRY = (
    "{outcome: regression, loss: 0.12, reason: the fused kernel is off, owner: serving team, "
    'expires: "2027-01-31", newest_version: "1.2.1"}'
)


def text(entry: str = ENTRY, name: str = CASE, metric: str = "output_throughput") -> str:
    """A file of one waiver, which stands in line 5."""
    return f"schema: 1\n# reviewed\nwaivers:\n  {name}:\n    {metric}: {entry}\n"


def changed(old: str, new: str) -> str:
    assert ENTRY.count(old) == 1
    return text(ENTRY.replace(old, new))


def regression(value: float = 416.8, low: float = 412.2, version: str | None = "1.2.1", **other: Any) -> Result:
    """Of 463.1 tok/s: lost 10 %, or 11 % at most."""
    versions = {} if version is None else {"tensorrt_llm": version}
    return dataclasses.replace(
        result("regression"),
        **{
            "value": value,
            "low": low,
            "high": value + (value - low),
            "fingerprint": {"versions": versions, "settings": {}},
            **other,
        },
    )


Read = Callable[..., Waivers]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def written(content: str | bytes = text(), today: date = TODAY) -> Waivers:
        (tmp_path / "waivers.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_waivers(tmp_path / "waivers.yaml", today)

    return written


def test_a_waiver_is_read_as_it_stands(read: Read, tmp_path: Path) -> None:
    (it,) = read()

    assert (it.case, it.metric, it.loss) == (CASE, "output_throughput", 0.12)
    assert (it.reason, it.owner) == ("the fused kernel is off", "serving team")
    assert (it.expires, it.newest_version) == (date(2027, 1, 31), Version("1.2.1"))
    assert it.place == f"{tmp_path}/waivers.yaml:5"


def test_a_case_is_one_however_its_layout_is_written(read: Read) -> None:
    (it,) = read(text(name=CASE.replace("tp1", "pp2-tp4")))

    assert it.case == CASE.replace("tp1", "tp4-pp2")


@pytest.mark.parametrize("metric", ["rouge1", "answer_tokens", "accuracy"])
def test_what_an_accuracy_task_is_judged_by_can_be_waived(read: Read, metric: str) -> None:
    (it,) = read(text(name="h200/tensorrt-llm/llama-2-70b/modelopt-fp8/tp8/openorca", metric=metric))

    assert it.metric == metric


def test_a_model_that_is_a_folder_can_be_waived(read: Read) -> None:
    assert len(list(read(text(name=CASE.replace("llama-3.1-8b", "our-own-llama"))))) == 1


@pytest.mark.parametrize("page", ["docs/gating.md", "pytest_llamaperf/waivers.py"])
def test_the_example_that_we_show_can_be_read(read: Read, page: str) -> None:
    text = (Path(__file__).parents[1] / page).read_text()
    (shown,) = re.findall(r"^ *schema: 1\n *waivers:\n.*?(?=^```|^\S)", text, re.MULTILINE | re.DOTALL)

    assert len(list(read(textwrap.dedent(shown)))) == 1


def test_no_waivers_is_a_file_too(read: Read) -> None:
    assert list(read("schema: 1\nwaivers: {}\n")) == []


@pytest.mark.parametrize(
    ("content", "line", "told"),
    [
        (changed("outcome: regression", "outcome: error"), 5, "outcome is 'error', and only a regression can be waived"),
        (changed("outcome: regression", "outcome: inconclusive"), 5, "only a regression can be waived"),
        (changed("outcome: regression", "outcome: no-baseline"), 5, "only a regression can be waived"),
        (changed("outcome: regression, ", ""), 5, "'outcome' is missing"),
        (changed("loss: 0.12", "loss: 12"), 5, "loss is relative (0.05 for 5 %), above 0 and below 1, found 12"),
        (changed("loss: 0.12", "loss: 0"), 5, "above 0 and below 1, found 0"),
        (changed("loss: 0.12", "loss: .nan"), 5, "'loss' must be a finite number"),
        (changed("loss: 0.12, ", ""), 5, "'loss' is missing"),
        (changed("reason: the fused kernel is off, ", ""), 5, "'reason' is missing"),
        (changed("the fused kernel is off", '" "'), 5, "'reason' is empty"),
        (changed("the fused kernel is off", '"two\\nlines"'), 5, "'reason' must be one line of printable text"),
        (changed("serving team", '"\\e[2J"'), 5, "'owner' must be one line of printable text"),
        (changed("serving team", '"right\\u202Eleft"'), 5, "'owner' must be one line of printable text"),
        (changed('"2027-01-31"', "2027-01-31"), 5, "'expires' must be text, found a date (put quotes around it)"),
        (changed('"2027-01-31"', '"2027-02-30"'), 5, "'expires' is the last day it counts, written like 2027-01-31"),
        (changed('"2027-01-31"', '"20270131"'), 5, "written like 2027-01-31, not '20270131'"),
        (changed('"2027-01-31"', '"2027-W04-7"'), 5, "written like 2027-01-31, not '2027-W04-7'"),
        (changed('"2027-01-31"', "never"), 5, "written like 2027-01-31, not 'never'"),
        (changed('"1.2.1"', '"newest"'), 5, "'newest_version' is a version such as 1.2.1, not 'newest'"),
        (changed('"1.2.1"', "1.2"), 5, "'newest_version' must be text, found a number '1.2'"),
        (changed('"1.2.1"', '"1.2.1+cu130"'), 5, "'newest_version' is a release, without its local part: 1.2.1"),
        (changed("owner:", "onwer:"), 5, "unknown key 'onwer'; did you mean 'owner'?"),
        (text(metric="output_troughput"), 5, "unknown metric 'output_troughput'; did you mean 'output_throughput'?"),
        (text(metric="output_throughput vs llama-fp9"), 5, "'llama-fp9' after vs is no part of a case"),
        (text(name=CASE.replace("h200/", "")), 4, "a case is written hardware/engine/model/recipe/layout/work, not"),
        (text(name='"' + CASE.replace("llama-3.1-8b", "\\e[2J") + '"'), 4, "a case is written hardware/engine/model/recipe/"),
        (text(name=CASE.replace("h200", "h2000")), 4, "unknown hardware 'h2000'; did you mean 'h200'?"),
        (text(name=CASE.replace("tensorrt-llm", "vllm")), 4, "unknown engine 'vllm'"),
        (text(name=CASE.replace("modelopt", "model0pt")), 4, "unknown recipe 'model0pt-fp8'"),
        (text(name=CASE.replace("tp1", "*")), 4, "unknown layout '*'"),
        (text(name=CASE.replace("max-throughput-128-128", "'*'")), 4, "unknown workload"),
        (text(name=f"{CASE.rpartition('/')[0]}/gsm8k"), 5, "the task gsm8k is judged by no 'output_throughput'; known: accuracy"),
        (text(name=f"{CASE.rpartition('/')[0]}/answers"), 5, "the task answers is judged by no metric: its tests pass or fail"),
        (
            text(name=CASE.replace("tp1", "tp4-pp2"))
            + text(name=CASE.replace("tp1", "pp2-tp4")).partition("waivers:\n")[2],
            7, "waived already in ",
        ),
        (text().replace("schema: 1", "schema: 2"), 1, "schema 2 is not known here; this version reads 1"),
        (text().replace("schema: 1\n", ""), 2, "'schema' is missing"),
        (text() + "more: 1\n", 6, "unknown key 'more'"),
        ("schema: 1\n", 1, "'waivers' is missing"),
        ("schema: 1\nwaivers: []\n", 2, "'waivers' must be a mapping, found a list"),
        (b"schema: 1\nwaivers: {\xff: 1}\n", 2, "is not UTF-8 text"),
    ],
)  # fmt: skip
def test_what_could_be_misread_is_refused_with_file_and_line(
    read: Read, tmp_path: Path, content: str | bytes, line: int, told: str
) -> None:
    with pytest.raises(DocumentError) as caught:
        read(content)

    assert str(caught.value).startswith(f"{tmp_path}/waivers.yaml:{line}: ")
    assert told in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_measured_regression_within_its_waiver_is_covered(read: Read) -> None:
    waivers = read()
    (it,) = waivers

    assert waivers.covering(regression()) == it
    assert waivers.objections([regression()]) == []


@pytest.mark.parametrize("version", ["1.2.1", "1.2.0", "1.2.1rc3", "1.2.1+cu130", "1.0"])
def test_it_counts_up_to_the_newest_version_affected(read: Read, version: str) -> None:
    assert read().covering(regression(version=version))


NEWER = "is about tensorrt_llm up to 1.2.1, and {} ran: look at it again, or remove it"
UNTOLD = "is about tensorrt_llm up to 1.2.1, and the result does not tell its version"


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (result(), "not used, for the promise was kept; remove it"),
        (result("inconclusive"), "found inconclusive, and only a regression can be waived: its size is known"),
        (result("suspect"), "found suspect, and only a regression can be waived: its size is known"),
        (result("no-baseline"), "found no-baseline, and only a regression can be waived: its size is known"),
        (result("error"), "found error, and only a regression can be waived: its size is known"),
        (result("slower"), "found slower, and only a regression can be waived: its size is known"),
        (result(""), "found no outcome, and only a regression can be waived: its size is known"),
        (regression(source="predicted"), "found a regression that was predicted, and only a measured one can be waived"),
        (regression(source=None), "found a regression that was had somehow, and only a measured one can be waived"),
        (regression(version="1.2.2"), NEWER.format("1.2.2")),
        (regression(version="1.3.0rc1"), NEWER.format("1.3.0rc1")),
        (regression(version="1.2.1.post1"), NEWER.format("1.2.1.post1")),
        (regression(version=None), UNTOLD),
        (regression(version="unknown"), UNTOLD),
        (regression(low=400.0), "accepts a loss of 12.0%, and it may be 13.6%"),
        (regression(value=300.0, low=299.0), "accepts a loss of 12.0%, and it may be 35.4%"),
        (regression(low=math.nan), "accepts a loss of 12.0%, and it may be nan%"),
        (regression(baseline=None), "cannot tell how large the loss is: nothing was promised"),
        (regression(baseline={"value": 0.0}), "cannot tell how large the loss is: nothing was promised"),
    ],
)  # fmt: skip
def test_what_a_waiver_does_not_cover_is_told(read: Read, tmp_path: Path, found: Result, told: str) -> None:
    waivers = read()

    assert waivers.covering(found) is None
    assert waivers.objections([found]) == [f"waiver in {tmp_path}/waivers.yaml:5: {CASE} output_throughput: {told}"]


@pytest.mark.parametrize(("day", "covers"), [(date(2027, 1, 31), True), (date(2027, 2, 1), False)])
def test_the_day_it_expires_is_its_last(read: Read, tmp_path: Path, day: date, covers: bool) -> None:
    waivers = read(today=day)

    assert (waivers.covering(regression()) is not None) == covers
    expired = (
        f"waiver in {tmp_path}/waivers.yaml:5: {CASE} output_throughput: expired on 2027-01-31; serving team renews or "
        "removes it"
    )
    assert waivers.objections([regression()]) == ([] if covers else [expired])
    assert waivers.objections([]) != []


def test_one_that_no_test_judged_is_told(read: Read) -> None:
    (told,) = read().objections([dataclasses.replace(regression(), metric="ttft_p99")])

    assert told.endswith("not used, for no test judged it; judge it, or remove it")


def test_a_regression_tells_more_than_a_pass_beside_it(read: Read) -> None:
    (told,) = read().objections([result(), regression(low=400.0)])

    assert told.endswith("accepts a loss of 12.0%, and it may be 13.6%")


def test_a_loss_of_a_latency_is_on_its_other_side(read: Read) -> None:
    waivers = read(text(metric="ttft_p99"))
    slower = regression(500.0, 495.0, metric="ttft_p99", better="lower")  # 463.1 promised: 9 % at most

    assert waivers.covering(slower)
    assert waivers.covering(dataclasses.replace(slower, high=520.0)) is None


@pytest.mark.parametrize(("value", "covered"), [(463.1 * 1.11, True), (463.1 * 1.13, False), (463.1 * 0.87, False)])
def test_a_target_with_two_sides_is_missed_on_either(read: Read, value: float, covered: bool) -> None:
    name = "h200/tensorrt-llm/llama-2-70b/modelopt-fp8/tp8/openorca"
    missed = regression(value, value, metric="answer_tokens", better=None)
    missed = dataclasses.replace(missed, low=None, high=None, case={**missed.case, "id": name})

    assert (read(text(name=name, metric="answer_tokens")).covering(missed) is not None) == covered


def test_those_of_other_hardware_and_engines_are_not_this_runs(read: Read) -> None:
    waivers = read()

    assert list(waivers.about("h200", "tensorrt-llm")) == list(waivers)
    assert list(waivers.about("h100", "tensorrt-llm")) == []
    assert list(waivers.about("h200", "trtllm-bench")) == []


# --- whatever stands in the file -----------------------------------------------------------------------------------

TOKENS = st.lists(
    st.sampled_from(
        ["schema", "waivers", ": ", ":", "\n", "  ", "    ", "- ", "1", "0", "0.12", ".inf", "{", "}", "[", "]", ", ", "&a ",
         "*a", "!!int ", "!!float ", "!!map ", "'", '"', "|", ">", "#", "---\n", "\t", "? ", "~", "\\0", "\\e[1m", "<<",
         "outcome", "regression", "pass", "loss", "expires", '"2027-01-31"', '"9999-12-31"', "newest_version", '"99"', "owner",
         "reason", CASE, "output_throughput", "ttft_p99"]
    ),
    max_size=60,
).map("".join)  # fmt: skip


@st.composite
def spoiled(draw: st.DrawFn) -> str:
    """A valid file with up to three pieces cut out, doubled, or replaced."""
    content = text()
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 12)))
        piece = draw(st.just("") | st.just(content[start:end] * 2) | st.text(max_size=4) | TOKENS)
        content = content[:start] + piece + content[end:]
    return content


def says_so(content: bytes, found: Result) -> bool:
    """Whether a plain reading of the file, by other means, has a waiver that covers the result today."""
    entry = yaml.load(content.decode(), Loader=yaml.CSafeLoader)["waivers"][CASE]["output_throughput"]
    lost = 1 - min(found.low or 0, found.value or 0) / promise(463.1).value
    try:
        newest = Version(entry["newest_version"])
    except InvalidVersion:
        return False
    return bool(
        entry["outcome"] == "regression"
        and math.isfinite(entry["loss"])
        and lost <= entry["loss"] < 1
        and entry["expires"] >= TODAY.isoformat()
        and newest >= Version("1.2.1")
        and entry["reason"].strip()
        and entry["owner"].strip()
    )


@settings(max_examples=2500)
@given(st.one_of(spoiled().map(str.encode), TOKENS.map(str.encode), st.binary(), st.text().map(str.encode)))
@example(text().encode())
@example(text("{}").encode())
def test_whatever_stands_in_the_file_nothing_passes_that_it_does_not_say(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "waivers.yaml"
    path.write_bytes(content)
    try:
        waivers = read_waivers(path, TODAY)
    except DocumentError as problem:
        waivers, refused = Waivers(), problem
    else:
        refused = None
    assert refused is None or str(refused).startswith(f"{path}:{refused.line}: ")
    found = regression()
    covering = waivers.covering(found)
    decision = decide(
        [record(dataclasses.replace(found, waiver=covering.to_dict() if covering else None), outcome="waived")],
        waivers=waivers,
    )
    assert "\x1b" not in str(decision)
    assert not decision.releasable or says_so(content, found)


@given(st.sampled_from([o for o in Outcome if o is not Outcome.REGRESSION]), st.floats(0.001, 0.999))
def test_nothing_but_a_regression_is_ever_covered(outcome: Outcome, loss: float) -> None:
    (it,) = of(loss)

    assert it.objection(dataclasses.replace(regression(), outcome=outcome.value), TODAY) is not None


@given(st.floats(0.001, 0.999), st.floats(1.0, 462.0), st.floats(0.0, 1.0))
def test_a_covered_loss_is_within_what_was_accepted(loss: float, value: float, share: float) -> None:
    (it,) = of(loss)
    low = value * share

    covered = it.objection(regression(value, low), TODAY) is None

    assert covered == (1 - low / 463.1 <= loss)


def of(loss: float) -> Waivers:
    until, newest = date(2027, 1, 31), Version("1.2.1")
    it = Waiver(CASE, "output_throughput", loss, "why", "who", until, newest, Path("waivers.yaml"), 5)
    return Waivers([it], TODAY)
