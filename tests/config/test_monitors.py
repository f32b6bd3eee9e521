"""Which keys switch a monitor on, and what contradicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minimind.config.deepspeed_json import load_ds_config
from minimind.config.monitors import MONITORS, enabled_monitors, switch_monitors, without_monitors
from minimind.errors import ConfigError


def load(tmp_path: Path, values: dict[str, Any], **overrides: Any) -> dict[str, Any]:
    (tmp_path / "ds.json").write_text(json.dumps(values), encoding="utf-8")
    return load_ds_config(str(tmp_path / "ds.json"), overrides)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"wandb": {"enabled": "auto"}}, "wandb.enabled is 'auto'; it must be true or false"),
        ({"wandb": {"enabled": None}}, "wandb.enabled is None; it must be true or false"),
        ({"wandb": {"project": 3}}, "wandb.project is 3; it must be a text"),
        ({"wandb": {"projct": "p"}}, "knows no key 'projct', but enabled, group, project, team"),
        ({"swanlab": {"team": "t"}}, "swanlab knows no key 'team'"),
        ({"wandb": True}, "wandb is True; it must be an object"),
        ({"comet": {"api_key": "secret"}}, "the environment variable COMET_API_KEY gives it"),
        ({"comet": {"mode": "get"}}, "comet.mode cannot be used here: a new run is a new"),
        ({"comet": {"samples_log_interval": 50}}, "the figures of each step are written"),
        ({"tensorboard": {"output_path": "../logs"}}, "leaves the run's folder"),
        ({"csv_monitor": {"job_name": "../x"}}, "leaves the run's folder"),
    ],
)
def test_a_key_is_used_or_refused_and_no_secret_is_repeated(
    tmp_path: Path, section: dict[str, Any], message: str
):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, section)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_deepspeeds_documented_sections_are_used(tmp_path: Path):
    values = {
        "tensorboard": {"enabled": True, "output_path": "output/", "job_name": "train_bert"},
        "wandb": {"enabled": True, "group": "my_group", "team": None, "project": "my_project"},
        "csv_monitor": {"enabled": True, "output_path": "output/", "job_name": "train_bert"},
        "comet": {"enabled": False, "workspace": "w", "project": "p", "online": True},
        "train_batch_size": 4,
    }
    loaded = load(tmp_path, values)
    assert enabled_monitors(loaded) == ["csv_monitor", "tensorboard", "wandb"]
    assert without_monitors(loaded) == {"train_batch_size": 4}


def test_the_flag_adds_to_the_json_and_none_takes_all_away(tmp_path: Path):
    values = {"tensorboard": {"enabled": True}, "wandb": {"project": "p"}}
    switched = load(tmp_path, values, **switch_monitors(["wandb"], {"wandb.group": "g"}))
    assert enabled_monitors(switched) == ["tensorboard", "wandb"]
    assert switched["wandb"] == {"project": "p", "group": "g", "enabled": True}
    assert enabled_monitors(load(tmp_path, values, **switch_monitors(["none"], {}))) == []
    assert switch_monitors([], {"a.b": 1}) == {"a.b": 1}


@pytest.mark.parametrize(
    ("names", "overrides", "message"),
    [
        (["wanbd"], {}, "did you mean wandb"),
        (["none", "wandb"], {}, "none excludes every monitor"),
        (["wandb"], {"wandb.enabled": False}, "contradicts --set ds_config.wandb.enabled=false"),
        (["none"], {"comet.enabled": True}, "contradicts --set ds_config.comet.enabled=true"),
    ],
)
def test_what_contradicts_is_refused(names: list[str], overrides: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        switch_monitors(names, overrides)


def test_the_extras_have_the_monitors_names():
    import tomllib

    root = Path(__file__).resolve().parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert {*MONITORS} - {"csv_monitor"} <= extras.keys()
