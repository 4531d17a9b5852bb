"""Promises: strictly read, found by case and metric, and the published ones as published."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import KEY, case, measured, promise
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pytest_llamaperf.baselines import LOCAL, Baseline, BaselineBook, read_baselines, yaml_to_add
from pytest_llamaperf.errors import DocumentError
from pytest_llamaperf.measurements import Source
from pytest_llamaperf.metrics import OUTPUT_THROUGHPUT, TPOT_P99, TTFT_P99, metric_named, metric_names

SHIPPED = Path(__file__).parents[1] / "baselines"
PUBLISHED = "{value: 27911.0, unit: tok/s, tolerance: 0.1, source: published, reference: overview}"
MEASURED = (
    "{value: 27911.0, unit: tok/s, tolerance: 0.1, source: measured, "
    'recorded: {date: "2026-11-22", version: "1.2.1", restarts: 5, commit: "3f9c1e7"}, note: " after the fix "}'
)


def text(entry: str = PUBLISHED, key: str = KEY, metric: str = "output_throughput", references: str = "") -> str:
    """A baseline file of one promise, which stands in line 6."""
    named = references or ("{overview: perf-overview.md}" if "reference:" in entry else "{}")
    return f"schema: 1\n# a comment\nreferences: {named}\npromises:\n  {key}:\n    {metric}: {entry}\n"


def changed(old: str, new: str) -> str:
    assert PUBLISHED.count(old) == 1
    return text(PUBLISHED.replace(old, new))


Books = Callable[..., BaselineBook]


@pytest.fixture
def book(tmp_path: Path) -> Books:
    """Writes files by name into the folder of H200 and reads them all."""

    def read(content: str | bytes = text(), **others: str) -> BaselineBook:
        folder = tmp_path / "h200"
        folder.mkdir(exist_ok=True)
        (folder / "llama-3.1-8b.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        for name, other in others.items():
            (folder / f"{name}.yaml").write_text(other)
        return read_baselines(tmp_path, "h200")

    return read


def test_a_published_promise_is_read_with_its_reference_and_place(book: Books, tmp_path: Path) -> None:
    (it,) = book()

    assert (it.case, it.metric, it.value, it.tolerance) == (case(), OUTPUT_THROUGHPUT, 27911.0, 0.1)
    assert (it.source, it.reference, dict(it.recorded), it.note) == (Source.PUBLISHED, "perf-overview.md", {}, "")
    assert it.place == f"{tmp_path}/h200/llama-3.1-8b.yaml:6"


def test_a_measured_promise_is_read_with_its_record(book: Books) -> None:
    (it,) = book(text(MEASURED))

    assert (it.source, it.reference, it.note) == (Source.MEASURED, "", "after the fix")
    assert it.recorded == {"date": "2026-11-22", "version": "1.2.1", "restarts": "5", "commit": "3f9c1e7"}


def test_a_promise_becomes_plain_values() -> None:
    assert promise(463.1, 0.1).to_dict() == {
        "value": 463.1, "tolerance": 0.1, "source": "published", "reference": "perf-overview.md", "recorded": {},
        "file": "baselines/h200/llama-3.1-8b.yaml", "line": 7,
    }  # fmt: skip


def test_the_limit_lies_on_the_worse_side() -> None:
    assert promise(100.0, 0.25).limit == 75.0
    assert promise(100.0, 0.25, TTFT_P99).limit == 125.0
    assert promise(1.5, 0.25, TTFT_P99.versus("pp8")).limit == 1.125  # times better: more is better
    assert promise(100.0, 0.0).limit == 100.0


def test_hardware_without_a_folder_has_no_promises(tmp_path: Path) -> None:
    assert list(read_baselines(tmp_path, "b200")) == []


def test_a_case_or_metric_without_promise_is_not_found(book: Books) -> None:
    it = book()

    assert it.find(case(), OUTPUT_THROUGHPUT) is not None
    assert it.find(case(), TTFT_P99) is None
    assert it.find(case(), OUTPUT_THROUGHPUT.versus("bf16")) is None
    assert it.find(case(KEY.replace("128-128", "128-129")), OUTPUT_THROUGHPUT) is None


def test_what_was_published_for_tensorrt_llm_holds_for_trtllm_bench_and_no_other_engine(book: Books) -> None:
    it = book()

    assert it.find(case(KEY.replace("tensorrt-llm", "trtllm-bench")), OUTPUT_THROUGHPUT) is it.find(
        case(), OUTPUT_THROUGHPUT
    )
    assert it.find(case(KEY.replace("tensorrt-llm", "torch")), OUTPUT_THROUGHPUT) is None


def test_what_was_measured_with_one_engine_holds_for_that_engine_only(book: Books) -> None:
    it = book(text(MEASURED))

    assert it.find(case(), OUTPUT_THROUGHPUT) is not None
    assert it.find(case(KEY.replace("tensorrt-llm", "trtllm-bench")), OUTPUT_THROUGHPUT) is None


def test_what_was_published_for_trtllm_bench_does_not_hold_for_the_llm_api(book: Books) -> None:
    it = book(text(key=KEY.replace("tensorrt-llm", "trtllm-bench")))

    assert it.find(case(), OUTPUT_THROUGHPUT) is None


def test_an_engine_prefers_its_own_promise(book: Books) -> None:
    own_key = KEY.replace("tensorrt-llm", "trtllm-bench")
    own = MEASURED.replace("27911.0", "30000.0")

    it = book(text() + f"  {own_key}:\n    output_throughput: {own}\n")

    found = it.find(case(own_key), OUTPUT_THROUGHPUT)
    assert found is not None
    assert found.value == 30000.0


def test_a_promise_belongs_into_the_file_of_its_model(book: Books, tmp_path: Path) -> None:
    assert book().path_for(case()) == tmp_path / "h200" / "llama-3.1-8b.yaml"


AT_METRIC = f"{KEY}, output_throughput: "


@pytest.mark.parametrize(
    ("content", "line", "told"),
    [
        (
            changed("unit: tok/s", "unit: tok/min"), 6,
            AT_METRIC + "output_throughput is in tok/s, not 'tok/min'; convert the value and write unit: tok/s",
        ),
        (changed("value: 27911.0", "value: 0"), 6, AT_METRIC + "a promise is above zero, found 0"),
        (changed("value: 27911.0", "value: -5.5"), 6, AT_METRIC + "a promise is above zero, found -5.5"),
        (changed("value: 27911.0", "value: .nan"), 6, AT_METRIC + "'value' must be a finite number"),
        (changed("value: 27911.0", "value: 27.9e3"), 6, AT_METRIC + "'value' must be a number, found text '27.9e3'"),
        (
            changed("tolerance: 0.1", "tolerance: 1"), 6,
            AT_METRIC + "tolerance is relative (0.05 for 5 %) and below 1, found 1",
        ),
        (changed("tolerance: 0.1", "tolerance: 10"), 6, AT_METRIC + "tolerance is relative (0.05 for 5 %)"),
        (changed("tolerance: 0.1", "tolerance: -0.1"), 6, AT_METRIC + "'tolerance' must be at least 0, found -0.1"),
        (
            changed("source: published", "source: predicted"), 6,
            AT_METRIC + "source is 'predicted'; a promise is measured or published, a prediction never becomes one",
        ),
        (changed("source: published", "source: rumoured"), 6, AT_METRIC + "source is 'rumoured'; a promise is "),
        (changed(", reference: overview", ""), 6, AT_METRIC + "'reference' is missing"),
        (
            changed("reference: overview", "reference: overvew"), 6,
            AT_METRIC + "reference 'overvew' is not under `references`; did you mean 'overview'? known: overview",
        ),
        (
            changed("reference: overview", "reference: overview, recorded: {}"), 6,
            AT_METRIC + "a published value has a reference, not a record",
        ),
        (changed("tolerance", "tolerence"), 6, AT_METRIC + "unknown key 'tolerence'; did you mean 'tolerance'? known: "),
        (changed("unit: tok/s, ", ""), 6, AT_METRIC + "'unit' is missing"),
        (changed("value: 27911.0, ", ""), 6, AT_METRIC + "'value' is missing"),
        (changed("tolerance: 0.1, ", ""), 6, AT_METRIC + "'tolerance' is missing"),
        (
            text(MEASURED.replace("source:", "reference: x, source:"), references="{x: y}"), 6,
            AT_METRIC + "a measured value has a record (recorded: ...), not a reference",
        ),
        (text(MEASURED.replace(", version:", ", versoin:")), 6, f"{KEY}, output_throughput, recorded: unknown key 'versoin'"),
        (text(MEASURED.replace(', commit: "3f9c1e7"', "")), 6, f"{KEY}, output_throughput, recorded: 'commit' is missing"),
        (text(MEASURED.replace('"2026-11-22"', "2026-11-22")), 6, f"{KEY}, output_throughput, recorded: 'date' must be text"),
        (text(MEASURED.replace("restarts: 5", "restarts: 0")), 6, f"{KEY}, output_throughput, recorded: 'restarts' must be"),
        (text("{value: 1.0}", metric="output_troughput"), 6, f"{KEY}: unknown metric 'output_troughput'; did you mean "),
        (text(key=KEY.replace("modelopt", "model0pt")), 5, "unknown recipe 'model0pt-fp8'; did you mean 'modelopt-fp8'?"),
        (text(key=KEY.replace("llama-3.1-8b", "llama-3.1-9b")), 5, "unknown model 'llama-3.1-9b'; did you mean "),
        (text(key=KEY.replace("tp1", "tp3")), 5, "tp3: llama-3.1-8b has 32 attention heads and 8 KV heads"),
        (text(key=KEY.replace("tp1", "1")), 5, "unknown layout '1'; write tp8"),
        (text(key=KEY.replace("max-throughput", "max-thruput")), 5, "unknown workload 'max-thruput-128-128'"),
        (text(key=KEY.replace("tensorrt-llm", "vllm")), 5, "unknown engine 'vllm'"),
        (text(key="h200/" + KEY), 5, "a case is written engine/model/recipe/layout/workload, not "),
        (
            text(key=KEY.replace("llama-3.1-8b", "llama-3.1-70b")), 5,
            "is about llama-3.1-70b; move it to llama-3.1-70b.yaml",
        ),
        (text(references="{overview: a, other: b}"), 3, "references: reference 'other' is not used by any promise; remove it"),
        (
            text().replace("schema: 1", "schema: 2"), 1,
            "schema 2 is not known here; this version reads 1, a newer pytest-llamaperf may read it",
        ),
        (text().replace("schema: 1", "version: 1"), 1, "unknown key 'version'; "),
        (text().replace("schema: 1\n", ""), 2, "'schema' is missing"),
        ("schema: 1\n", 1, "'promises' is missing"),
        (text() + f"    output_throughput: {PUBLISHED}\n", 7, "'output_throughput' stands twice (first in line 6); remove one"),
        (text() + f"  {KEY}: {{}}\n", 7, f"'{KEY}' stands twice (first in line 5); remove one"),
    ],
)  # fmt: skip
def test_what_could_be_misread_is_refused_with_file_line_case_and_metric(
    book: Books, tmp_path: Path, content: str, line: int, told: str
) -> None:
    with pytest.raises(DocumentError) as caught:
        book(content)

    assert str(caught.value).startswith(f"{tmp_path}/h200/llama-3.1-8b.yaml:{line}: ")
    assert told in str(caught.value)


@pytest.mark.parametrize("tolerance", ["0", "0.0", "0.999"])
def test_a_tolerance_from_nothing_to_just_below_all_is_read(book: Books, tolerance: str) -> None:
    (it,) = book(changed("tolerance: 0.1", f"tolerance: {tolerance}"))

    assert it.tolerance == float(tolerance)


def test_the_same_promise_in_another_spelling_is_refused(book: Books, tmp_path: Path) -> None:
    first, second = (KEY.replace("tp1", layout) for layout in ("tp4-pp2", "pp2-tp4"))

    with pytest.raises(DocumentError) as caught:
        book(text(key=first) + f"  {second}:\n    output_throughput: {PUBLISHED}\n")

    path = f"{tmp_path}/h200/llama-3.1-8b.yaml"
    assert str(caught.value) == (f"{path}:8: {first}, output_throughput: promised already in {path}:6; remove one")


def test_a_copy_of_a_promise_in_a_second_file_is_refused(book: Books, tmp_path: Path) -> None:
    # A copy cannot pass as another model's file, so nothing can be promised twice in two files.
    with pytest.raises(DocumentError) as caught:
        book(text(), copy=text())

    assert str(caught.value) == (
        f"{tmp_path}/h200/copy.yaml:5: {KEY}: is about llama-3.1-8b; move it to llama-3.1-8b.yaml"
    )


def test_two_entries_for_one_promise_make_no_book(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"llama-3\.1-8b\.yaml:7; remove one"):
        BaselineBook(tmp_path, "h200", iter([promise(1.0), promise(2.0)]))


def test_the_same_case_may_be_promised_several_metrics(book: Books) -> None:
    ttft = "{value: 2.0, unit: s, tolerance: 0.0, source: published, reference: overview}"
    ratio = "{value: 1.16, unit: x, tolerance: 0.1, source: published, reference: overview}"

    it = book(text() + f"    ttft_p99: {ttft}\n    output_throughput vs llama-fp8: {ratio}\n")

    assert [str(entry.metric) for entry in it] == ["output_throughput", "ttft_p99", "output_throughput vs llama-fp8"]


def test_a_ratio_is_in_times_not_in_the_unit_of_its_metric(book: Books) -> None:
    with pytest.raises(DocumentError, match="is in x, not 'tok/s'"):
        book(text(metric="output_throughput vs llama-fp8"))


NOTHING = BaselineBook(Path("nowhere"), "h200", iter(()))


def filled_in(told: str) -> str:
    """The YAML of the hint, as a person completes it."""
    lines = told.partition(":\n")[2]
    return lines.replace("<today>", "2026-11-22").replace("<engine version>", "1.2.1").replace("<commit>", "3f9c1e7")


def test_the_hint_names_no_more_than_is_missing(book: Books) -> None:
    it = book(text())
    other = case("tensorrt-llm/llama-3.1-8b/modelopt-fp8/tp1/min-latency-1-1")

    assert yaml_to_add(NOTHING, case(), measured(1.0)).splitlines()[1:4] == ["schema: 1", "promises:", f"  {KEY}:"]
    assert yaml_to_add(it, other, measured(1.0)).splitlines()[1] == f"  {other.key}:"
    assert f"add under `{KEY}:` in " in yaml_to_add(it, case(), measured(1.0))
    assert yaml_to_add(it, case(), measured(1.0)).splitlines()[1].startswith("    output_throughput: {value: 1, ")


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ('date: "<today>"', "date is written like 2026-11-20, not '<today>'"),
        ('date: "yesterday"', "date is written like 2026-11-20, not 'yesterday'"),
        ('date: "2026-13-01"', "date is written like 2026-11-20"),
        ('commit: "<commit>"', "commit is written like 3f9c1e7, not '<commit>'"),
        ('version: "<engine version>"', "version is written like 1.2.1"),
        ("restarts: 1", "'restarts' must be at least 2, found 1"),
    ],
)
def test_what_the_hint_leaves_open_must_be_filled_in(book: Books, written: str, problem: str) -> None:
    name = written.partition(":")[0]
    record = re.sub(rf'{name}: ("[^"]*"|\d+)', written, MEASURED)

    with pytest.raises(DocumentError, match=re.escape(problem)):
        book(text(record))


@pytest.mark.parametrize("name", metric_names())
def test_the_yaml_we_tell_people_to_add_can_be_read_for_every_metric(book: Books, name: str) -> None:
    told = yaml_to_add(NOTHING, case(), measured(463.1, 463.1, metric=metric_named(name)))

    (it,) = book(filled_in(told))

    assert (it.case.id, it.metric.name, it.value, it.source) == (case().id, name, 463.1, Source.MEASURED)
    assert it.recorded["restarts"] == "2"


@pytest.mark.parametrize("value", [0.0000123, 2e-05, 0.05, 1.0, 999_999.0, 1e6, 8e10, 80_123_456_789.0])
def test_the_yaml_we_tell_people_to_add_can_be_read_for_any_value(book: Books, value: float) -> None:
    told = yaml_to_add(NOTHING, case(), measured(value, value))

    (it,) = book(filled_in(told))

    assert it.value == pytest.approx(value, rel=1e-5)


VALID = text(MEASURED) + f"  {KEY.replace('128-128', '128-2048')}:\n    ttft_p99: {MEASURED.replace('tok/s', 's')}\n"
TOKENS = st.lists(
    st.sampled_from(
        ["schema", "promises", "references", ": ", ":", "\n", "  ", "    ", "- ", "1", "0", "1.0", "0.1", ".inf", "{", "}",
         "[", "]", ", ", "&a ", "*a", "!!int ", "!!float ", "!!map ", "'", '"', "|", ">", "#", "%", "---\n", "\t", "? ", "~",
         "value", "unit", "tok/s", "tolerance", "source", "measured", "recorded", KEY, "output_throughput", "<<", "_", "\x85"]
    ),
    max_size=60,
).map("".join)  # fmt: skip


@st.composite
def spoiled(draw: st.DrawFn) -> str:
    """A valid file with up to three pieces cut out, doubled, or replaced."""
    content = VALID
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 20)))
        piece = draw(st.just("") | st.just(content[start:end] * 2) | st.text(max_size=8) | TOKENS)
        content = content[:start] + piece + content[end:]
    return content


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(), st.text().map(str.encode), TOKENS.map(str.encode), spoiled().map(str.encode)))
@example(VALID.encode())
@example(VALID.replace("value: 27911.0", "value: !!float _").encode())
def test_whatever_stands_in_a_file_is_a_book_or_a_document_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any" / "h200" / "llama-3.1-8b.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)

    outcome: list[Baseline] | DocumentError
    try:
        outcome = list(read_baselines(path.parents[1], "h200"))
    except DocumentError as error:
        outcome = error

    if isinstance(outcome, DocumentError):
        assert outcome.path == path
        assert 1 <= outcome.line <= len(content.decode(errors="replace").splitlines()) + 1
        assert str(outcome).startswith(f"{path}:{outcome.line}: ")
    else:
        assert all(entry.value > 0 and 0 <= entry.tolerance < 1 and entry.limit > 0 for entry in outcome)
        assert all(entry.case.model.name == "llama-3.1-8b" for entry in outcome)


# What --record wrote on this machine lies beside them, and is nothing that ships.
SHIPPED_FILES = sorted(path for path in SHIPPED.glob("*/*.yaml") if path.parent.name != LOCAL)


@pytest.mark.parametrize("path", SHIPPED_FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_shipped_file_can_be_read_and_holds_published_values_only(path: Path) -> None:
    entries = [entry for entry in read_baselines(SHIPPED, path.parent.name) if entry.path == path]

    assert entries
    assert {entry.source for entry in entries} == {Source.PUBLISHED}
    assert all(entry.reference for entry in entries)


def test_the_shipped_files_are_there() -> None:
    # Were the folder moved, the test above would have no cases and pass.
    assert len(SHIPPED_FILES) >= 8


B405 = "tensorrt-llm/llama-3.1-405b"


@pytest.mark.parametrize(
    ("workload", "modelopt", "official", "ratio"),
    [
        ("max-throughput-2048-128", 463.1, 399.9, 1.16),
        ("max-throughput-32768-2048", 320.1, 230.8, 1.39),
        ("max-throughput-120000-2048", 71.5, 49.6, 1.44),
        ("min-latency-2048-128", 49.6, 37.4, 1.33),
        ("min-latency-32768-2048", 44.2, 33.1, 1.33),
        ("min-latency-120000-2048", 27.2, 22.8, 1.19),
    ],
)
def test_modelopt_and_official_fp8_of_405b_on_h200_are_promised_as_published(
    workload: str, modelopt: float, official: float, ratio: float
) -> None:
    shipped = read_baselines(SHIPPED, "h200")

    def promised(recipe: str, metric: str = "output_throughput") -> float | None:
        found = shipped.find(case(f"{B405}/{recipe}/tp8/{workload}"), metric_named(metric))
        return found.value if found else None

    assert promised("modelopt-fp8") == modelopt
    assert promised("llama-fp8") == official
    assert promised("modelopt-fp8", "output_throughput vs llama-fp8") == ratio
    # The ratio is that of the two levels, but for the rounding of all three.
    assert ratio == pytest.approx(modelopt / official, abs=0.011)


@pytest.mark.parametrize(
    ("hardware", "key", "metric", "value"),
    [
        ("h200", f"{B405}/modelopt-fp8/tp8/min-latency-2048-128", "output_throughput vs pp8", 5.6),
        ("h200", f"{B405}/modelopt-fp8/pp8/max-throughput-2048-128", "output_throughput vs tp8", 1.5),
        ("h200", "tensorrt-llm/llama-2-70b/modelopt-fp8/dp8/max-throughput-openorca", "output_throughput", 31302.7),
        ("h200", "tensorrt-llm/llama-2-70b/modelopt-fp8/dp8/rate-100.35-openorca", "output_throughput", 29228.22),
        ("h100", "tensorrt-llm/llama-2-70b/modelopt-fp8/tp2-dp4/max-throughput-openorca", "output_throughput", 24524.9),
        (
            "h100",
            "tensorrt-llm/llama-2-70b/modelopt-fp8/pp8/max-throughput-openorca",
            "output_throughput",
            1.2 * 24524.9,
        ),
    ],
)
def test_parallelism_and_mlperf_are_promised_as_published(hardware: str, key: str, metric: str, value: float) -> None:
    found = read_baselines(SHIPPED, hardware).find(case(key, hardware), metric_named(metric))

    assert found is not None
    assert found.value == pytest.approx(value, rel=1e-9)


def test_the_latency_limits_of_mlperf_have_no_tolerance() -> None:
    shipped = read_baselines(SHIPPED, "h200")
    server = case("tensorrt-llm/llama-2-70b/modelopt-fp8/dp8/rate-100.35-openorca")

    found = [shipped.find(server, metric) for metric in (TTFT_P99, TPOT_P99)]

    assert [entry and (entry.value, entry.limit) for entry in found] == [(2.0, 2.0), (0.2, 0.2)]


def test_shipped_promises_hold_for_trtllm_bench_as_well() -> None:
    shipped = read_baselines(SHIPPED, "h200")
    sample = random.Random(0).sample(list(shipped), 10)

    for entry in sample:
        benched = case(entry.case.key.replace("tensorrt-llm/", "trtllm-bench/"))
        assert shipped.find(benched, entry.metric) is entry


def test_a_promise_for_weights_that_do_not_fit_is_refused(book: Books) -> None:
    with pytest.raises(DocumentError, match=r"llama-3\.1-405b\.yaml:5: .*756\.0 GiB of weights on each GPU"):
        book(**{"llama-3.1-405b": text(key="tensorrt-llm/llama-3.1-405b/bf16/tp1/min-latency-128-128")})
