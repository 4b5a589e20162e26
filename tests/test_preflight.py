"""What a run's settings name: found before tasks are made, missed on this machine or wrong on any."""

import dataclasses
import json

import pytest
import small

from swerl_jax import config as config_lib, preflight
from swerl_jax.models import shipped
from swerl_jax.policy.arch import ARCHS, YarnScaling


def config(**changes):
    """A training run of the policy that ships; names with __ for dots."""
    plain = {"init": "embedded:tiny", "tokenizer": "embedded:tiny", "chat": "compact", "phases": ("rl",)}
    return config_lib.update(config_lib.default(), plain | {name.replace("__", "."): value for name, value in changes.items()})


def test_what_is_there_is_found(tmp_path):
    small.write_examples(tmp_path)
    assert preflight.look(config()) == preflight.Faults((), ())
    assert preflight.look(config(
        data__train=(str(tmp_path), str(tmp_path / "t*.jsonl")), data__held_out=str(tmp_path / "held_out.jsonl"),
        init=f"hf:{shipped.find('embedded:tiny')}", tokenizer=f"hf:{shipped.find('embedded:tiny')}")) == preflight.Faults((), ())
    preflight.require(config())


@pytest.mark.parametrize("changes, told", [
    ({"data__train": ("DIR/held_out.jsonl", "DIR/*.json"), "data__held_out": "DIR/held_out.jsonl"},
     ["data.train: found no examples at DIR/*.json; needed is a file,"]),
    ({"data__held_out": "DIR/empty"}, ["data.held_out: found no examples at DIR/empty"]),
    ({"data__train": ("gs://bucket/*.jsonl",), "data__held_out": "gs://bucket/held_out.jsonl"}, []),
    ({"task": "eval", "data__train": ("DIR/none.jsonl",), "init": "DIR/none"}, []),  # it reads neither
    ({"task": "eval", "data__held_out": "DIR/none.jsonl"}, ["data.held_out: found no examples at DIR/none.jsonl"]),
    ({"tokenizer": "tiktoken:DIR/none"}, ["tokenizer: tokenizer spec 'tiktoken:DIR/none': there is no file DIR/none"]),
    ({"tokenizer": "hf:DIR/none"}, ["tokenizer: hf:DIR/none: there is no directory DIR/none"]),
    ({"init": "hf:DIR/none"}, ["init is hf:DIR/none, and there is no such directory; give that of a run"]),
    ({"init": "DIR/none"}, ["init is DIR/none, and there is no such directory"]),
    ({"init": "hf:gs://bucket/model"}, []),
])
def test_what_this_machine_lacks(tmp_path, changes, told):
    small.write_examples(tmp_path)
    (tmp_path / "empty").mkdir()

    def placed(value):
        return tuple(map(placed, value)) if isinstance(value, tuple) else value.replace("DIR", str(tmp_path))

    faults = preflight.look(config(**{name: placed(value) for name, value in changes.items()}))
    assert faults.wrong == () and len(faults.absent) == len(told)
    assert all(said.startswith(placed(begin)) for said, begin in zip(faults.absent, told, strict=True))


def test_a_run_is_refused_for_all_of_it_at_once():
    with pytest.raises(ValueError) as error:
        preflight.require(config(data__held_out="none.jsonl", tokenizer="json:none", tasks__operators=("none",)))
    told = [line.partition(":")[0] for line in str(error.value).splitlines()]
    assert told == ["tasks", "data.held_out", "tokenizer", "put there what is missing on this machine, or name what it has"]


def test_a_run_that_goes_on_needs_its_first_model_no_more():
    gone = config(init="hf:/nonexistent/model")
    assert preflight.look(gone, is_resumed=True) == preflight.Faults((), ()) and len(preflight.look(gone).absent) == 1


@pytest.mark.parametrize("changes, told", [
    ({"tasks__operators": ("boundary", "boundry")}, "tasks: got the operators ['boundry']; needed are names out of"),
    ({"tasks__told_share": 0.6, "tasks__misled_share": 0.6}, "needed is a sum of at most 1"),
    ({"init": "embedded:none"}, "init: no model 'none' ships with the project; there is tiny"),
    ({"tokenizer": "embedded:none"}, "tokenizer: no model 'none' ships"),
    ({"chat": "chatml"}, "needs the special ids <|im_start|>"),
    ({"tokenizer": "json:FILE"}, "tokenizer: FILE cannot be read as a tokenizer.json"),
    ({"tokenizer": "sentencepiece:FILE"}, "tokenizer: FILE is not a sentencepiece model"),
])
def test_what_is_wrong_on_any_machine(tmp_path, changes, told):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {}}))
    faults = preflight.look(config(**{name: value.replace("FILE", str(path)) if isinstance(value, str) else value
                                      for name, value in changes.items()}))
    assert faults.absent == () and len(faults.wrong) == 1 and told.replace("FILE", str(path)) in faults.wrong[0]


def test_kinds_of_bugs_matter_where_tasks_are_made(tmp_path):
    small.write_examples(tmp_path)
    own = {"data__train": (str(tmp_path / "train.jsonl"),), "data__held_out": str(tmp_path / "held_out.jsonl")}
    assert preflight.look(config(tasks__operators=("none",), **own)).wrong == ()


YARN = dataclasses.replace(ARCHS["qwen2.5-7b"], rope_scaling=YarnScaling(4.0, original_context=32_768))  # as the model card says


@pytest.mark.parametrize("arch, longest", [
    (ARCHS["llama3-8b"], 8192), (ARCHS["llama3.1-8b"], 131_072), (ARCHS["llama3.2-1b"], 131_072), (ARCHS["qwen2.5-7b"], 32_768),
    (YARN, 131_072), (ARCHS["qwen2.5-72b-131k"], 131_072),
], ids=["llama3", "llama3.1", "llama3.2", "qwen2.5", "yarn of 32k", "yarn of 131k"])
def test_lengths_that_a_model_was_not_made_for(arch, longest):
    """As published: what rope_scaling stretches is counted once."""
    fits, beyond = (config(answer__max_tokens=1000, prompt__max_tokens=longest - 1000 + more) for more in (0, 1))
    assert preflight.beyond_context(fits, arch) == ""
    assert f" are {longest + 1} positions, and llama3.3-70b was made for {longest} (" in preflight.beyond_context(beyond, arch)
    assert "and embedded:tiny was made for" in preflight.beyond_context(config_lib.update(beyond, {"model.arch": "init"}), arch)
    assert preflight.beyond_context(config_lib.update(beyond, {"init": "random"}), arch) == ""
