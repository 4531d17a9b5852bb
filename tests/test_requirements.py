"""What a release has to have judged: strictly read, and the shipped gate as wide as the shipped promises."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from builders import record, result
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pytest_llamaperf.accuracy.companions import TEXT
from pytest_llamaperf.answers import ANSWERS, REPEATS
from pytest_llamaperf.baselines import read_baselines
from pytest_llamaperf.catalog.tasks import FIXED
from pytest_llamaperf.errors import DocumentError
from pytest_llamaperf.gates import decide
from pytest_llamaperf.requirements import Requirement, read_requirements

REPOSITORY = Path(__file__).parents[1]
MODEL = "h200/tensorrt-llm/llama-3.1-8b"
GROUP = """\
    model: llama-3.1-8b
    recipe: [modelopt-fp8, llama-fp8]
    layout: tp1
    workload: [max-throughput-128-128, min-latency-128-128]
    metric: [output_throughput, ttft_p99]
"""


def text(group: str = GROUP, count: int = 8) -> str:
    """A gate of one group, which stands in line 5."""
    return f"schema: 1\nhardware: h200\ncount: {count}\nrequired:\n  8B, speed:\n{group}"


def changed(old: str, new: str, count: int = 8) -> str:
    assert GROUP.count(old) == 1
    return text(GROUP.replace(old, new), count)


Read = Callable[..., tuple[Requirement, ...]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def written(content: str = text(), engine: str = "tensorrt-llm", hardware: str = "h200") -> tuple[Requirement, ...]:
        (tmp_path / "h200.yaml").write_text(content)
        return read_requirements(tmp_path / "h200.yaml", hardware=hardware, engine=engine)

    return written


def test_every_combination_of_a_group_is_required(read: Read, tmp_path: Path) -> None:
    found = read()

    assert {(each.case, each.metric) for each in found} == {
        (f"{MODEL}/{recipe}/tp1/{work}", metric)
        for recipe, work, metric in itertools.product(
            ["modelopt-fp8", "llama-fp8"],
            ["max-throughput-128-128", "min-latency-128-128"],
            ["output_throughput", "ttft_p99"],
        )
    }
    assert {each.place for each in found} == {f"{tmp_path}/h200.yaml:5"}


def test_whichever_engine_runs_has_to_judge_it(read: Read) -> None:
    assert all(each.case.startswith("h200/trtllm-bench/") for each in read(engine="trtllm-bench"))


def test_a_fixed_task_requires_a_test_and_no_metric(read: Read) -> None:
    group = "    {model: llama-3.1-8b, recipe: modelopt-fp8, layout: tp1, task: text}\n"

    assert [(each.case, each.metric) for each in read(text(group, 1))] == [(f"{MODEL}/modelopt-fp8/tp1/text", None)]


def test_the_fixed_tasks_are_those_that_are_asked() -> None:
    assert set(FIXED) == {ANSWERS, REPEATS, TEXT, "checkpoint"}


TASK = "{model: llama-3.1-8b, recipe: modelopt-fp8, layout: tp1, task: %s, metric: %s}"


@pytest.mark.parametrize(
    ("content", "line", "told"),
    [
        (text(count=9), 3, "count is 9, and 8 are required below; if that is meant, write count: 8"),
        (text(GROUP, 8).replace("count: 8\n", ""), 1, "'count' is missing"),
        ("schema: 1\nhardware: h200\ncount: 0\nrequired: {}\n", 3, "'count' must be at least 1, found 0"),
        ("schema: 1\nhardware: h200\ncount: 1\nrequired: {}\n", 3, "count is 1, and 0 are required below"),
        (text().replace("hardware: h200", "hardware: h100"), 2, "is about h100, and this run about h200"),
        (text().replace("hardware: h200", "hardware: h20"), 2, "unknown hardware 'h20'; did you mean 'h200'?"),
        (text().replace("schema: 1", "schema: 2"), 1, "schema 2 is not known here"),
        (changed("model: llama-3.1-8b", "model: llama-3.1-9b"), 6, "8B, speed: unknown model 'llama-3.1-9b'"),
        (changed("layout: tp1", "layout: tp3"), 6, "8B, speed: tp3: llama-3.1-8b has 32 attention heads"),
        (changed("layout: tp1", "layout: []"), 8, "8B, speed: 'layout' names nothing"),
        (changed("layout: tp1", "layout: [1]"), 8, "8B, speed: 'layout' must be a list of texts"),
        (changed("    layout: tp1\n", ""), 6, "8B, speed: 'layout' is missing"),
        (changed("ttft_p99", "ttft_p98"), 10, "unknown metric 'ttft_p98'; did you mean 'ttft_p99'?"),
        (changed("    metric: [output_throughput, ttft_p99]\n", ""), 6, "8B, speed: 'metric' is missing"),
        (changed("ttft_p99", "output_throughput"), 6, "output_throughput is required already in "),
        (changed("workload", "wokload"), 9, "8B, speed: unknown key 'wokload'; did you mean 'workload'?"),
        (text(f"    {TASK % ('gsm8k', 'output_throughput')}\n"), 6, "the task gsm8k is judged by no 'output_throughput'"),
        (text(f"    {TASK % ('gsm9k', 'accuracy')}\n"), 6, "8B, speed: unknown task 'gsm9k'; did you mean 'gsm8k'?"),
        (text(f"    {TASK % ('text', 'accuracy')}\n"), 6, "the task text is judged by no metric: its tests pass or fail"),
        (text(GROUP + "    task: gsm8k\n"), 6, "8B, speed: a case has a workload or a task, one of them"),
        (text() + "  8B, speed:\n" + GROUP, 11, "'8B, speed' stands twice (first in line 5); remove one"),
        (text() + "  again:\n" + GROUP, 12, "is required already in "),
        (text().replace("8B, speed", '"\\e[2J"').replace("tp1", "tp3"), 6, r"'\x1b[2J': tp3: llama-3.1-8b has 32 attention"),
    ],
)  # fmt: skip
def test_what_could_be_misread_is_refused_with_file_line_and_group(
    read: Read, tmp_path: Path, content: str, line: int, told: str
) -> None:
    with pytest.raises(DocumentError) as caught:
        read(content)

    assert told in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/h200.yaml:{line}: ")


@pytest.mark.parametrize("page", ["docs/gating.md", "pytest_llamaperf/requirements.py"])
def test_the_example_that_we_show_can_be_read(read: Read, page: str) -> None:
    (shown,) = re.findall(
        r"^ *schema: 1\n *hardware: .*?(?=^```|^\"{3})", (REPOSITORY / page).read_text(), re.MULTILINE | re.DOTALL
    )

    assert read(textwrap.dedent(shown))


def test_the_shipped_gate_requires_every_published_promise_of_h200() -> None:
    required = read_requirements(REPOSITORY / "gates" / "h200.yaml", hardware="h200", engine="tensorrt-llm")

    promised = {(each.case.id, each.metric.name) for each in read_baselines(REPOSITORY / "baselines", "h200")}
    assert len(promised) > 80
    assert promised <= {(each.case, each.metric) for each in required}


def test_the_shipped_gate_requires_no_speed_that_nobody_promised() -> None:
    required = read_requirements(REPOSITORY / "gates" / "h200.yaml", hardware="h200", engine="tensorrt-llm")
    book = read_baselines(REPOSITORY / "baselines", "h200")

    promised = {(each.case.id, each.metric.name) for each in book}
    judged_otherwise = {"accuracy", "rouge1", "rouge2", "rougeL", "answer_tokens", None}
    assert {(each.case, each.metric) for each in required if each.metric not in judged_otherwise} <= promised


# --- whatever stands in the file -----------------------------------------------------------------------------------

TOKENS = st.lists(
    st.sampled_from(
        ["schema", "hardware", "count", "required", ": ", ":", "\n", "  ", "    ", "- ", "1", "0", "8", "{", "}", "[", "]",
         ", ", "&a ", "*a", "!!int ", "!!map ", "'", '"', "|", ">", "#", "---\n", "\t", "? ", "~", "\\0", "<<", "h200", "cpu",
         "model", "llama-3.1-8b", "../..", "recipe", "bf16", "layout", "tp1", "workload", "task", "text", "metric"]
    ),
    max_size=60,
).map("".join)  # fmt: skip


@st.composite
def spoiled(draw: st.DrawFn) -> str:
    """A valid file, cut off, or with up to three pieces cut out, doubled, or replaced."""
    content = text()
    if draw(st.booleans()):
        return content[: draw(st.integers(0, len(content)))]
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 30)))
        piece = draw(st.just("") | st.just(content[start:end] * 2) | st.text(max_size=4) | TOKENS)
        content = content[:start] + piece + content[end:]
    return content


@settings(max_examples=2500)
@given(st.one_of(spoiled().map(str.encode), TOKENS.map(str.encode), st.binary(), st.text().map(str.encode)))
@example(text().encode())
@example(changed("model: llama-3.1-8b", 'model: "\\0"').encode())
def test_whatever_stands_in_the_file_it_requires_as_many_results_as_it_counts(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "h200.yaml"
    path.write_bytes(content)
    try:
        required = read_requirements(path, hardware="h200", engine="tensorrt-llm")
    except DocumentError as problem:
        refused = problem
    else:
        refused = None
    if refused:
        assert str(refused).startswith(f"{path}:{refused.line}: ")
        return
    assert len(required) == yaml.load(content.decode(), Loader=yaml.CSafeLoader)["count"] >= 1
    # A pass of one case is never all that a file of more asks for.
    assert decide([record(result())], required=required).releasable == (
        {(each.case, each.metric) for each in required}
        == {(f"{MODEL}/modelopt-fp8/tp1/max-throughput-128-128", "output_throughput")}
    )
