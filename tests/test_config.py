"""Settings: every name once with its meaning, and every refusal with what to do."""

import importlib.util
import pathlib

import pytest

from swerl_jax import config as config_lib, config_rules
from swerl_jax.policy.llama import REMAT

CONFIGS = sorted((pathlib.Path(__file__).resolve().parents[1] / "configs").glob("*.py"))
TASKS = ("score", "eval", "sample", "export", "curate", "inspect")  # of the same name as their config


def load(name):
    path = next(path for path in CONFIGS if path.stem == name)
    spec = importlib.util.spec_from_file_location(f"config_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


VARIANTS = [(path.stem, variant) for path in CONFIGS
            for variant in dict.fromkeys(("", "quick", *getattr(load(path.stem), "VARIANTS", ())))]


def changed(**changes):
    return config_lib.update(config_lib.default(), {name.replace("__", "."): value for name, value in changes.items()})


def test_every_setting_has_a_default_and_a_meaning():
    flat = dict(config_lib.flat(config_lib.default()))
    assert list(flat) == list(config_lib.KEYS)
    for name, (value, meaning) in config_lib.KEYS.items():
        assert flat[name] == value and type(flat[name]) is type(value)
        assert len(meaning) > 5, name


@pytest.mark.parametrize("name, hint", [
    ("rl.stepz", "did you mean config.rl.steps?"),
    ("rl.temperature", "did you mean config."),
    ("learning_rate", "learning_rate?"),
    ("engine.topp", "did you mean config.engine.top_p?"),
    ("rl", "is not a setting"),
    ("zzzzzzzz", "swerl_jax/config.py lists them all"),
])
def test_an_unknown_name_is_refused_with_the_nearest(name, hint):
    with pytest.raises(ValueError) as error:
        config_lib.update(config_lib.default(), {name: 1})
    assert str(error.value).startswith(f"config.{name} is not a setting") and hint in str(error.value)


def test_no_setting_can_be_added_by_attribute():
    with pytest.raises(AttributeError):
        config_lib.default().rl.stepz = 3


@pytest.mark.parametrize("name, value, needed", [
    ("rl.steps", "many", "int"), ("rl.steps", 1.5, "int"), ("engine.prefix_buckets", 128, "tuple"),
    ("task", 3, "str"), ("data.shuffle", "no", "bool"), ("rl.clip_low", "0.2", "float"),
])
def test_a_value_of_another_type_is_refused(name, value, needed):
    with pytest.raises(ValueError, match=f"config.{name} is {value!r}; needed is {needed} like the default"):
        config_lib.update(config_lib.default(), {name: value})


def test_a_whole_number_will_do_for_a_fraction():
    assert changed(rl__clip_low=1).rl.clip_low == 1.0


# (changes that break one rule, what its message says was got, what it says to do)
REFUSALS = {
    "task": ({"task": "trian"}, "'trian'", "train, score, eval, sample, export, curate, inspect"),
    "top_p": ({"engine.top_p": 0.9}, "top_p 0.9", "set top_p=1 and top_k=0 and use temperature"),
    "top_k": ({"engine.top_k": 50}, "top_k 50", "makes? the policy ratio of the loss wrong"),
    "max_lag": ({"rl.max_lag": 1}, "rl.max_lag is 1", r"only 0 \(synchronous\)"),
    "phases": ({"phases": ("sft", "dpo")}, "'dpo'", "out of sft, rl"),
    "prefix_buckets": ({"prompt.max_tokens": 257, "engine.prefix_buckets": (128, 256)},
                       r"is 257.*\(128, 256\)", "add a larger one"),
    "steps": ({"rl.steps": 0}, "rl.steps 0 and sft.steps 0", "give one of the phases steps"),
    "kl": ({"rl.kl_coefficient": 0.1, "sft.steps": 1}, "rl.kl_coefficient is 0.1", "run the sft phase by itself, then RL"),
    "cap": ({"rl.importance_cap": 0.5}, "rl.importance_cap is 0.5", "0 or at least 1"),
    "minibatches": ({"rl.minibatches": 5}, "rl.prompts 32", "5 minibatches; make one a multiple"),
    "truncated": ({"reward.truncated": "zero"}, "'zero'", "score or a number"),
    "truncated_nan": ({"reward.truncated": "nan"}, "'nan'", "score or a number"),
    "tokenizer": ({"init": "hf:model", "tokenizer": "train:512"}, "init is hf:model and tokenizer train:512",
                  "set --config.tokenizer=hf:model"),
    "other_tokenizer": ({"init": "hf:model", "tokenizer": "embedded:tiny"}, "init is hf:model and tokenizer embedded:tiny",
                        "set --config.tokenizer=hf:model"),
    "muon": ({"init": "run", "lora.rank": 4, "rl.muon_learning_rate": 0.02}, "lora.rank is 4.*rl.muon_learning_rate 0.02",
             "set the rate to 0"),
    "row_tokens": ({"mesh.context": 4, "rl.row_tokens": (2048, 2560), "learner.block": 128}, r"mesh.context is 4.*\(2048, 2560\)",
                   "needed are multiples of 2 × mesh.context × that"),
    "block": ({"mesh.context": 2, "learner.attention": "splash", "learner.block": 64}, "learner.block 64", "a multiple of 128"),
    "row_block": ({"rl.row_tokens": (4096, 4160)}, r"\(4096, 4160\) and learner.block 0", "needed are multiples, or empty"),
    "row_zero": ({"rl.row_tokens": (0, 4096)}, r"\(0, 4096\) and learner.block 0", "needed are multiples, or empty"),
    "row_length": ({"rl.row_tokens": (256,), "answer.max_tokens": 257, "learner.block": 64}, r"\(256,\) and answer.max_tokens is 257",
                   "add a larger one"),
    "row_type": ({"rl.row_tokens": ("a",)}, r"rl.row_tokens are \('a',\)", "needed are whole numbers"),
    "bucket_type": ({"engine.prefix_buckets": (0.5,)}, r"engine.prefix_buckets are \(0.5,\)", "needed are whole numbers"),
    "no_tokenizer": ({"tokenizer": "train:many"}, "tokenizer is 'train:many'", "train:VOCABULARY with a number of ids"),
    "no_path": ({"tokenizer": "json:"}, "tokenizer is 'json:'", "json:PATH"),
    "fsdp": ({"mesh.fsdp": 0}, "mesh.fsdp is 0", "at least 1, or -1"),
    "held_out": ({"data.train": ("a.jsonl",)}, "data.held_out is not", "name the evaluation examples too"),
    "weights": ({"data.weights": (1.0, 2.0)}, r"\(1.0, 2.0\)", "one weight a path"),
    "pass_k": ({"eval.pass_k": (1, 4)}, r"\(1, 4\)", "from 1 to eval.samples 1"),
    "pass_0": ({"eval.pass_k": (0,)}, r"\(0,\)", "from 1 to eval.samples 1"),
    "score": ({"task": "score", "input": "a"}, "task score", "--config.output=B.jsonl"),
    "eval": ({"task": "eval"}, "task eval", "--config.checkpoint=RUN_DIRECTORY"),
    "sample": ({"task": "sample"}, "task sample", "--config.checkpoint=RUN_DIRECTORY"),
    "curate": ({"task": "curate", "out": "o"}, "task curate", "--config.source=git:PATH"),
    "inspect": ({"task": "inspect"}, "task inspect", "--config.data=SHARDS"),
}


@pytest.mark.parametrize("rule", REFUSALS)
def test_what_cannot_work_is_refused(rule):
    changes, got, remedy = REFUSALS[rule]
    with pytest.raises(ValueError, match=f"(?s){got}.*{remedy}") as error:
        config_lib.check(config_lib.update(config_lib.default(), changes))
    assert "{" not in str(error.value)


@pytest.mark.parametrize("name, wrong, allowed", [
    ("rl.aggregation", "mean", "token_mean, sequence_mean, constant"), ("rl.advantage", "gae", "grpo, dr_grpo, rloo"),
    ("rl.loss", "ppo", "clip, cispo"), ("rl.schedule", "linear", "constant, cosine"),
    ("sft.schedule", "", "constant, cosine"), ("learner.remat", "nope", ", ".join(REMAT)),
    ("model.dtype", "float16", "float32, bfloat16"), ("model.param_dtype", "fp32", "float32, bfloat16"),
    ("engine.unroll_layers", "yes", "auto, true, false"), ("chat", "mistral", "llama3, chatml, compact"),
    ("prompt.style", "long", "swe_rl, compact"), ("reward.similarity", "jaccard", "difflib, indel"),
    ("data.on_malformed", "ignore", "stop, skip"), ("on_malformed", "ignore", "stop, skip"),
    ("tasks.scope", "file", "function, module"), ("tasks.voice", "nobody", "maintainer, user"),
    ("curate.bots", "none", "signed, paper"),
])
def test_names_out_of_a_list(name, wrong, allowed):
    with pytest.raises(ValueError, match=f"^{name} is '{wrong}'; needed is one of {allowed}$"):
        config_lib.check(config_lib.update(config_lib.default(), {name: wrong}))


@pytest.mark.parametrize("name", ["rl.prompts", "rl.samples", "rl.minibatches", "rl.epochs", "checkpoints.every_steps",
                                  "eval.examples", "answer.max_tokens", "reward.workers", "mesh.context"])
def test_numbers_that_must_not_be_zero(name):
    with pytest.raises(ValueError, match=f"(?m)^{name} is 0; needed is at least 1$"):
        config_lib.check(config_lib.update(config_lib.default(), {name: 0}))


@pytest.mark.parametrize("name, wrong, interval", [
    ("optimizer.max_grad_norm", 0.0, "(0, inf]"), ("rl.learning_rate", -1.0, "(0, inf)"), ("rl.clip_low", -1.0, "[0, 1]"),
    ("optimizer.beta2", 1.0, "[0, 1)"), ("eval.temperature", -1.0, "[0, inf)"), ("rl.steps", -3, "[0, inf)"),
    ("engine.temperature", 0.0, "(0, inf)"), ("rl.clip_high", float("nan"), "[0, inf]"), ("held_out_share", 1.0, "[0, 1)"),
    ("rl.kl_coefficient", float("inf"), "[0, inf)"),
])
def test_numbers_out_of_an_interval(name, wrong, interval):
    with pytest.raises(ValueError) as error:
        config_lib.check(config_lib.update(config_lib.default(), {name: wrong}))
    assert f"{name} is {wrong}; needed is a number in {interval}" in str(error.value).splitlines()


def test_the_ends_of_an_interval_count_as_its_brackets_say():
    config_lib.check(changed(optimizer__max_grad_norm=float("inf"), rl__clip_low=1.0, optimizer__beta1=0.0, rl__steps=0,
                            sft__steps=1))


def test_the_tables_of_checks_name_settings_and_take_their_defaults():
    """A choice in brackets without a comma would be a text, whose letters `in` would look through."""
    assert all(type(allowed) is tuple and all(type(one) is str for one in allowed) for allowed in config_rules.CHOICES.values())
    named = [*config_rules.CHOICES, *config_rules.AT_LEAST_ONE, *(name for names in config_rules.NUMBERS.values() for name in names)]
    assert set(named) <= set(config_lib.KEYS) and len(named) == len(set(named))
    assert all(type(names) is tuple for names in config_rules.NUMBERS.values())


def test_rows_that_are_not_made_may_have_any_size():
    """A supervised run has no rows of groups; 320 = 5 blocks of 64 hold an answer of 257 to 320 tokens."""
    config_lib.check(changed(phases=("sft",), sft__steps=1, rl__row_tokens=(7,)))
    config_lib.check(changed(rl__row_tokens=(64, 320), answer__max_tokens=257, learner__block=64))


def test_all_faults_are_told_at_once():
    with pytest.raises(ValueError) as error:
        config_lib.check(changed(engine__top_p=0.5, rl__max_lag=2))
    assert len(str(error.value).splitlines()) == 2


def test_the_defaults_work():
    config_lib.check(config_lib.default())


@pytest.mark.parametrize("init, tokenizer", [
    ("hf:model", "hf:model"), ("hf:gs://bucket/model", "hf:model"), ("hf:model", "json:other/tokenizer.json"),
    ("run", "train:512")])
def test_a_tokenizer_may_be_the_models_own(init, tokenizer):
    config_lib.check(changed(init=init, tokenizer=tokenizer))


@pytest.mark.parametrize("name, variant", VARIANTS)
def test_configs(name, variant):
    module = load(name)
    assert f"configs/{name}.py" in module.__doc__, "says its command"
    if variant and name in TASKS:
        with pytest.raises(ValueError, match=f"configs/{name}.py has no variant '{variant}'"):
            module.get_config(variant)
        return
    config = module.get_config(variant)
    if config.task == "train":
        config_lib.check(config)
    assert config.task == (name if name in TASKS else "train")
    with pytest.raises(ValueError, match="has no variant 'nonsense'"):
        module.get_config("nonsense")
