"""The whole path through the command line, example → checkpoint → evaluation → answer; and how it refuses."""

import json
import os
import re
import shutil

import pytest
import small

from swerl_jax import assemble, config as config_lib
from swerl_jax.env.tokenizer import load_tokenizer
from swerl_jax.learn.checkpoint import Checkpoints
from swerl_jax.learn.manifest import find_fault
from swerl_jax.learn.metrics import METRICS, read_metrics
from swerl_jax.models import shipped


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(data directory, run directory, its output) of two supervised and two RL steps on the paper's reward."""
    data, directory = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("runs") / "run"
    small.write_examples(data)
    done = small.run(f"--config=tests/small.py:{data}", "--config.reward.name=search_replace", "--config.sft.steps=2",
                     "--config.rl.steps=2", "--config.rl.minibatches=1", "--config.eval.every_steps=0",
                     f"--workdir={directory}", JAX_COMPILATION_CACHE_DIR=str(data / "compilations"))
    assert done.returncode == 0, done.stderr
    return data, directory, done.stdout


def refusal(*arguments, **variables):
    """The one message of a command that is refused."""
    done = small.run(*arguments, **variables)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr and done.stderr.startswith("swerl_jax: ")
    return done.stderr


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_training_leaves_what_it_promises(trained):
    _, directory, output = trained
    config = json.loads((directory / "config.json").read_text())
    assert config["config"]["model.arch"] == "small" and config["config"]["rl.steps"] == 2 and config["version"]

    metrics = read_metrics(directory / "metrics.jsonl")
    assert [(row["step"], row["task"]) for row in metrics] == [(1, "sft"), (2, "sft"), (3, "rl"), (4, "rl")]
    assert all(set(row) - {"step"} <= set(METRICS) for row in metrics)
    assert ["eval/reward" in row for row in metrics] == [False, True, False, True]
    for row in metrics[2:]:  # an untaught model: every answer has −1, and nothing is learnt
        assert row["reward/mean"] == -1 and row["group/zero_std_frac"] == 1 and row["tokens/sampled"] > 0
        assert row["tokens/learned"] == row["update/count"] == 0

    names = sorted(path.name for path in (directory / "rollouts").iterdir())
    assert names == ["step_000003.jsonl", "step_000004.jsonl"]
    rows = lines(directory / "rollouts" / names[0])
    assert [row["kind"] for row in rows] == 2 * ["group", *4 * ["rollout"]]
    assert sum(row.get("tokens", 0) for row in rows) == metrics[2]["tokens/sampled"]
    evaluated = lines(directory / "evaluations" / "step_000004.jsonl")
    assert [row["example_id"] for row in evaluated if row["kind"] == "group"] == ["small-7", "small-8", "small-9"]

    checkpoints = Checkpoints.open(directory)
    assert checkpoints.steps() == [2, 4] and checkpoints.newest == 4
    assert all(find_fault(path) is None for path in checkpoints.directory.iterdir())
    table = (directory / "table.md").read_text()
    labels = ["after sft (step 2)", "after rl (step 4)", "a comment at a random line", "a random line deleted", "change"]
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:7]] == labels
    assert "held-out example" in (directory / "improved.diff").read_text()
    assert (directory / "rewards.png").read_bytes().startswith(b"\x89PNG")
    assert "step 4/4" in output and str(directory / "rewards.png") in output


@pytest.mark.slow
def test_a_checkpoint_can_be_evaluated(trained, tmp_path):
    data, directory, _ = trained
    done = small.run(f"--config=tests/small.py:{data}", "--config.task=eval", f"--config.checkpoint={directory}",
                     "--config.eval.samples=2", "--config.eval.pass_k=(1, 2)", "--config.eval.temperature=1.0",
                     "--config.eval.examples=2", "--config.reward.name=search_replace",
                     f"--config.data.held_out={data / 'train.jsonl'}",
                     f"--config.eval.output={tmp_path / 'answers.jsonl'}")
    assert done.returncode == 0, done.stderr
    assert "pass@2" in done.stdout and str(directory) in done.stdout
    rows = lines(tmp_path / "answers.jsonl")
    assert [row["example_id"] for row in rows if row["kind"] == "group"] == ["small-0", "small-1"]
    assert sum(row["kind"] == "rollout" for row in rows) == 4


@pytest.mark.slow
def test_an_evaluation_whose_reward_always_fails_says_so(trained):
    data, directory, _ = trained
    message = refusal(f"--config=tests/small.py:{data}", "--config.task=eval", f"--config.checkpoint={directory}",
                      "--config.reward.name=small:broken_reward", f"--config.data.held_out={data / 'held_out.jsonl'}")
    assert "none of the 3 answers has a verdict" in message and "  3 × the reward raised ZeroDivisionError: " in message


@pytest.mark.slow
def test_a_checkpoint_answers_one_issue(trained, tmp_path):
    data, directory, _ = trained
    (tmp_path / "m.py").write_text("def f(a):\n    return a + 2\n")
    (tmp_path / "issue.txt").write_text("f is wrong")
    arguments = [f"--config=tests/small.py:{data}", "--config.task=sample", f"--config.checkpoint={directory}"]
    done = small.run(*arguments, f"--config.sample.issue=@{tmp_path / 'issue.txt'}",
                     f"--config.sample.files={os.path.relpath(tmp_path / 'm.py', small.ROOT)}",
                     "--config.prompt.max_tokens=200", "--config.engine.prefix_buckets=(200,)")
    assert done.returncode == 0, done.stderr
    assert "not a usable answer" in done.stdout, "after four steps it cannot be one"
    assert "--config.sample.issue=TEXT" in refusal(*arguments)


@pytest.mark.slow
def test_an_exported_model_answers_as_before_and_learns_on(trained, tmp_path):
    data, directory, _ = trained
    config, model = f"--config=tests/small.py:{data}", tmp_path / "model"
    export = [config, "--config.task=export", f"--config.checkpoint={directory}", f"--config.out={model}"]
    done = small.run(*export)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in model.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "settings.json"]
    assert json.loads((model / "settings.json").read_text())["config"]["tokenizer"] == "byte"
    assert "exists already" in refusal(*export)
    answers = []
    done = small.run(*export[:-1], f"--config.out={tmp_path / 'orbax'}", "--config.format=orbax")
    assert done.returncode == 0, done.stderr
    for checkpoint in (directory, f"hf:{model}", tmp_path / "orbax"):
        output = tmp_path / f"{len(answers)}.jsonl"
        done = small.run(config, "--config.task=eval", f"--config.checkpoint={checkpoint}",
                         f"--config.data.held_out={data / 'held_out.jsonl'}", f"--config.eval.output={output}")
        assert done.returncode == 0, done.stderr
        answers.append(output.read_text())
    assert answers[0] == answers[1] == answers[2]
    assert f"give hf:{model}" in refusal(config, "--config.task=eval", f"--config.checkpoint={model}")
    done = small.run(config, f"--config.init=hf:{model}", "--config.phases=('rl',)", "--config.rl.steps=1",
                     f"--workdir={tmp_path / 'more'}")
    assert done.returncode == 0, done.stderr
    assert lines(tmp_path / "more" / "evaluations" / "step_000000.jsonl") == [json.loads(x) for x in answers[0].splitlines()]
    message = refusal(config, f"--config.init=hf:{model}", "--config.model.arch=tiny", f"--workdir={tmp_path / 'x'}",
                      "--config.phases=('rl',)")
    assert "other sizes than the configured model: D is 32 and not 192; L is 2 and not 6" in message


def test_a_run_that_begins_with_another_keeps_its_tokenizer(tmp_path):
    origin, directory = tmp_path / "first" / assemble.TOKENIZER_PATH, tmp_path / "second"
    origin.parent.mkdir(parents=True)
    shutil.copyfile(shipped.find("embedded:tiny") + "/tokenizer.model", origin)
    config = config_lib.update(config_lib.default(), {
        "init": str(tmp_path / "first"), "tokenizer": "train:300", "chat": "compact"})
    tokenizer = assemble.text(config, directory, ("never read",)).tokenizer
    assert tokenizer.vocab_size == load_tokenizer("embedded:tiny").vocab_size
    assert (directory / assemble.TOKENIZER_PATH).read_bytes() == origin.read_bytes()


@pytest.mark.parametrize("tokenizer, arch, V", [  # the rows have 151,936 and 768
    ("hf:DIR", "qwen3-8b", 151_936), ("hf:DIR", "tiny", 1024), ("embedded:tiny", "tiny", 1024), ("byte", "qwen3-8b", 262)])
def test_the_vocabulary_of_a_named_model(tmp_path, tokenizer, arch, V):
    tokenizer = tokenizer.replace("DIR", shipped.find("embedded:tiny"))
    config = config_lib.update(config_lib.default(), {"model.arch": arch, "tokenizer": tokenizer})
    assert assemble.arch(config, load_tokenizer(tokenizer)).V == V


def test_bytes_are_not_given_to_a_model_with_a_tokenizer(tmp_path):
    config = config_lib.update(config_lib.default(), {"init": "embedded:tiny", "tokenizer": "byte"})
    with pytest.raises(ValueError, match="set --config.tokenizer=embedded:tiny"):
        assemble.text(config, tmp_path, ())


@pytest.mark.slow
def test_rollouts_are_scored_again_by_the_score_task(trained, tmp_path):
    _, directory, _ = trained
    source = directory / "rollouts" / "step_000003.jsonl"
    done = small.run("--config=configs/score.py", f"--config.input={source}",
                     f"--config.output={tmp_path / 'out.jsonl'}")
    assert done.returncode == 0, done.stderr
    for before, after in zip(lines(source), lines(tmp_path / "out.jsonl"), strict=True):
        assert before.get("reward") == after.get("reward") and before.get("reason") == after.get("reason")


@pytest.mark.slow
@pytest.mark.parametrize("variant, changes, tasks", [
    ("quick", [], ["rl"] * 2),
    ("scratch", ["tasks.drill_count=40", "tasks.train_count=120", "tasks.held_out_count=20", "sft.steps=3", "rl.steps=2",
                 "rl.prompts=2", "engine.groups=2", "eval.examples=10"], ["sft"] * 3 + ["rl"] * 2),
])
def test_the_main_job_runs(variant, changes, tasks, tmp_path):
    """The smallest variant as it ships, and the one that makes tokenizer, parameters and all with less of each."""
    done = small.run(f"--config=configs/tiny.py:{variant}", *(f"--config.{change}" for change in changes),
                     f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert [row["task"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["step"]] == tasks
    table = (tmp_path / "run" / "table.md").read_text()
    assert f"after rl (step {len(tasks)})" in table and (tmp_path / "run" / "rewards.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("config", ["8b", "70b", "qwen72b"])
def test_the_path_of_large_models_runs(config, tmp_path):
    """Two steps with a tiny model in place of the large one, and all else as it ships."""
    done = small.run(f"--config=configs/{config}.py:quick", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert [row["task"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["step"]] == ["rl"] * 2
    assert "after rl (step 2)" in (tmp_path / "run" / "table.md").read_text()


@pytest.mark.slow
def test_a_run_is_not_overwritten(trained):
    data, directory, _ = trained
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}
    message = refusal(f"--config=tests/small.py:{data}", f"--workdir={directory}")
    assert re.search(r"(?s)holds a run already.*--resume.*another --workdir.*delete", message)
    assert before == {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}


WRONG = {
    "no config": ([], "needed is --config=configs/NAME.py"),
    "a config that is not there": (["--config=configs/nope.py"], "configs/nope.py"),
    "and settings behind it": (["--config=configs/nope.py", "--config.rl.steps=3"], "configs/nope.py"),
    "an unknown variant": (["--config=configs/tiny.py:quik"], "configs/tiny.py has no variant 'quik'; there are discrete,"),
    "an unknown setting": (["--config=configs/tiny.py", "--config.rl.stepz=3"],
                           "config.rl.stepz is not a setting; did you mean config.rl.steps?"),
    "an unknown section": (["--config=configs/tiny.py", "--config.rlx.steps", "3"],
                           "config.rlx.steps is not a setting"),
    "a whole section": (["--config=configs/tiny.py", "--config.rl={}"], "config.rl is not a setting"),
    "a wrong type": (["--config=configs/tiny.py", "--config.rl.steps=many"],
                     "--config.rl.steps=many: invalid literal for int()"),
    "an unknown flag": (["--config=configs/tiny.py", "--wrkdir=x"], "--wrkdir is not a flag (did you mean --workdir?); there are "
                        "--config, --workdir, --resume, --dry_run, --plan, --plan_json, and settings like --config.rl.steps=10"),
    "a flag like none": (["--config=configs/tiny.py", "--zzzzzz", "1"], "--zzzzzz is not a flag; there are --config,"),
    "a setting as a flag": (["--config=configs/tiny.py", "--rl.steps=3"], "did you mean --config.rl.steps?"),
    "a stray word": (["--config=configs/tiny.py", "rl.steps=3"], "settings look like --config.rl.steps=10"),
    "another model's tokenizer": (["--config=configs/tiny.py", "--config.init=hf:model"], "set --config.tokenizer=hf:model"),
    "a broken rule": (["--config=configs/tiny.py", "--config.engine.top_p=0.9"], "set top_p=1 and top_k=0"),
    "nothing to resume": (["--config=configs/tiny.py", "--resume", "--workdir=/nonexistent/run"], "there is no run in"),
    "another bucket": (["--config=configs/tiny.py", "--workdir=s3://bucket/run"], "s3://bucket/run: a run's directory is one on a file"),
    "a run that is none": (["--config=configs/tiny.py", "--config.init=/nonexistent/run", "--dry_run"],
                           "init is /nonexistent/run, and there is no such directory"),
    "a reward that is none": (["--config=configs/tiny.py", "--config.reward.name=os:nope", "--dry_run"],
                              "reward 'os:nope' cannot be imported"),
    "examples that are not there": (["--config=configs/tiny.py", "--config.data.held_out=no*.jsonl", "--workdir=/nonexistent/run"],
                                    "data.held_out: found no examples at no*.jsonl; needed is a file, directory or pattern"),
    "an unknown bug": (["--config=configs/tiny.py", "--config.tasks.operators=('boundry',)", "--dry_run"],
                       "tasks: got the operators ['boundry']; needed are names out of ['and_or', 'boundary',"),
    "no run's directory": (["--config=configs/eval.py", "--config.checkpoint=configs"],
                           "configs is no directory of a run (config.json is missing)"),
    "no checkpoint": (["--config=configs/eval.py", "--config.checkpoint=/nonexistent/run"],
                      "there is no directory /nonexistent/run"),
    "no tokenizer": (["--config=configs/eval.py", "--config.checkpoint=hf:tests"], "hf:tests holds no tokenizer that is on this"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_command_is_one_readable_message(case):
    arguments, message = WRONG[case]
    assert message in refusal(*arguments)


@pytest.mark.parametrize("config", ["tiny.py", "tiny.py:quick", "70b.py", "score.py"])
def test_dry_run_touches_no_device(config, tmp_path):
    needed = ["--config.input=a", "--config.output=b"] if config == "score.py" else []
    done = small.run(f"--config=configs/{config}", *needed, "--dry_run", f"--workdir={tmp_path / 'run'}",
                     JAX_PLATFORMS="nonsense")
    assert done.returncode == 0, done.stderr
    assert "rl.steps = " in done.stdout
    told = [line for line in done.stdout.splitlines() if line.startswith("warning: ")]
    assert told == (["warning: tokenizer: tokenizer spec 'tiktoken:tokenizer.model': there is no file tokenizer.model; on this "
                     "machine a run would stop"] if config == "70b.py" else [])
    if not needed:
        assert re.search(r"[\d,]{9,} parameters", done.stdout)
        assert "GiB" in done.stdout and "answers a step" in done.stdout
    assert not list(tmp_path.iterdir())


def test_dry_run_counts_what_there_is():
    """Llama 3.3 70B has 70,553,706,496 parameters (its model card's 70.6B); batch arithmetic by hand."""
    output = small.run("--config=configs/70b.py", "--config.rl.prompts=32", "--config.rl.samples=16",
                       "--config.rl.minibatches=2", "--dry_run").stdout
    assert "70,553,706,496 parameters" in output
    assert "rl.prompts 32 × rl.samples 16 = 512 answers a step" in output
    assert "each on 16 prompts (256 answers)" in output


def dry_run(config, *arguments):
    """(the output, GiB by part: "in all" and "disk" among them)."""
    output = small.run(f"--config=configs/{config}", *arguments, "--dry_run").stdout
    disk = re.search(r": ([\d.]+) GiB a checkpoint", output)[1]
    return output, {name: float(size) for size, name in re.findall(r"^ +([\d.]+) GiB  (.*)$", output, re.MULTILINE)} | {
        "disk": float(disk)}


def test_dry_run_counts_moments_as_they_are_kept():
    n = 70_553_706_496 / 2**30
    _, sizes = dry_run("70b.py:v6e")
    assert sizes["parameters, float32"] == sizes["gradient"] == pytest.approx(4 * n, abs=0.01)
    assert sizes["Adam's two moments, bfloat16"] == pytest.approx(2 * 2 * n, abs=0.01)
    assert sizes["disk"] == pytest.approx(8 * n, abs=0.01)


def test_an_8b_model_learns_on_one_accelerator_of_80_gb():
    """Llama 3.1 8B has 8,030,261,248 parameters (its model card's 8.03B); bytes by hand."""
    output, _ = dry_run("8b.py")
    assert "8,030,261,248 parameters" in output and " learn" not in output.partition("model    ")[2].splitlines()[0]
    output, sizes = dry_run("8b.py:lora")
    change = 32 * 16 * (4096 + 6144 + 4096 + 4096 + 4096 + 2 * 14_336 + 14_336 + 4096)
    assert change == 35_651_584 and f"8,030,261,248 parameters (published vocabulary of 128,256); {change:,} learn" in output
    expected = {
        "parameters, bfloat16": 2 * 8_030_261_248, "low-rank change, float32": 4 * change,
        "Adam's two moments, float32": 8 * change, "gradient": 4 * change, "engine's weights": 2 * (8_030_261_248 + change),
        # 8 prompts with 8 answers each at a time; 8 key heads of 128, keys and values, bfloat16
        "keys and values, training or evaluating": 8 * (6144 + 8 * 2048) * 2 * 32 * 8 * 128 * 2,
        "disk": 2 * 8_030_261_248 + 12 * change}
    assert {name: sizes[name] for name in expected} == {
        name: pytest.approx(size / 2**30, abs=0.006) for name, size in expected.items()}
    assert sizes["in all, without temporaries"] < 0.95 * 80e9 / 2**30


