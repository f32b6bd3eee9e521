"""Files that programs outside the project read: hooks, forms, workflows, the Dockerfile."""

from __future__ import annotations

import re
import shlex
import tomllib
from importlib.metadata import version
from typing import Any

import pytest
import yaml
from training_runs import ROOT

from minimind.samples.chat import SAMPLE_QUESTIONS

PINNED = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    if "==" in line
)
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[0-9]*.yml"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def load(path: Any) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_hooks_are_the_checks_of_make_lint() -> None:
    """In the same words, but for the files they look at: the programs of .venv and no others."""
    hooks = [hook for repo in load(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    entries = [hook["entry"].replace(" --force-exclude", "") for hook in hooks]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    assert [entry.rstrip(" .") for entry in entries] == [line.rstrip(" .") for line in commands]
    assert {hook["language"] for hook in hooks} == {"system"}, "an own environment has own versions"


def test_make_train_asks_what_the_sample_data_teaches() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    asked = re.search(r"--ask (.*)", makefile)
    assert asked
    assert {*shlex.split(asked[1])} <= {one.prompt for one in SAMPLE_QUESTIONS}


@pytest.mark.parametrize("package", ["ruff", "pyright", "import-linter"])
def test_the_checks_have_the_versions_of_constraints(package: str) -> None:
    assert version(package) == PINNED[package]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_is_one_that_github_shows(path: Any) -> None:
    form = load(path)
    assert {"name", "description", "body"} <= set(form) <= {"name", "description", "labels", "body"}
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) > 0
    for field in form["body"]:
        assert field["type"] in {"markdown", "textarea", "input", "checkboxes"}
        assert set(field) <= {"type", "id", "attributes", "validations"}
        wanted = "value" if field["type"] == "markdown" else "label"
        assert field["attributes"][wanted]
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_a_bug_is_reported_with_its_run_and_log() -> None:
    wanted = {
        field.get("id") for field in load(FORMS[0])["body"] if field.get("validations") is not None
    }
    assert {"command", "log", "run_json"} <= wanted


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_asks_for_no_more_than_it_needs(path: Any) -> None:
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job.get("timeout-minutes"), f"{name} may hang for hours"


def test_the_release_is_guarded() -> None:
    jobs = load(".github/workflows/release.yml")["jobs"]
    assert jobs["pypi"]["if"] == "vars.PYPI == 'true'"
    assert jobs["pypi"]["permissions"] == {"id-token": "write"}
    assert [name for name, job in jobs.items() if "permissions" not in job] == ["build"]
    steps = " ".join(step.get("run", "") for step in jobs["build"]["steps"])
    for command in (".ci/release.py", "-m build", "check --strict", "--version", "make guide"):
        assert command in steps


def test_the_image_gets_all_that_the_wheel_is_built_from() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = project["tool"]["setuptools"]["package-dir"].values()
    assert {"pyproject.toml", "constraints.txt", "minimind", *folders} <= allowed
    assert {project["project"]["readme"], *project["project"]["license-files"]} <= allowed
    assert "*" in lines


def test_the_image_is_built_from_pinned_packages() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    installs = [
        line for line in re.sub(r"\\\n", " ", text).splitlines() if re.search(r"pip install", line)
    ]
    assert len(installs) == 4
    assert all("constraints" in line for line in installs)
    assert "uv" in PINNED
    assert re.search(r"^USER 1000$", text, re.MULTILINE)
