"""The README says what is so: every metric with its unit, every file and config it names."""

import ast
import importlib.util
import pathlib
import re
import shlex

import pytest

from swerl_jax import config
from swerl_jax.learn.metrics import METRICS, TIMING_KEYS

ROOT = pathlib.Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_metric_is_listed_with_unit_and_meaning():
    rows = dict(re.findall(r"^\| `([\w/]+)` \| (.*) \|$", TEXT, re.MULTILINE))
    assert rows == {name: f"{m.unit} | {m.meaning.replace('|', '∣')}" + (" (times)" if name in TIMING_KEYS else "")
                    for name, m in METRICS.items()}


def test_every_module_config_and_setting_it_names_exists():
    modules = re.findall(r"`((?:data|env|policy|learn|curate)/\w+\.py)`", TEXT)
    configs = re.findall(r"configs/\w+\.py", TEXT)
    settings = re.findall(r"--config\.([\w.]+)=", TEXT)
    assert len(modules) > 15 and len(configs) > 5 and len(settings) > 5
    assert [m for m in modules if not (ROOT / "swerl_jax" / m).exists()] == []
    assert [c for c in configs if not (ROOT / c).exists()] == []
    assert [s for s in settings if s not in (*config.KEYS, "data")] == []  # `--config.data=SHARDS` stands for data.shards


COMMANDS = re.findall(r"^ *python -m swerl_jax\.main (.+)$", TEXT.replace("\\\n", ""), re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_passes_the_checks(command):
    """Its settings exist, are of their types and go together."""
    (_, name), *given = [word.split("=", 1) for word in shlex.split(command, comments=True) if word.startswith("--config")]
    path, _, variant = name.partition(":")
    spec = importlib.util.spec_from_file_location("config_of_a_command", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names = {"data": "data.shards"}
    found = {names.get(key, key): value for key, value in ((key.removeprefix("--config."), value) for key, value in given)}
    found = {key: value if type(config.KEYS[key][0]) is str else ast.literal_eval(value) for key, value in found.items()}
    config.check(config.update(module.get_config(variant), found))


def test_commands_are_found():
    assert len(COMMANDS) > 12 and any("data.held_out" in command for command in COMMANDS)
