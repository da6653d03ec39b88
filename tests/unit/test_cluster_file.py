"""The file for Ray's cluster launcher is one that Ray takes, and what it types is what the command line knows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from actors.settings import PlatformSettings
from twinfleet.cli import app

FILE = Path(__file__).parents[2] / "cluster.yaml"


@pytest.fixture
def cluster() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return found


def test_the_file_fits_the_schema_that_ray_ships(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(cluster))


def test_a_file_with_an_unknown_key_does_not(cluster: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="head_start_commands"):
        validate_config(prepare_config({**cluster, "head_start_commands": []}))


@pytest.mark.parametrize("key", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_its_commands_are_commands_of_ours_with_options_that_they_have(
    cluster: dict[str, Any], key: str
) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group
    typed = [
        shlex.split(found.group(1))
        for line in cluster[key]
        for found in re.finditer(r"bin/twinfleet (.+?)( > | \|\| |$)", line)
    ]
    assert [words[0] for words in typed] == ["down", "up"]
    for name, *words in typed:
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known


def test_the_settings_that_it_writes_are_settings(cluster: dict[str, Any], tmp_path: Path) -> None:
    [line] = [line for line in cluster["head_setup_commands"] if "settings.yaml" in line]
    words = shlex.split(line.partition(">")[0].replace("$HOME", "/users/ops"))
    (tmp_path / "settings.yaml").write_text("\n".join(words[2:]))
    settings = PlatformSettings.load(tmp_path, {})
    assert (settings.store_port, settings.snapshot_location) == (6380, "s3://my-bucket/twinfleet")
    assert settings.autoscaling_config == Path("/users/ops/ray_bootstrap_config.yaml")
