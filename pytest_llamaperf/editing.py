"""YAML text with a few things in it changed, and every other byte as it was.

Positions of the parser say where a value stands. Libraries that write a parsed file again keep comments, but not where
people broke the lines of `{...}`, nor how they aligned and quoted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import yaml


@dataclass(frozen=True)
class Edit:
    """`text` takes the place of what stands from `start` to `end`, which count characters."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Pair:
    """A key with its value, and the mapping they stand in; `number` counts from 0."""

    mapping: yaml.MappingNode
    number: int
    key: yaml.ScalarNode
    value: yaml.Node

    @property
    def inner(self) -> yaml.MappingNode:
        """The value, of which the caller knows that it is a mapping."""
        assert isinstance(self.value, yaml.MappingNode)
        return self.value

    @property
    def column(self) -> int:
        """Where lines that go on with the value begin: below its first key, or two columns from this one's."""
        value = self.inner
        if value.value and value.start_mark.line != self.key.start_mark.line:
            return column_of(value)
        return int(self.key.start_mark.column) + 2


def composed(text: str) -> yaml.MappingNode:
    """The parsed text, of which the caller knows that the strict loader reads it."""
    root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    assert isinstance(root, yaml.MappingNode)
    return root


def pairs(mapping: yaml.MappingNode) -> Iterator[Pair]:
    for number, (key, value) in enumerate(mapping.value):
        yield Pair(mapping, number, key, value)


def pair_named(mapping: yaml.MappingNode, name: str) -> Pair | None:
    return next((pair for pair in pairs(mapping) if pair.key.value == name), None)


def column_of(mapping: yaml.MappingNode) -> int:
    """Of its first key."""
    return int(mapping.value[0][0].start_mark.column)


def edited(text: str, edits: Iterable[Edit]) -> str:
    """Edits do not overlap; what is added at one place comes in the order it is given in. Line ends stay what they are."""
    newline = "\r\n" if "\r\n" in text else "\n"
    parts: list[str] = []
    position = 0
    for edit in sorted(edits, key=lambda edit: edit.start):
        parts += [text[position : edit.start], edit.text.replace("\n", newline)]
        position = edit.end
    return "".join([*parts, text[position:]])


def replaced(node: yaml.Node, text: str) -> Edit:
    """Another value in the place of a scalar or of a mapping in braces."""
    return Edit(node.start_mark.index, node.end_mark.index, text)


def replaced_pair(text: str, pair: Pair, other: str, column: int) -> Edit:
    """Another key and value in the place of a pair; in braces, on a line of its own where the pair shared one."""
    start = pair.key.start_mark.index
    gap = len(text[:start]) - len(text[:start].rstrip(" "))
    alone = not pair.mapping.flow_style or text[: start - gap][-1:] != ","
    if alone:
        return Edit(start, _end(pair.value), other)
    return Edit(start - gap, _end(pair.value), f"\n{' ' * column}{other}")


def added(text: str, mapping: yaml.MappingNode, others: Sequence[str], column: int, after: int = -1) -> Edit:
    """More pairs behind the one of number `after`, the last if it is -1, each on a line of its own.

    In braces they come right behind its value, and otherwise behind its last line, comment included.
    """
    lines = [f"\n{' ' * column}{other}" for other in others]
    if not mapping.value:
        start = mapping.start_mark.index + 1
        return Edit(start, start, ",".join(lines))
    end = _end(mapping.value[after][1])
    if mapping.flow_style:
        return Edit(end, end, "".join(f",{line}" for line in lines))
    end += len(re.split(r"\r?\n", text[end:], maxsplit=1)[0])
    return Edit(end, end, "".join(lines))


def removed(text: str, pair: Pair) -> Edit:
    """A pair of several in a mapping, with the comma or the lines that were its own."""
    start, end = pair.key.start_mark.index, _end(pair.value)
    if not pair.mapping.flow_style:
        return Edit(text.rfind("\n", 0, start) + 1, text.find("\n", end) + 1 or len(text), "")
    if pair.number + 1 < len(pair.mapping.value):
        return Edit(start, pair.mapping.value[pair.number + 1][0].start_mark.index, "")
    return Edit(_end(pair.mapping.value[pair.number - 1][1]), end, "")


def _end(node: yaml.Node) -> int:
    """Of what is written: the parser ends a mapping without braces only where the next thing begins."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style:
        return _end(node.value[-1][1])
    return int(node.end_mark.index)
