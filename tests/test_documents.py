"""What a YAML file may not say, and that every refusal names file and line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_llamaperf.documents import Section, read_document
from pytest_llamaperf.errors import DocumentError


@pytest.fixture
def document(tmp_path: Path) -> Callable[[str | bytes], Section]:
    def read(text: str | bytes) -> Section:
        path = tmp_path / "file.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_document(path)

    return read


Document = Callable[[str | bytes], Section]


def refusal(read: Callable[[], object]) -> DocumentError:
    with pytest.raises(DocumentError) as caught:
        read()
    error = caught.value
    place = f"{error.path}" if error.line is None else f"{error.path}:{error.line}"
    assert str(error).startswith(f"{place}: ")
    return error


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "'a' stands twice (first in line 1); remove one"),
        ("# a comment\n\na: &x {b: 1}\nc: *x\n", 3, "is used again through an alias (*name); write it out"),
        ("a: *x\n", 1, "is not YAML: "),
        ("a: 1\n<<: {b: 1}\n", 2, "the key '<<' is read as the YAML tag tag:yaml.org,2002:merge; put quotes around it"),
        ("a: 1\non: 2\n", 2, "the key 'on' is read as true or false; put quotes around it"),
        ("a: 1\n8: 2\n", 2, "the key '8' is read as a whole number; put quotes around it"),
        ("a: 1\n1.0: 2\n", 2, "the key '1.0' is read as a number; put quotes around it"),
        ("~: 1\n", 1, "the key '~' is read as nothing; put quotes around it"),
        ("a: 1\n[b]: 2\n", 2, "the key 'a list' is read as a list; put quotes around it"),
        ("", 1, "must be a mapping, found nothing"),
        ("# only a comment\n", 1, "must be a mapping, found nothing"),
        ("- a\n- b\n", 1, "must be a mapping, found a list"),
        ("words\n", 1, "must be a mapping, found text"),
        ("a: 1\nb: c: d\n", 2, "is not YAML: "),
        ("a: 1\n\tb: 1\n", 2, "is not YAML: "),
        ("a: 1\nb: {c: 1\nd: 2\n", 3, "is not YAML: "),
        ("a: 1\n---\nb: 1\n", 2, "is not YAML: "),
        (b"a: 1\nb: \xff\n", 2, "is not UTF-8 text"),
        (b"\xff\xfea\x00:\x00 \x001\x00", 1, "is not UTF-8 text"),
        ("a: \x00\n", 1, "is not YAML: "),
    ],
)
def test_a_file_that_could_be_misread_is_refused(
    document: Document, tmp_path: Path, text: str | bytes, line: int, problem: str
) -> None:
    error = refusal(lambda: document(text))

    assert (error.path, error.line) == (tmp_path / "file.yaml", line)
    assert error.problem.startswith(problem)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    error = refusal(lambda: read_document(tmp_path / "none.yaml"))

    assert str(error) == f"{tmp_path / 'none.yaml'}: cannot be read: No such file or directory"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert refusal(lambda: read_document(tmp_path)).problem == "cannot be read: Is a directory"


def test_a_byte_order_mark_is_no_part_of_the_first_key(document: Document) -> None:
    assert list(document(b"\xef\xbb\xbfa: 1\n")) == ["a"]


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        (".nan", "'a' must be a finite number written in decimals, found .nan"),
        (".inf", "'a' must be a finite number written in decimals, found .inf"),
        ("-.INF", "'a' must be a finite number written in decimals, found -.INF"),
        ("1.0e+400", "'a' must be a finite number written in decimals, found 1.0e+400"),
        ("1:30", "'a' must be a finite number written in decimals, found 1:30"),
        ("0x10", "'a' must be a finite number written in decimals, found 0x10"),
        ("0b11", "'a' must be a finite number written in decimals, found 0b11"),
        ("1e5", "'a' must be a number, found text '1e5'"),
        ("463,1", "'a' must be a number, found text '463,1'"),
        ("463.1 tok/s", "'a' must be a number, found text '463.1 tok/s'"),
        ("'463.1'", "'a' must be a number, found text '463.1'"),
        ("2026-11-22", "'a' must be a number, found a date (put quotes around it) '2026-11-22'"),
        ("yes", "'a' must be a number, found true or false 'yes'"),
        ("", "'a' must be a number, found nothing"),
        ("[1]", "'a' must be a number, found a list"),
        ("{b: 1}", "'a' must be a number, found a mapping"),
        ("!!float ''", "'a' must be a finite number written in decimals"),
        ("!!float abc", "'a' must be a finite number written in decimals, found abc"),
        ("!!int _", "'a' must be a finite number written in decimals, found _"),
    ],
)
def test_what_is_no_number_is_refused_as_one(document: Document, written: str, problem: str) -> None:
    section = document(f"b: 1\na: {written}\n")

    error = refusal(lambda: section.number("a"))

    assert error.line == 2
    assert error.problem.startswith(problem)


@pytest.mark.parametrize(
    ("written", "value"),
    [("463.1", 463.1), ("7", 7.0), ("-2.5", -2.5), ("+1", 1.0), ("4.8e+12", 4.8e12), ("80_000.5", 80000.5), ("0", 0.0)],
)
def test_numbers_in_decimals_are_read(document: Document, written: str, value: float) -> None:
    assert document(f"a: {written}\n").number("a") == value


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("1.0", "'a' must be a whole number, found a number '1.0'"),
        ("0x10", "'a' must be a whole number written in decimals, found 0x10"),
        ("1:30", "'a' must be a whole number written in decimals, found 1:30"),
        ("'3'", "'a' must be a whole number, found text '3'"),
        ("true", "'a' must be a whole number, found true or false 'true'"),
        ("-1", "'a' must be at least 0, found -1"),
        ("!!int ''", "'a' must be a whole number written in decimals"),
        pytest.param("9" * 5000, "'a' must be", id="5,000 digits"),
    ],
)
def test_what_is_no_whole_number_is_refused_as_one(document: Document, written: str, problem: str) -> None:
    section = document(f"b: 1\na: {written}\n")

    error = refusal(lambda: section.whole("a"))

    assert error.line == 2
    assert error.problem.startswith(problem)


@pytest.mark.parametrize(("written", "value"), [("0", 0), ("12", 12), ("8_000_000", 8_000_000)])
def test_whole_numbers_are_read(document: Document, written: str, value: int) -> None:
    assert document(f"a: {written}\n").whole("a") == value


def test_a_number_with_a_leading_zero_is_not_read_two_ways(document: Document) -> None:
    # YAML 1.1 reads 010 as 8, YAML 1.2 and most people as 10.
    section = document("a: 010\n")

    assert "written in decimals" in refusal(lambda: section.whole("a")).problem
    assert "written in decimals" in refusal(lambda: section.number("a")).problem


def test_limits_of_numbers_include_the_limit(document: Document) -> None:
    section = document("a: 2\nb: 1.5\n")

    assert section.whole("a", least=2) == 2
    assert section.number("b", least=1.5) == 1.5
    assert refusal(lambda: section.whole("a", least=3)).problem == "'a' must be at least 3, found 2"
    assert refusal(lambda: section.number("b", least=1.6)).problem == "'b' must be at least 1.6, found 1.5"


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("2026-11-22", "'a' must be text, found a date (put quotes around it) '2026-11-22'"),
        ("on", "'a' must be text, found true or false 'on'"),
        ("123", "'a' must be text, found a whole number '123'"),
        ("1.2", "'a' must be text, found a number '1.2'"),
        ("", "'a' must be text, found nothing"),
        ("!secret x", "'a' must be text, found the YAML tag !secret 'x'"),
        ("' '", "'a' is empty"),
        ("[x]", "'a' must be text, found a list"),
    ],
)
def test_what_is_no_text_is_refused_as_one(document: Document, written: str, problem: str) -> None:
    section = document(f"b: 1\na: {written}\n")

    error = refusal(lambda: section.text("a"))

    assert (error.line, error.problem) == (2, problem)


def test_quoted_text_is_text_whatever_it_looks_like(document: Document) -> None:
    assert document("a: '2026-11-22'\n").text("a") == "2026-11-22"
    assert document('a: "1"\n').text("a") == "1"


def test_a_list_of_texts_holds_nothing_else(document: Document) -> None:
    assert document("a: [x, 'y z']\n").texts("a") == ("x", "y z")
    assert document("b: 1\n").texts("a") == ()
    for written in ("x", "[1]", "[x, on]", "{x: y}"):
        section = document(f"b: 1\na: {written}\n")
        error = refusal(lambda s=section: s.texts("a"))  # type: ignore[misc]
        assert (error.line, error.problem) == (2, "'a' must be a list of texts")


@pytest.mark.parametrize(
    ("written", "value"), [("true", True), ("yes", True), ("ON", True), ("false", False), ("no", False)]
)
def test_flags_are_read(document: Document, written: str, value: bool) -> None:
    assert document(f"a: {written}\n").flag("a", default=not value) is value


def test_a_flag_is_true_or_false_and_nothing_else(document: Document) -> None:
    section = document("a: maybe\n")

    assert refusal(lambda: section.flag("a", default=True)).problem == "'a' must be true or false, found text 'maybe'"
    assert section.flag("b", default=True) is True


def test_an_absent_key_has_its_default_or_is_missed_by_name(document: Document) -> None:
    section = document("x:\n  b: 1\n").section("x")

    assert (section.text("a", "z"), section.number("a", 1.5), section.whole("a", 3)) == ("z", 1.5, 3)
    for read in (section.text, section.number, section.whole, section.section):
        error = refusal(lambda read=read: read("a"))  # type: ignore[misc]
        assert (error.line, error.where, error.problem) == (2, "x", "'a' is missing")


def test_an_unknown_key_is_answered_with_the_nearest_one(document: Document) -> None:
    section = document("value: 1\ntolerence: 0.1\n")

    section.only("value", "tolerence")
    error = refusal(lambda: section.only("value", "unit", "tolerance"))

    assert error.line == 2
    assert error.problem == ("unknown key 'tolerence'; did you mean 'tolerance'? known: tolerance, unit, value")


def test_errors_in_nested_sections_say_the_way_to_them(document: Document, tmp_path: Path) -> None:
    inner = document("a:\n  b:\n    c: x\n").section("a").section("b")

    error = refusal(lambda: inner.number("c"))

    assert str(error) == f"{tmp_path / 'file.yaml'}:3: a, b: 'c' must be a number, found text 'x'"


def test_a_duplicate_in_a_nested_section_is_found_when_it_is_read(document: Document) -> None:
    outer = document("a:\n  b: 1\n  c: 2\n  b: 3\n")

    error = refusal(lambda: outer.section("a"))

    assert (error.line, error.where) == (4, "a")
    assert error.problem == "'b' stands twice (first in line 2); remove one"


def test_a_scalar_is_no_section(document: Document) -> None:
    section = document("a: 1\n")

    assert refusal(lambda: section.section("a")).problem == "'a' must be a mapping, found a whole number"


def test_a_section_lists_its_keys_with_their_lines(document: Document) -> None:
    section = document("# comment\na: {x: 1}\n\nb: {y: 2}\n")

    assert list(section) == ["a", "b"]
    assert [name for name, _ in section.sections()] == ["a", "b"]
    assert (section.line_of("b"), section.line) == (4, 2)
    assert "a" in section
    assert "c" not in section


def test_deep_nesting_is_refused_and_does_not_kill_the_process(tmp_path: Path) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text("a: " + "[" * 100_000)
    program = (
        "import sys, pathlib\n"
        "from pytest_llamaperf.documents import read_document\n"
        "from pytest_llamaperf.errors import DocumentError\n"
        "try: read_document(pathlib.Path(sys.argv[1]))\n"
        "except DocumentError: print('refused')\n"
    )

    # In a process of its own: the C parser overruns the stack, which nothing in Python can catch.
    ended = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=60, check=False
    )

    assert (ended.returncode, ended.stdout) == (0, "refused\n")
