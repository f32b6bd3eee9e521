"""Reads a user's text for a Python function, with or without keyword arguments."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from minimind.config.spelling import did_you_mean, did_you_mean_file
from minimind.errors import ConfigError

_NAME = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_SHORT = re.compile(rf"({_NAME})(\(.*\))?", re.DOTALL)
_PLACED = re.compile(rf"(.+?):({_NAME})(\(.*\))?", re.DOTALL)
_FORMS = "package.module:function, or path/to/file.py:function"


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedFunction:
    """Holds a function as the user wrote it, parsed but not imported."""

    text: str
    place: str
    """The import name of a module, or the absolute path of a Python file."""
    name: str
    arguments: dict[str, Any]

    @classmethod
    def parse(cls, text: str, shipped: Mapping[str, str]) -> NamedFunction:
        """Parses `module:function`, `path/to/file.py:function` or a short name from `shipped`,
        followed by literal keyword arguments if any: `length_window(least=20)`. Raises
        ConfigError."""
        written = text.strip()
        if short := _SHORT.fullmatch(written):
            target = shipped.get(short[1])
            if target is None:
                raise ConfigError(_unknown_short_name(text, short[1], shipped))
            place, _, name = target.partition(":")
            given = short[2]
        elif placed := _PLACED.fullmatch(written):
            place, name, given = placed.groups()
        else:
            raise ConfigError(
                f"{text!r} names no function: write {_FORMS}, with keyword arguments if any, as in "
                "rewards.py:window(least=20)"
            )
        if place.endswith(".py"):
            place = str(Path(place).expanduser().absolute())
        return cls(text=text, place=place, name=name, arguments=_read_arguments(text, given))

    @property
    def short_name(self) -> str:
        return self.name.rpartition(".")[2]

    def load(self) -> Callable[..., Any]:
        """Imports the function and binds its keyword arguments. Raises ConfigError where the
        module, file or function does not exist, and whatever importing the module raises."""
        module = _load_file(self.place) if self.place.endswith(".py") else _load_module(self.place)
        found: Any = module
        for part in self.name.split("."):
            if not hasattr(found, part):
                known = [name for name in dir(found) if callable(getattr(found, name, None))]
                raise ConfigError(
                    f"{self.place} has no function {self.name}{did_you_mean(part, known)}"
                )
            found = getattr(found, part)
        if not callable(found):
            kind = type(found).__name__
            raise ConfigError(f"{self.name} of {self.place} is no function but of type {kind}")
        return functools.partial(found, **self.arguments) if self.arguments else found

    def check_arguments(self, function: Callable[..., Any], num_given: int) -> None:
        """Raises ConfigError where the loaded `function` does not take the text's keyword arguments
        after `num_given` other arguments."""
        loaded = function.func if self.arguments else function  # type: ignore[attr-defined]
        try:
            signature = inspect.signature(loaded)
        except (TypeError, ValueError):
            return  # written in C, without a signature
        known = signature.parameters
        if not any(one.kind is one.VAR_KEYWORD for one in known.values()):
            for name in self.arguments:
                if name not in known:
                    takes = ", ".join([*known][num_given:]) or "none"
                    raise ConfigError(
                        f"{self.name} has no argument {name}{did_you_mean(name, known)}; "
                        f"it takes {takes}"
                    )
        try:
            if num_given:
                signature.bind(*[None] * num_given, **self.arguments)
            else:
                signature.bind_partial(**self.arguments)
        except TypeError as error:
            raise ConfigError(f"{self.name}{signature} cannot be called so: {error}") from None


def _unknown_short_name(text: str, name: str, shipped: Mapping[str, str]) -> str:
    listed = f"the shipped ones are {', '.join(sorted(shipped))}; " if shipped else ""
    guess = did_you_mean(name, shipped)
    if not guess and "." in name:
        module, _, function = name.rpartition(".")
        guess = f" (did you mean {module}:{function}?)"
    return f"there is no function {text!r}{guess}; {listed}write your own as {_FORMS}"


def _read_arguments(text: str, given: str | None) -> dict[str, Any]:
    """Parses the keyword arguments. Raises ConfigError."""
    try:
        call = ast.parse(f"f{given or '()'}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
            raise ValueError
        return {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise ConfigError(
            f"{text!r}: the arguments must be name=value, each value a plain number, string, list, "
            "dict, True, False or None"
        ) from None


def _load_module(place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise
        package, _, missing = error.name.rpartition(".")
        guess = did_you_mean(missing, _modules_in(package), lambda name: _join(package, name))
        raise ConfigError(
            f"there is no module {error.name}{guess}; it is looked for where Python looks, the "
            "working directory and PYTHONPATH included"
        ) from None


def _load_file(place: str) -> ModuleType:
    """Loads a Python file, once per process. It can import modules from its folder."""
    path = Path(place)
    if not path.is_file():
        raise ConfigError(f"there is no file {path}{did_you_mean_file(path)}")
    name = "minimind_file_" + re.sub(r"\W", "_", str(path.with_suffix("")))
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "a path that ends in .py has a loader"
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _modules_in(package: str) -> list[str]:
    parent = sys.modules.get(package)
    folders = list(getattr(parent, "__path__", [])) if package else None
    return [one.name for one in pkgutil.iter_modules(folders)]


def _join(package: str, name: str) -> str:
    return f"{package}.{name}" if package else name
