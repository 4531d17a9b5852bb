"""Objects of declared fields that take nothing else, as the pydantic models of TensorRT-LLM do."""

from __future__ import annotations

import copy
import types
from enum import Enum
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints


class ValidationError(ValueError):
    """Worded like pydantic's."""


class Strict:
    """Subclasses declare fields with defaults. A dict is taken where a Strict stands, as YAML gives them.

    Raises ValidationError for unknown fields and wrong types. Unlike pydantic, "3" is no integer here.
    """

    model_fields: ClassVar[dict[str, Any]] = {}  # name -> its type

    def __init_subclass__(cls) -> None:
        hints = get_type_hints(cls)
        cls.model_fields = {name: hint for name, hint in hints.items() if get_origin(hint) is not ClassVar}

    def __init__(self, **given: Any) -> None:
        problems = [
            f"{name}\n  Extra inputs are not permitted [type=extra_forbidden, input_value={value!r}, "
            f"input_type={type(value).__name__}]"
            for name, value in given.items()
            if name not in self.model_fields
        ]
        for name, hint in self.model_fields.items():
            value = given[name] if name in given else copy.deepcopy(getattr(type(self), name))
            try:
                setattr(self, name, fitted(value, hint))
            except TypeError:
                problems.append(
                    f"{name}\n  Input should be a valid {_told(hint)} [input_value={value!r}, "
                    f"input_type={type(value).__name__}]"
                )
        if problems:
            count = f"{len(problems)} validation error{'s' * (len(problems) > 1)}"
            raise ValidationError("\n".join([f"{count} for {type(self).__name__}", *problems]))

    def model_dump(self) -> dict[str, Any]:
        """All fields, down to plain values."""
        return {name: _plain(getattr(self, name)) for name in self.model_fields}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.model_fields)})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.model_dump() == other.model_dump()  # type: ignore[attr-defined]

    __hash__ = None  # type: ignore[assignment]


def fitted(value: Any, hint: Any) -> Any:
    """The value as a field of this type holds it. Raises TypeError where it does not fit."""
    if hint is Any:
        return value
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _first_that_fits(value, inner)
    if origin is Literal:
        if value in inner:
            return value
    elif origin is list:
        if isinstance(value, list):
            return [fitted(entry, inner[0]) for entry in value]
    elif hint in (None, type(None)):
        if value is None:
            return None
    elif issubclass(hint, Strict):
        if isinstance(value, hint):
            return value
        if isinstance(value, dict):
            return hint(**value)
    elif issubclass(hint, Enum):
        if value in [member.value for member in hint]:
            return hint(value)
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    raise TypeError(f"{value!r} is no {_told(hint)}")


def _first_that_fits(value: Any, hints: tuple[Any, ...]) -> Any:
    for hint in hints:
        try:
            return fitted(value, hint)
        except TypeError:
            continue
    raise TypeError(f"{value!r} is none of them")


def _told(hint: Any) -> str:
    return getattr(hint, "__name__", None) or str(hint)


def _plain(value: Any) -> Any:
    if isinstance(value, Strict):
        return value.model_dump()
    return value.value if isinstance(value, Enum) else value
