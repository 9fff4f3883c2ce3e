"""What is wrong with a settings file, in words: where, what was given, what is allowed.

msgspec finds the first value that doesn't fit; this says it to the person who
wrote the file: `check.interval_s: 0, expected a number from 1 to 2,592,000`.
A text with a pattern has the pattern's words as its Meta description.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import inspect as shapes

SHOWN_CHARS_MAX = 60  # of a value that was given

_STEP = re.compile(r"\.([^.\[\]`]+)|\[(\d+)\]")
_ANY_KEY = "[...]"  # of a table with keys of one's own
_MISSING = "Object missing required field"
_UNKNOWN = "Object contains unknown field"
_ABOUT_KEYS = (_MISSING, _UNKNOWN)


def explained(error: msgspec.ValidationError, given: Any, form: type) -> str:
    """The sentence for `error`, which came from making a `form` of `given`."""
    problem, _, path = str(error).partition(" - at `$")
    value, kind = given, _plain(shapes.type_info(form))
    for name, index in _STEP.findall(path):
        value = value[name or int(index)]
        kind = _inside(kind, name)
    place = path.strip("`.")
    if place.endswith(_ANY_KEY):
        return f"{place.removesuffix(_ANY_KEY)}: not all of it texts, expected {allowed(kind)}"
    if problem.startswith(_ABOUT_KEYS):
        return _about_key(problem, place, kind)
    told = f"{_shown(value)}, expected {allowed(kind)}"
    return f"{place}: {told}" if place else told


def _about_key(problem: str, place: str, kind: shapes.Type) -> str:
    """A key too many, or one too few."""
    name = problem.partition("`")[2].rstrip("`")
    fields = _fields(kind)
    where = f"{place}.{name}" if place else name
    if problem.startswith(_MISSING):
        return f"{where} is missing, expected {allowed(fields[name].type)}"
    return f"{where}: unknown key, expected one of {', '.join(fields)}"


def allowed(kind: shapes.Type) -> str:
    """What a value of this kind may be."""
    if isinstance(kind, shapes.Metadata) and "description" in (kind.extra_json_schema or {}):
        return str((kind.extra_json_schema or {})["description"])
    match _plain(kind):
        case shapes.IntType() as number:
            return f"a whole number{_range(number)}"
        case shapes.FloatType() as number:
            return f"a number{_range(number)}"
        case shapes.BoolType():
            return "true or false"
        case shapes.StrType(max_length=int() as most):
            return f"a text of at most {most:,} characters"
        case shapes.StrType(pattern=str() as pattern):
            return f"a text that matches {pattern}"
        case shapes.LiteralType(values=values):
            return _one_of(values)
        case shapes.EnumType(cls=names):
            return _one_of([item.value for item in names])
        case shapes.VarTupleType() as items:
            return _list(items)
        case shapes.StructType():
            return "a table"
        case shapes.DictType():
            return "a table of texts"
    return "a text"


def _one_of(values: Any) -> str:
    return f"one of {', '.join(str(value) for value in values)}"


def _list(items: shapes.VarTupleType) -> str:
    what = "tables" if isinstance(_plain(items.item_type), shapes.StructType) else "texts"
    if items.max_length is not None:
        return f"a list of {items.min_length or 0} to {items.max_length} {what}"
    return (
        f"a list of at least {items.min_length} {what}" if items.min_length else f"a list of {what}"
    )


def _range(number: shapes.IntType | shapes.FloatType) -> str:
    """` from 1 to 20`, with the ends it has."""
    lowest, highest = number.ge, number.le
    parts = []
    if number.gt is not None:
        parts.append(f" above {number.gt:,g}")
    if lowest is not None:
        parts.append(f" from {lowest:,}" if isinstance(lowest, int) else f" from {lowest:,g}")
    if highest is not None:
        word = "to" if parts else "of at most"
        parts.append(f" {word} {int(highest) if highest == int(highest) else highest:,}")
    return "".join(parts)


def _plain(kind: shapes.Type) -> shapes.Type:
    """`kind` without its metadata, and without the None that stands for "not given"."""
    if isinstance(kind, shapes.UnionType):
        kind = next(item for item in kind.types if not isinstance(item, shapes.NoneType))
    return kind.type if isinstance(kind, shapes.Metadata) else kind


def _fields(kind: shapes.Type) -> dict[str, shapes.Field]:
    """A table's keys."""
    return {item.encode_name: item for item in getattr(_plain(kind), "fields", ())}


def _inside(kind: shapes.Type, name: str) -> shapes.Type:
    """The kind of a table's key, or of a list's items; metadata is kept."""
    plain = _plain(kind)
    inner = _fields(plain)[name].type if name else getattr(plain, "item_type", plain)
    if isinstance(inner, shapes.UnionType):
        return next(item for item in inner.types if not isinstance(item, shapes.NoneType))
    return inner


def _shown(value: Any) -> str:
    """A value as the file may have it, cut short."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list" if value else "[]"
    if not isinstance(value, str):
        return str(value)[:SHOWN_CHARS_MAX]
    if len(value) > SHOWN_CHARS_MAX:
        return f"{value[:SHOWN_CHARS_MAX]!r}… ({len(value):,} characters)"
    return repr(value)
