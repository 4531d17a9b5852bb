"""What becomes of files: cut off, flipped, edited by hand, written by something else. Strategies of hypothesis for the content.

`LLAMAPERF_FUZZ=50` makes fifty times as many inputs, and other ones every time.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

TIMES = int(os.environ.get("LLAMAPERF_FUZZ", "1"))


def fuzzed(inputs: int) -> Callable[[Any], Any]:
    """So many inputs: in CI the same every time, as all examples of these tests are."""
    return settings(
        max_examples=inputs * TIMES,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
        **({"derandomize": False} if TIMES > 1 else {}),
    )


# --- bytes ---------------------------------------------------------------------------------------------------------

_BOM = b"\xef\xbb\xbf"
_ENCODINGS = ("utf-16", "utf-32", "utf-16-le", "cp500", "utf-7")
_PIECES = (
    b"",
    b"\x00",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\r",
    b"\n",
    b"\x85",
    b"\t",
    b"\x1b[2J",
    b'"',
    b"'",
    b"\\",
    b"{",
    b"[",
)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """As disks, transfers and editors do it."""
    kind = draw(
        st.sampled_from(("cut", "head", "flip", "flip", "flip", "splice", "splice", "written again", "nothing left"))
    )
    match kind:
        case "cut":
            return content[: draw(st.integers(0, len(content)))]
        case "head":
            return content[draw(st.integers(0, len(content))) :]
        case "flip":
            flipped = bytearray(content)
            for _ in range(draw(st.integers(1, 3)) if content else 0):
                flipped[draw(st.integers(0, len(content) - 1))] ^= 1 << draw(st.integers(0, 7))
            return bytes(flipped)
        case "splice":
            start = draw(st.integers(0, len(content)))
            end = min(len(content), start + draw(st.integers(0, 60)))
            piece = draw(st.sampled_from(_PIECES) | st.just(content[start:end] * 2) | st.binary(max_size=8))
            return content[:start] + piece + content[end:]
        case "written again":
            text = content.decode(errors="replace")
            return draw(
                st.sampled_from(
                    (
                        _BOM + content,
                        content.replace(b"\n", b"\r\n"),
                        content.replace(b"\n", b"\r"),
                        b"\x00" * len(content),
                        content * 2,
                        *(text.encode(name, "replace") for name in _ENCODINGS),
                    )
                )
            )
    return draw(
        st.sampled_from((b"", b"\n", b"\x00", _BOM)) | st.binary(max_size=50) | st.text(max_size=50).map(str.encode)
    )


# --- JSON ----------------------------------------------------------------------------------------------------------

# As they stand in a file: what Python writes unasked, what no float holds, what no screen and no codec takes.
_HOSTILE = (
    "null", "true", "false", "0", "-0.0", "-1", "1", "2", "0.5", "1e-320", "1e308", "1e999", "-1e999", "NaN", "Infinity",
    "9" * 400, "9" * 5000, '""', '"x"', '"0"', '"NaN"', '"1e999"', '"\\ud800"', '"\\u0000"', '"\\u001b[2J"', '"\\u202e"',
    '"../../etc/passwd"', '"~nobody-here"', '"' + "a" * 5000 + '"', "[]", "{}", "[null]", '[""]', "[[]]", "[{}]", "[1e999]",
    '[1,"a"]', '{"a":1,"a":2}', '{"":null}', '{"\\ud800":1}', "[" * 60 + "]" * 60, "[" * 4_000 + "]" * 4_000,
    '{"a":' * 60 + "1" + "}" * 60,
)  # fmt: skip
_HOLE = "the-hole-of-this-document"


@st.composite
def damaged_json(draw: st.DrawFn, document: Any) -> bytes:
    """Valid as far as possible: a value or two of other kinds, keys that are gone, doubled, or called something else."""
    changed = copy.deepcopy(document)
    pieces = []
    for _ in range(draw(st.integers(1, 2))):
        places = list(_places(changed))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(("value", "value", "value", "gone", "renamed", "doubled", "swapped"))):
            case "value":
                holder[key] = f"{_HOLE}{len(pieces)}"
                pieces.append(draw(st.sampled_from(_HOSTILE) | _small()))
            case "gone":
                del holder[key]
            case "renamed" if isinstance(holder, dict):
                holder[draw(st.sampled_from(("", "Schema", "value", "\x00", key + "s")))] = holder.pop(key)
            case "doubled" if isinstance(holder, list):
                holder.append(holder[key])
            case "doubled":  # the same name twice: the hole closes its text and opens another one
                pieces.append(f"{json.dumps(holder[key])}, {json.dumps(key)}: {draw(st.sampled_from(_HOSTILE))}")
                holder[key] = f"{_HOLE}{len(pieces) - 1}"
            case _:
                other, place = draw(st.sampled_from(places))
                holder[key] = copy.deepcopy(other[place]) if _depth(other[place]) < 20 else None
    text = json.dumps(changed, ensure_ascii=draw(st.booleans()))
    for number, piece in enumerate(pieces):
        text = text.replace(f'"{_HOLE}{number}"', piece, 1)
    return text.encode("utf-8", "surrogatepass")


def _small() -> st.SearchStrategy[str]:
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    return st.recursive(scalars, lambda inner: st.lists(inner, max_size=2), max_leaves=3).map(json.dumps)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each value within, as what holds it and its key."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)


# --- YAML ----------------------------------------------------------------------------------------------------------

_LAUGHS = (
    "["
    + "&a [x, x], "
    + ", ".join(f"&{n} [{', '.join([f'*{m}'] * 9)}]" for m, n in zip("abcdefgh", "bcdefghi", strict=True))
    + "]"
)
_SCALARS = (
    "~", "null", "true", "on", "0", "-0", "-1", "1", "2", "1.0", "0.999", "1.", ".5", "+1", "1_0", "0x1F", "010", "1:30",
    "1e5", "1e999", ".inf", "-.inf", ".nan", "9" * 400, "9" * 5000, "0." + "9" * 400, "2026-11-20", '""', "''", '"0.1"',
    '"\\0"', '"\\e[2J"', '"\\ud800"', '"\\uD83D\\uDE00"', "!!float _", "!!float 1", "!!int '1'", "!!str 1", "!!binary aGk=",
    "!!python/object/apply:os.system [true]", "!x y", "&a 1", "*a", "<<: {}", "[]", "{}", "[1]", "{a: 1}", "|\n      x", "> x",
    "? x", "- x", "[" * 60 + "]" * 60, "[" * 3000, "{a: " * 200, _LAUGHS, "x: y: z", "#", "%YAML 9.9", "---", "...", "\u2028",
)  # fmt: skip
_SCALAR = re.compile(r"(?<=: )[^{\[\s][^,}\n]*|(?<=: )[\[{]|^\s*[^\s:#]+(?=:)", re.MULTILINE)


@st.composite
def damaged_yaml(draw: st.DrawFn, text: str) -> bytes:
    """As people edit: a value or a key is another one, a line is gone, twice there, elsewhere, or further in."""
    for _ in range(draw(st.integers(1, 2))):
        lines = text.split("\n")
        number = draw(st.integers(0, len(lines) - 1))
        match draw(
            st.sampled_from(("value", "value", "value", "value", "gone", "doubled", "moved", "further in", "cut"))
        ):
            case "value":
                found = list(_SCALAR.finditer(text))
                if found:
                    place = draw(st.sampled_from(found))
                    others = st.sampled_from([each.group().strip() for each in found])
                    piece = draw(st.sampled_from(_SCALARS) | others | st.floats().map(str) | st.text(max_size=4))
                    text = text[: place.start()] + piece + text[place.end() :]
                continue
            case "gone":
                del lines[number]
            case "doubled":
                lines.insert(number, lines[number])
            case "moved":
                lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(number))
            case "further in":
                lines[number] = draw(st.sampled_from((" ", "  ", "\t", "- ", "# "))) + lines[number]
            case "cut":
                lines[number] = lines[number][: draw(st.integers(0, len(lines[number])))]
        text = "\n".join(lines)
    return text.encode("utf-8", "surrogatepass")


def yaml_of(text: str) -> st.SearchStrategy[bytes]:
    """What may stand in a YAML file of people instead of this."""
    content = text.encode()
    return damaged_yaml(text) | damaged_yaml(text) | damaged(content) | damaged_yaml(text).flatmap(damaged)


def json_of(document: Any) -> st.SearchStrategy[bytes]:
    """What may stand in a JSON file of a program instead of this."""
    return damaged_json(document) | damaged_json(document) | damaged(json.dumps(document).encode())
