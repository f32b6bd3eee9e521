"""Finds the source of a class, function, method or constant by its Python name."""

from __future__ import annotations

import ast
import textwrap

from bench.harness import ROOT

_ROOTS = (ROOT, ROOT / "kernels")


class MissingSourceError(Exception):
    """Says that the guide names something that the code no longer has."""


def source_of(name: str) -> str:
    """Gives the source of `module:qualified.name`, without its indentation, under a comment that
    names its file. The module is not imported. Raises MissingSourceError."""
    module, _, qualified = name.partition(":")
    parts = module.split(".")
    stems = [root.joinpath(*parts) for root in _ROOTS]
    files = [file for stem in stems for file in (stem.with_suffix(".py"), stem / "__init__.py")]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        raise MissingSourceError(f"{name}: there is no module {module}")
    text = path.read_text(encoding="utf-8")
    found: ast.AST = ast.parse(text)
    for part in qualified.split("."):
        children = getattr(found, "body", [])
        found = next((child for child in children if part in _names(child)), ast.Pass())
        if isinstance(found, ast.Pass):
            raise MissingSourceError(f"{name}: {path.relative_to(ROOT)} defines no {qualified}")
    assert isinstance(found, ast.stmt)
    decorators = getattr(found, "decorator_list", [])
    first = min([found.lineno, *(decorator.lineno for decorator in decorators)])
    lines = text.splitlines()[first - 1 : found.end_lineno]
    return f"# {path.relative_to(ROOT)}\n" + textwrap.dedent("\n".join(lines))


def _names(statement: ast.stmt) -> list[str]:
    """Gives the names that a statement defines."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.AnnAssign):
        targets: list[ast.expr] = [statement.target]
    else:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]
