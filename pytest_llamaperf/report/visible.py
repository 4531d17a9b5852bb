"""What cannot be seen is written out: a name must not hide, reverse or end anything on the page."""

from __future__ import annotations

import dataclasses
import unicodedata
from typing import Any, TypeVar

T = TypeVar("T")


def visible(value: T) -> T:
    """The same value, of dataclasses, containers and plain values, with every text in it made visible."""
    return _visible(value)  # type: ignore[no-any-return]


def _visible(value: Any) -> Any:
    if isinstance(value, str):
        return visible_text(value)
    if isinstance(value, dict):
        return {_visible(key): _visible(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_visible, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _visible(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value


def visible_text(text: str) -> str:
    """Control characters, marks that turn the direction of writing, and halves of characters as `\\x1b` and the like."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs" else _escaped(c) for c in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
