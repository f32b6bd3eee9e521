"""Defines the tools of the sample data, plain functions that a model may call, and their
schemas."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from minimind.samples.world import PEOPLE, THINGS, Name

MAX_EXPRESSION_CHARS = 100
MAX_VALUE = 10**12
"""The largest absolute value of a number in an expression and of every intermediate result."""
MAX_LOOKUP = 99

_SHOWN_CHARS = 40
"""The most characters of an argument that an error message repeats."""

TOOL_SCHEMAS: list[dict[str, Any]] = [
    {"name": "calculator", "parameters": {"expression": "string"}},
    {"name": "lookup", "parameters": {"name": "string", "what": "string"}},
]
"""The tools as the system turn of a conversation lists them, short to save tokens."""


def calculator(expression: str) -> str:
    """Evaluates an expression of numbers, + - * / and parentheses: "37 + 48" gives "85". For
    anything else it gives a text that begins with "error:"."""
    if not isinstance(expression, str) or not expression.strip():
        return "error: expression must be a text such as 2 + 3"
    if len(expression) > MAX_EXPRESSION_CHARS:
        return f"error: the expression is longer than {MAX_EXPRESSION_CHARS} characters"
    if re.fullmatch(r"[0-9.+\-*/() ]+", expression) is None:
        return "error: only numbers, + - * / and parentheses are allowed"
    try:
        value = _evaluate(ast.parse(expression.strip(), mode="eval").body)
    except ZeroDivisionError:
        return "error: division by zero"
    except OverflowError:
        return f"error: a number is larger than {MAX_VALUE:,}"
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "error: not an expression such as 2 + 3"
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.10g}"


def lookup(name: str, what: str) -> str:
    """Gives the number of things that a person has, from 1 to 99, which is written nowhere else.
    The same person and thing give the same number in both languages. For an unknown person or thing
    it gives a text that begins with "error:"."""
    person = _find(name, tuple(person.name for person in PEOPLE))
    if person is None:
        return f"error: nobody is called {_show(name)}"
    thing = _find(what, THINGS)
    if thing is None:
        return f"error: nothing is known of {_show(what)}"
    digest = hashlib.blake2b(f"{person.en} has {thing.en}".encode(), digest_size=8).digest()
    return str(1 + int.from_bytes(digest, "big") % MAX_LOOKUP)


TOOLS: dict[str, Callable[..., str]] = {"calculator": calculator, "lookup": lookup}
"""The tool functions by name. Each takes the arguments of a call as keywords."""


def _evaluate(node: ast.expr) -> Fraction:
    """Evaluates a parsed expression exactly. Raises ValueError for anything but arithmetic and
    OverflowError for a value beyond MAX_VALUE."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        if abs(node.value) > MAX_VALUE:
            raise OverflowError
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = _evaluate(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if not isinstance(node, ast.BinOp):
        raise ValueError
    left, right = _evaluate(node.left), _evaluate(node.right)
    match node.op:
        case ast.Add():
            value = left + right
        case ast.Sub():
            value = left - right
        case ast.Mult():
            value = left * right
        case ast.Div():
            value = left / right
        case _:
            raise ValueError
    if abs(value) > MAX_VALUE:
        raise OverflowError
    return value


def _find(given: object, names: tuple[Name, ...]) -> Name | None:
    if not isinstance(given, str):
        return None
    word = given.strip().lower()
    return next((name for name in names if word in (name.en.lower(), name.zh)), None)


def _show(given: object) -> str:
    text = str(given)
    return repr(text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…")
