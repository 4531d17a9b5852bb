"""Strict reading of the YAML files people write: every refusal names file and line.

PyYAML parses; this module only refuses what a reviewer could misread: duplicate keys, aliases, unknown keys, a
word where a number belongs, NaN, and what YAML 1.1 silently turns into something else (`on`, dates, `1e5`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from pytest_llamaperf.errors import DocumentError, nearest

# The parser in C is ten times faster; PyYAML wheels have it, a source build may not.
_Loader: type[yaml.SafeLoader | yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_KINDS = {
    "tag:yaml.org,2002:str": "text",
    "tag:yaml.org,2002:int": "a whole number",
    "tag:yaml.org,2002:float": "a number",
    "tag:yaml.org,2002:bool": "true or false",
    "tag:yaml.org,2002:null": "nothing",
    "tag:yaml.org,2002:timestamp": "a date (put quotes around it)",
    "tag:yaml.org,2002:map": "a mapping",
    "tag:yaml.org,2002:seq": "a list",
}


# Decimals only: YAML 1.1 also knows 0x1F, 010 (which is 8), 1:30 (which is 90) and .inf.
_WHOLE = r"[-+]?(0|[1-9][0-9_]{0,24})"
_DECIMAL = rf"{_WHOLE}(\.[0-9_]*)?([eE][-+]?[0-9]{{1,3}})?"

# The parser in C calls itself for every level, and a file of brackets alone would end the process.
_DEEPEST = 50


class Section:
    """One mapping of a YAML file, with the way to it for error messages."""

    def __init__(self, path: Path, node: yaml.MappingNode, where: str = "") -> None:
        self.path = path
        self.where = where
        self.line = node.start_mark.line + 1
        self._entries: dict[str, tuple[int, yaml.Node]] = {}
        for key, value in node.value:
            name = self._key(key)
            if name in self._entries:
                first = self._entries[name][0]
                raise self.error(f"{name!r} stands twice (first in line {first}); remove one", key)
            self._entries[name] = (key.start_mark.line + 1, value)

    def error(self, problem: str, node: yaml.Node | int | None = None, *, key: str = "") -> DocumentError:
        """The error to raise about this section, or about `key` or a node in it."""
        if isinstance(node, yaml.Node):
            line = node.start_mark.line + 1
        else:
            line = node or (self._entries[key][0] if key in self._entries else self.line)
        return DocumentError(self.path, line, problem, where=self.where)

    def only(self, *allowed: str) -> None:
        """Refuse every key that is not in `allowed`."""
        for name in self._entries:
            if name not in allowed:
                raise self.error(f"unknown key {name!r}; {nearest(name, allowed)}", key=name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def line_of(self, key: str) -> int:
        return self._entries[key][0]

    def section(self, key: str, where: str = "") -> Section:
        node = self._node(key)
        if not isinstance(node, yaml.MappingNode):
            raise self.error(f"{key!r} must be a mapping, found {_kind(node)}", node)
        return Section(self.path, node, where or (f"{self.where}, {key}" if self.where else key))

    def sections(self) -> Iterator[tuple[str, Section]]:
        for key in self._entries:
            yield key, self.section(key)

    def text(self, key: str, default: str | None = None) -> str:
        if key not in self._entries and default is not None:
            return default
        node = self._scalar(key, "tag:yaml.org,2002:str")
        if not node.value.strip():
            raise self.error(f"{key!r} is empty", node)
        return str(node.value)

    def number(self, key: str, default: float | None = None, *, least: float = -math.inf) -> float:
        if key not in self._entries and default is not None:
            return default
        node = self._scalar(key, "tag:yaml.org,2002:float", "tag:yaml.org,2002:int")
        value = float(node.value.replace("_", "")) if re.fullmatch(_DECIMAL, node.value) else math.nan
        if not math.isfinite(value):
            raise self.error(f"{key!r} must be a finite number written in decimals, found {_short(node.value)}", node)
        if value < least:
            raise self.error(f"{key!r} must be at least {least:g}, found {_short(node.value)}", node)
        return value

    def whole(self, key: str, default: int | None = None, *, least: int = 0) -> int:
        if key not in self._entries and default is not None:
            return default
        node = self._scalar(key, "tag:yaml.org,2002:int")
        if not re.fullmatch(_WHOLE, node.value):
            raise self.error(f"{key!r} must be a whole number written in decimals, found {_short(node.value)}", node)
        value = int(node.value.replace("_", ""))
        if value < least:
            raise self.error(f"{key!r} must be at least {least}, found {value}", node)
        return value

    def flag(self, key: str, default: bool) -> bool:
        if key not in self._entries:
            return default
        return str(self._scalar(key, "tag:yaml.org,2002:bool").value).lower() in ("true", "yes", "on")

    def texts(self, key: str) -> Sequence[str]:
        """A list of texts; absent means empty."""
        if key not in self._entries:
            return ()
        node = self._node(key)
        if not isinstance(node, yaml.SequenceNode) or any(item.tag != "tag:yaml.org,2002:str" for item in node.value):
            raise self.error(f"{key!r} must be a list of texts", node)
        return tuple(str(item.value) for item in node.value)

    def names(self, key: str) -> Sequence[str]:
        """One text, or a list of them, of which there is at least one."""
        if not isinstance(self._node(key), yaml.SequenceNode):
            return (self.text(key),)
        names = self.texts(key)
        if not names:
            raise self.error(f"{key!r} names nothing", key=key)
        return names

    def expect_schema(self, known: int) -> None:
        """Refuse a file of another version of its format."""
        schema = self.whole("schema")
        if schema != known:
            raise self.error(
                f"schema {schema} is not known here; this version reads {known}, a newer pytest-llamaperf may read it",
                key="schema",
            )

    def _key(self, node: yaml.Node) -> str:
        if node.tag != "tag:yaml.org,2002:str":
            shown = node.value if isinstance(node, yaml.ScalarNode) else _kind(node)
            raise self.error(f"the key {shown!r} is read as {_kind(node)}; put quotes around it", node)
        return str(node.value)

    def _node(self, key: str) -> yaml.Node:
        if key not in self._entries:
            raise self.error(f"{key!r} is missing")
        return self._entries[key][1]

    def _scalar(self, key: str, *tags: str) -> yaml.ScalarNode:
        node = self._node(key)
        if not isinstance(node, yaml.ScalarNode) or node.tag not in tags:
            found = f" {node.value!r}" if isinstance(node, yaml.ScalarNode) and node.value else ""
            raise self.error(f"{key!r} must be {_KINDS[tags[0]]}, found {_kind(node)}{found}", node)
        return node


def read_document(path: Path) -> Section:
    """The top mapping of a YAML file.

    Raises DocumentError for a file that is missing, unreadable, not YAML, not one mapping, or that uses aliases.
    """
    return document_of(path, read_text(path))


def read_text(path: Path) -> str:
    """What stands in a file, line ends included. Raises DocumentError where it cannot be read or is no text."""
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise DocumentError(path, None, f"cannot be read: {problem.strerror}") from None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as problem:
        line = content[: problem.start].count(b"\n") + 1
        raise DocumentError(path, line, "is not UTF-8 text") from None


def document_of(path: Path, text: str) -> Section:
    """The top mapping of what stands, or is going to stand, in a YAML file. Raises DocumentError as `read_document`."""
    try:
        _refuse_depth(path, text)
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as problem:
        line = problem.problem_mark.line + 1 if problem.problem_mark else 1
        raise DocumentError(path, line, f"is not YAML: {problem.problem or problem.context}") from None
    except yaml.YAMLError as problem:
        raise DocumentError(path, 1, f"is not YAML: {str(problem).splitlines()[0]}") from None
    if not isinstance(root, yaml.MappingNode):
        raise DocumentError(path, 1, f"must be a mapping, found {_kind(root) if root else 'nothing'}")
    _refuse_aliases(path, root)
    return Section(path, root)


def _refuse_depth(path: Path, text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _DEEPEST:
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise DocumentError(path, line, f"is nested more than {_DEEPEST} levels deep")


def _refuse_aliases(path: Path, root: yaml.Node) -> None:
    """People read these files line by line: what applies to a line must stand in it."""
    seen: set[int] = set()
    pending: list[yaml.Node] = [root]
    while pending:
        node = pending.pop()
        if id(node) in seen:
            line = node.start_mark.line + 1
            raise DocumentError(path, line, "is used again through an alias (*name); write it out")
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            pending.extend(part for pair in node.value for part in pair)
        elif isinstance(node, yaml.SequenceNode):
            pending.extend(node.value)


def _kind(node: yaml.Node) -> str:
    return _KINDS.get(node.tag, f"the YAML tag {node.tag}")


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}... ({len(text):,} characters)"
