"""A release: one version everywhere, and notes from the changelog."""

from __future__ import annotations

import importlib.util
import json
import tomllib
from pathlib import Path
from types import ModuleType

import gguf
import pytest
from gguf_models import gguf_file, model_folder
from training_runs import ROOT

import minimind
from minimind.interop.conversion import convert
from minimind.interop.options import ConvertOptions
from minimind.run import Run

CHANGELOG = """# Changelog

## Unreleased

- new

## 1.10.0 (2027-01-01)

- a line
- another

### More

- below

## 1.1.0

## 1.0.0

- first
"""


@pytest.fixture(scope="module")
def release() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / ".ci" / "release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path: Path, release: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of version 1.10.0."""
    (tmp_path / "minimind").mkdir()
    module = '"""Says so."""\nimport os\n\n__version__ = "1.10.0"\n'
    (tmp_path / "minimind" / "__init__.py").write_text(module)
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    monkeypatch.setattr(release, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.usefixtures("checkout")
def test_the_notes_are_the_section_of_the_version(
    release: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert release.main("v1.10.0") == 0
    assert capsys.readouterr().out == "- a line\n- another\n\n### More\n\n- below\n"


@pytest.mark.parametrize("tag", ["1.10.0", "v1.1.0", "v1.10", "v1.10.0rc1", "", "v1x10.0"])
@pytest.mark.usefixtures("checkout")
def test_another_tag_is_refused(
    release: ModuleType, tag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert release.main(tag) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "minimind/__init__.py says version 1.10.0; tag v1.10.0" in shown.err


@pytest.mark.parametrize("changelog", ["", CHANGELOG.replace("1.10.0", "Unreleased")])
def test_a_version_without_notes_is_refused(
    release: ModuleType, checkout: Path, changelog: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / "CHANGELOG.md").write_text(changelog)
    assert release.main("v1.10.0") == 1
    assert "CHANGELOG.md: no section '## 1.10.0'" in capsys.readouterr().err
    assert release.read_notes(CHANGELOG, "1.1.0") == ""
    assert release.read_notes(CHANGELOG, "1.0.0") == "- first"


def test_the_version_stands_in_one_place(release: ModuleType) -> None:
    source = (ROOT / "minimind" / "__init__.py").read_text(encoding="utf-8")
    assert release.read_version(source) == minimind.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"] == {"version": {"attr": "minimind.__version__"}}
    # The kernels are built alone too, from a folder that has nothing else.
    kernels = tomllib.loads((ROOT / "kernels" / "pyproject.toml").read_text(encoding="utf-8"))
    assert kernels["project"]["version"] == minimind.__version__


def test_what_is_written_says_the_version(tmp_path: Path) -> None:
    resolved = Run.resolve(stage="pretrain", output_dir=str(tmp_path / "run")).resolved.to_dict()
    assert json.loads(json.dumps(resolved))["versions"]["minimind"] == minimind.__version__
    convert(model_folder(tmp_path, "qwen3"), "hf", tmp_path / "hf", ConvertOptions())
    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    assert f"MiniMind {minimind.__version__}." in card
    fields = gguf.GGUFReader(gguf_file(tmp_path, "qwen3")).fields
    assert fields["minimind.version"].contents() == minimind.__version__
