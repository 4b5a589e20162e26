"""The directory of a run: what may be gone on with, with which settings and examples."""

import json
import shutil

import pytest
import small

from swerl_jax import assemble, command_line, config as config_lib, run_directory
from swerl_jax.data import remote
from swerl_jax.data.shards import open_examples, write_examples

CONFIG = config_lib.update(config_lib.default(), {"rl.steps": 3, "eval.pass_k": (1,)})


def begin(directory, config=CONFIG, *, is_resumed=False, data=()):
    directory.mkdir(exist_ok=True)
    run_directory.begin(config, directory, data, is_resumed=is_resumed)
    return directory / run_directory.CONFIG_NAME


def test_a_run_is_gone_on_with_by_its_own_settings_alone(tmp_path):
    with pytest.raises(ValueError, match="there is no run in"):
        run_directory.check(CONFIG, tmp_path, is_resumed=True)
    begin(tmp_path)
    run_directory.check(CONFIG, tmp_path, is_resumed=True)
    with pytest.raises(ValueError, match="holds a run already"):
        run_directory.check(CONFIG, tmp_path, is_resumed=False)
    with pytest.raises(ValueError, match="holds a run already"):
        begin(tmp_path)  # another one came first
    other = config_lib.update(CONFIG.copy_and_resolve_references(), {"seed": 4})
    with pytest.raises(ValueError, match="(?s)differ.*seed: was 0, is 4"):
        run_directory.check(other, tmp_path, is_resumed=True)


def test_the_sizes_of_a_run_are_those_of_the_model_it_began_with(tmp_path):
    """The last of three runs, of which the first began with a shipped model, and one of a named size."""
    for name, init, arch in (("a", "embedded:tiny", "init"), ("b", "a", "init"), ("c", "random", "tiny")):
        begin(tmp_path / name, config_lib.update(CONFIG.copy_and_resolve_references(), {
            "init": init if ":" in init or init == "random" else str(tmp_path / init), "model.arch": arch}))
    shipped_one = run_directory.model_directory("embedded:tiny")
    assert shipped_one is not None and run_directory.model_directory(str(tmp_path / "b")) == shipped_one
    assert run_directory.model_directory(str(tmp_path / "c")) is None is run_directory.model_directory("random")
    (tmp_path / "b" / "model").mkdir()
    shutil.copyfile(f"{shipped_one}/config.json", tmp_path / "b" / "model" / "config.json")  # what `origin.keep` leaves
    assert run_directory.model_directory(str(tmp_path / "b")) == str(tmp_path / "b" / "model")
    with pytest.raises(ValueError, match="init is .*/nope, and there is no such directory"):
        run_directory.model_directory(str(tmp_path / "nope"))


def test_a_setting_that_the_run_did_not_know_had_its_default(tmp_path):
    path = begin(tmp_path)
    saved = json.loads(path.read_text())
    del saved["config"]["rl.clip_low"], saved["config"]["eval.pass_k"]
    path.write_text(json.dumps(saved))
    run_directory.check(CONFIG, tmp_path, is_resumed=True)
    other = config_lib.update(CONFIG.copy_and_resolve_references(), {"rl.clip_low": 0.1})
    with pytest.raises(ValueError, match=r"rl\.clip_low: was 0\.2, is 0\.1"):
        run_directory.check(other, tmp_path, is_resumed=True)


def test_examples_that_changed_are_refused(tmp_path):
    """By rows, by bytes, by order; a run that did not note its own takes what there is."""
    small.write_examples(tmp_path)
    train, held_out = str(tmp_path / "train.jsonl"), str(tmp_path / "held_out.jsonl")
    before = assemble.file_sizes((train, held_out))
    assert [one[:2] for one in before] == [("train.jsonl", 7), ("held_out.jsonl", 3)]
    path = begin(tmp_path / "run", data=before)
    run_directory.check_data(path.parent, before)
    with pytest.raises(ValueError, match="in another order"):
        run_directory.check_data(path.parent, before[::-1])
    text = (tmp_path / "train.jsonl").read_text()
    for changed in (text + json.dumps(small.example(11)) + "\n", text.replace("f3 is wrong", "f3 is not right")):
        (tmp_path / "train.jsonl").write_text(changed)
        with pytest.raises(ValueError, match=r"it had train\.jsonl with 7 rows in [\d,]+ bytes, there is train\.jsonl with"):
            run_directory.check_data(path.parent, assemble.file_sizes((train, held_out)))
    path.write_text(json.dumps({"config": {}}))
    run_directory.check_data(path.parent, assemble.file_sizes((train, held_out)))


def test_a_resumed_run_keeps_the_tasks_that_it_has(tmp_path):
    """Whoever made them: another Python, or another generator, would make others."""
    small.write_examples(tmp_path)
    run = tmp_path / "run"
    paths = [str(run / "tasks" / f"{name}.array_record") for name in ("train", "held_out")]
    for path, name in zip(paths, ("train", "held_out")):
        write_examples(path, open_examples(tmp_path / f"{name}.jsonl"))
    made = {path: path.read_bytes() for path in (run / "tasks").iterdir()}
    begin(run, data=assemble.file_sizes(paths))
    assert assemble.data_paths(CONFIG, run, is_resumed=True) == ((paths[0],), paths[1])
    assert assemble.data_paths(CONFIG, run, is_resumed=False, is_made=True) == ((paths[0],), paths[1])  # by process 0
    assert {path: path.read_bytes() for path in (run / "tasks").iterdir()} == made
    (run / "tasks" / "train.array_record").unlink()
    with pytest.raises(ValueError, match="found no examples at"):
        assemble.data_paths(CONFIG, run, is_resumed=True)


@pytest.mark.slow
def test_a_set_up_error_leaves_the_directory_free(tmp_path):
    small.write_examples(tmp_path)
    config, workdir = f"--config=tests/small.py:{tmp_path}", f"--workdir={tmp_path / 'run'}"
    for _ in range(2):
        done = small.run(config, workdir, "--config.engine.devices=3")
        assert done.returncode == 2 and "engine.devices is 3" in done.stderr
    done = small.run(config, workdir, "--config.sft.steps=1", "--config.rl.steps=0")
    assert done.returncode == 0, done.stderr


def _of(module, name, **attributes):
    """An error of a package that need not be here."""
    error = type(name, (OSError,), {"__module__": module})("it failed")
    for key, value in attributes.items():
        setattr(error, key, value)
    return error


@pytest.mark.parametrize(("error", "is_outage"), [
    (ConnectionResetError("gone"), True), (TimeoutError("late"), True), (FileNotFoundError("x"), False), (ValueError("x"), False),
    (OSError("Forbidden"), False), (_of("gcsfs.retry", "HttpError", code=503), True), (_of("gcsfs.retry", "HttpError", code=403), False),
    (_of("aiohttp.client_exceptions", "ClientConnectorError"), True), (_of("google.auth.exceptions", "TransportError"), True),
    (_of("google.auth.exceptions", "DefaultCredentialsError"), False)])
def test_an_outage_is_no_wrong_setting(error, is_outage):
    """What fails for the time being ends with a traceback and is tried again; the rest with exit code 2, and is not."""
    assert remote.is_outage(error) == is_outage
    with pytest.raises(type(error) if is_outage else SystemExit), command_line.readable_errors():
        raise error
