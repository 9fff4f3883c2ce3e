"""What doesn't fit a settings file is always told, whatever it is."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from agent.config import Config
from feed import misfit
from publisher.settings import ReleaseInput


class Form(msgspec.Struct, forbid_unknown_fields=True):
    bare: Annotated[str, Meta(pattern="^x$")] = "x"
    open_: int = 0
    above: Annotated[float, Meta(gt=0.5)] = 1.0
    most: Annotated[int, Meta(le=5)] = 0
    some: Annotated[tuple[str, ...], Meta(min_length=2)] = ("a", "b")
    any_: tuple[str, ...] = ()
    one: Literal["a", "b"] = "a"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"bare": "y"}, "bare: 'y', expected a text that matches ^x$"),
        ({"open_": "y"}, "open_: 'y', expected a whole number"),
        ({"above": 0.5}, "above: 0.5, expected a number above 0.5"),
        ({"most": 6}, "most: 6, expected a whole number of at most 5"),
        ({"some": ["a"]}, "some: a list, expected a list of at least 2 texts"),
        ({"any_": 5}, "any_: 5, expected a list of texts"),
        ({"one": 1}, "one: 1, expected one of a, b"),
        ("table", "'table', expected a table"),
    ],
)
def test_a_limit_is_told_with_the_ends_it_has(value: Any, said: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(value, Form)
    assert misfit.explained(caught.value, value, Form) == said


keys = st.sampled_from(
    [*Config.__struct_fields__, "url", "name", "probe", "command", "signal", "send", "kind", "x.y"]
)
leaves = st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.datetimes()
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("form", [Config, ReleaseInput])
@given(table=st.dictionaries(keys, values, max_size=5))
def test_any_table_that_doesnt_fit_is_told_with_what_is_allowed(
    form: type[msgspec.Struct], table: dict[str, Any]
) -> None:
    try:
        msgspec.convert(table, form)
    except msgspec.ValidationError as error:
        said = misfit.explained(error, table, form)
        assert ", expected " in said
        assert "`" not in said
        assert "\n" not in said
