"""Functions by text: what is found, and what a name that leads nowhere is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from pooled_functions import SHIPPED

from minimind.errors import ConfigError
from minimind.runtime.function_pool import Call, FunctionPool


def test_a_file_a_module_and_a_short_name_with_arguments(functions: Path) -> None:
    own = f"{functions}/own.py:add(more=10, most=15)"
    with FunctionPool(
        [own, "math:sqrt", "root", "os:path.basename"],
        num_workers=1,
        timeout_s=5,
        shipped=SHIPPED,
    ) as pool:
        pool.check()
        calls = [Call(own, 1), Call(own, 9), Call("math:sqrt", 9), Call("root", 4)]
        found = pool.call([*calls, Call("os:path.basename", "a/b")])
        assert [one.value for one in found] == [11, 15, 3, 2, "b"]
        assert [pool.short_name(one) for one in (own, "root")] == ["add", "sqrt"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rooot", r"did you mean root\?\); the shipped ones are root"),
        ("math.sqrt", r"did you mean math:sqrt\?"),
        ("root(4)", "must be name=value"),
        ("root(x=open('y'))", "must be name=value"),
        ("root(x={{}})", "must be name=value"),
        ("root(x=1", "names no function"),
        ("", "names no function"),
    ],
)
def test_a_name_that_cannot_be_read(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FunctionPool([name], num_workers=1, timeout_s=1, shipped=SHIPPED)


def test_a_check_names_the_function_that_cannot_be_used(functions: Path) -> None:
    own = f"{functions}/own.py"
    mistakes = {
        "math:sqrtt": "math has no function sqrtt (did you mean sqrt or isqrt?)",
        "maths:sqrt": "there is no module maths (did you mean math or cmath?)",
        "json.decodr:x": "there is no module json.decodr (did you mean json.decoder?)",
        f"{own}:ad": "(did you mean add?)",
        f"{own}:NO_FUNCTION": "is no function but of type int",
        f"{own}:add(mor=1)": "add has no argument mor (did you mean more?); it takes more, most",
        f"{own}:where(a=1, _=2)": "where has no argument a",
        f"{functions}/owm.py:add": f"(did you mean {own}?)",
        f"{functions}/broken.py:add": "raised ModuleNotFoundError: No module named 'no_such",
    }
    for name, message in mistakes.items():
        with FunctionPool([name], num_workers=1, timeout_s=5, shipped=SHIPPED) as pool:
            with pytest.raises(ConfigError) as error:
                pool.check()
            assert str(error.value).startswith(f"{name}: ")
            assert message in str(error.value)
