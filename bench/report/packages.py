"""Makes the section of docs/architecture.md on packages: which package imports which, from the code
itself, in the order of the layers in pyproject.toml."""

from __future__ import annotations

import ast
import re
import tomllib

import grimp

from bench.harness import ROOT, plain_table

KERNELS = "minimind_kernels"


def packages_section() -> str:
    """Makes a Mermaid flowchart of the packages, and a table of the purpose and the imports of
    each."""
    packages = [package for layer in _read_layers() for package in layer]
    imports = _build_imports(packages)
    direct = _without_detours(imports)
    pairs = ((one, other) for one in packages for other in packages if other in direct[one])
    arrows = [f"    {one} --> {other}" for one, other in pairs]
    rows = []
    for package in packages:
        below = ", ".join(other for other in packages if other in imports[package])
        rows.append((f"`{package}`", _read_purpose(package), below))
    table = plain_table(("package", "what it is for", "it imports"), rows)
    return "\n".join(["```mermaid", "flowchart TD", *arrows, "```", "", table])


def _read_layers() -> list[list[str]]:
    """Reads the packages of each layer from import-linter's contract, the highest layer first; the
    kernels lie below them all."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = config["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [re.findall(r"\w+", layer) for layer in layers] + [[KERNELS]]


def _build_imports(packages: list[str]) -> dict[str, set[str]]:
    """Finds the other packages that a module of each package imports; imports for types alone are
    left out."""
    graph = grimp.build_graph("minimind", KERNELS, exclude_type_checking_imports=True)
    owner: dict[str, str] = {}
    for package in packages:
        name = package if package == KERNELS else f"minimind.{package}"
        owner |= dict.fromkeys((name, *graph.find_descendants(name)), package)
    imports: dict[str, set[str]] = {package: set() for package in packages}
    for module, package in owner.items():
        modules = graph.find_modules_directly_imported_by(module)
        imports[package] |= {owner[name] for name in modules if name in owner} - {package}
    return imports


def _without_detours(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """Leaves out each import that a chain of other imports implies."""

    def reach(package: str) -> set[str]:
        return set().union(*({below} | reach(below) for below in imports[package]))

    return {
        package: {one for one in direct if not any(one in reach(other) for other in direct - {one})}
        for package, direct in imports.items()
    }


def _read_purpose(package: str) -> str:
    """Reads the first paragraph of the docstring of `package`."""
    parent = ROOT / ("kernels" if package == KERNELS else "minimind")
    files = (parent / f"{package}.py", parent / package / "__init__.py")
    (file,) = (file for file in files if file.is_file())
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.split("\n\n")[0].split())
