"""`--config.data=SHARDS` trains on them and shows them, and Beam or no Beam the command lines work as written."""

import json
import pathlib
import shutil

import pytest
import small
from curated import Inline, config, make_clone

from swerl_jax import command_line, config as config_lib
from swerl_jax.curate import shard_stage, tasks
from swerl_jax.env.tokenizer import tokenizer_file, train_sentencepiece


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The shards of one clone of nine fixes, two held out."""
    directory = tmp_path_factory.mktemp("made")
    make_clone(directory / "a.git", "o/a", fixes=9, seed=9, modules=2)
    tasks.curate(config(f"git:{directory / 'a.git'}", directory / "out", held_out_share=0.25), Inline())
    return directory / "out"


def with_shards(path, *given, context=8192, **changes):
    plain = {name.replace("__", "."): value for name, value in changes.items()}
    settings = config_lib.update(config_lib.default(), {"data.shards": str(path), **plain})
    return tasks.with_shards(settings, lambda name: name in given, lambda: context)


TEXT = {"tokenizer": "embedded:tiny", "chat": "compact", "prompt__style": "compact"}


def test_a_flag_stands_for_the_sections_setting():
    given = ("--config.data=a=b", "-config.data=x", "--config.data", "--config.data.train=x")
    assert [command_line._shards_flag(one) for one in given] == [
        "--config.data.shards=a=b", "-config.data.shards=x", "--config.data.shards", "--config.data.train=x"]


def test_shards_stand_for_paths_and_budgets(made, capsys):
    median = json.loads((made / "manifest.json").read_text())["prompt_tokens"]["median"]
    assert median % 128 == 0 and 256 <= median <= 4096
    found = with_shards(made, prompt__max_tokens=160, engine__prefix_buckets=(112, 160), **TEXT)
    assert found.data.train == (f"{made}/train-?????-of-00001.array_record",)
    assert found.data.held_out == f"{made}/held_out-?????-of-00001.array_record"
    assert found.prompt.max_tokens == median and found.engine.prefix_buckets == ()
    told = capsys.readouterr().out
    share = int(told.partition(f"prompt.max_tokens is {median}: ")[2].partition("%")[0])
    assert 50 <= share <= 100 and share in [round(100 * fit / 9) for fit in range(10)]
    tight = with_shards(made, context=500, prompt__max_tokens=160, answer__max_tokens=250, **TEXT)
    assert tight.prompt.max_tokens == 250 and "0% of the examples" in capsys.readouterr().out
    for other in (with_shards(made, "prompt.max_tokens", prompt__max_tokens=160, **TEXT),
                  with_shards(made, prompt__max_tokens=160, **(TEXT | {"tokenizer": "byte"}))):
        assert other.prompt.max_tokens == 160 and other.data.train
    assert with_shards(made, prompt__max_tokens=5000, **TEXT).prompt.max_tokens == 5000
    plain = config_lib.default()
    assert tasks.with_shards(plain, bool, int) is plain
    config_lib.check(with_shards(made, **TEXT))


def test_a_place_that_cannot_be_written_to_is_said_before_the_work(tmp_path):
    (tmp_path / "file").write_text("x")
    make_clone(tmp_path / "a.git", "o/a", fixes=1, seed=1)
    with pytest.raises(ValueError, match="nothing can be written to .*/file/out .*choose another"):
        tasks.curate(config(f"git:{tmp_path / 'a.git'}", tmp_path / "file" / "out"), Inline())


def test_what_are_no_shards_is_said(made, tmp_path):
    with pytest.raises(ValueError, match="name the shards or the files, not both"):
        with_shards(made, data__train=("a.jsonl",))
    with pytest.raises(ValueError, match="needed is a directory that --config=configs/curate.py made"):
        with_shards(tmp_path)
    manifest = json.loads((made / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
    with pytest.raises(ValueError, match="is of format 1; needed is 2"):
        with_shards(tmp_path)
    manifest["shards"] = [shard for shard in manifest["shards"] if shard["split"] == "train"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="is unfinished: it lacks train-00000-of-00001.array_record"):
        with_shards(tmp_path)
    (tmp_path / "train-00000-of-00001.array_record").write_bytes((made / "train-00000-of-00001.array_record").read_bytes())
    with pytest.raises(ValueError, match="holds out no example.*held_out_share"):
        with_shards(tmp_path)


def test_an_update_that_was_killed_leaves_nothing_to_train_on(tmp_path, monkeypatch):
    make_clone(tmp_path / "clones" / "a.git", "o/a", fixes=9, seed=9, modules=2)
    source, out = f"git:{tmp_path / 'clones'}", tmp_path / "out"
    tasks.curate(config(source, out), Inline())
    for name in ("train-notes.txt", "held_out-mine.array_record", "train-0-of-1.array_record"):
        (out / name).write_text("mine")
    (out / ".train-00000-of-00003.array_record.77.partial.array_record").write_text("a dead process's")
    make_clone(tmp_path / "clones" / "b.git", "o/b", fixes=9, seed=10, modules=2)
    write = shard_stage.write_shard

    def killed(shared, directory, sources, buckets, fates, start, split, name, out):
        if split == "held_out":
            raise KeyboardInterrupt
        return write(shared, directory, sources, buckets, fates, start, split, name, out)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shard_stage, "write_shard", killed)
        tasks.curate(config(source, out), Inline())
    for use in (tasks.shards_at, with_shards, inspect):
        with pytest.raises(ValueError, match="is unfinished: it lacks manifest.json; give the same"):
            use(out)
    tasks.curate(config(source, out), Inline())
    assert "18 examples of 2 repositories" in inspect(out)
    assert {path.name for path in out.iterdir() if "train" in path.name or "held" in path.name} == {
        "train-notes.txt", "held_out-mine.array_record", "train-0-of-1.array_record",
        "train-00000-of-00001.array_record", "held_out-00000-of-00001.array_record"}


def inspect(path, index=0):
    settings = config_lib.update(config_lib.default(), {"task": "inspect", "data.shards": str(path), "inspect.index": index,
                                                        "chat": "compact", "prompt.style": "compact"})
    return tasks.inspect(settings, lambda name: False, colour=False)


def test_inspection_shows_an_example_and_the_set(made, tmp_path):
    page = inspect(made)
    assert "Fix crash in" in page and "reward         1.0" in page and "9 examples of 1 repositories" in page and "MIT 9" in page
    assert inspect(made, 8).split("Issue")[0] != page.split("Issue")[0]
    with pytest.raises(ValueError, match="inspect.index is 9; .* has the examples 0 to 8"):
        inspect(made, 9)
    row = {"repo": "o/n", "instance_id": "o__n-1", "base_commit": "b", "problem_statement": "It breaks",
           "patch": "--- a/m.py\n+++ b/m.py\n@@ -1 +1 @@\n-a\n+b\n"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"patch": "?"}) + "\n")
    settings = config_lib.update(config_lib.default(), {"task": "inspect", "data.shards": str(tmp_path / "rows.jsonl"),
                                                        "tokenizer": "byte"})
    page = tasks.inspect(settings, lambda name: True, colour=False)
    assert "It breaks" in page and "1 rows are no examples" in page and "1 examples of 1" in page


@pytest.mark.parametrize("changes, message", [
    ({"tokenizer": "train:768"}, "to count tokens one that exists is needed"), ({"curate__languages": ("Klingon",)}, "Klingon"),
    ({"curate__bug_fix": "nowhere:f"}, "needed is words, any, or the module:function"),
    ({"curate__evaluation_files": ("/nonexistent",)}, "nonexistent"),
    ({"reward__name": "unified_diff"}, "reward.name is unified_diff; .* needs search_replace"),
])
def test_settings_that_cannot_work_are_said_before_the_work(tmp_path, changes, message):
    make_clone(tmp_path / "a.git", fixes=1)
    with pytest.raises((ValueError, OSError), match=message):
        tasks.curate(config(f"git:{tmp_path / 'a.git'}", tmp_path / "out", **changes), Inline())
    assert not (tmp_path / "out").exists()


def test_another_tokenizer_of_the_same_name_makes_all_anew(tmp_path):
    make_clone(tmp_path / "a.git", fixes=1)
    spec = shutil.copy(tokenizer_file("embedded:tiny"), tmp_path / "tokenizer.model")
    engines = [Inline(), Inline()]
    for engine in engines:
        tasks.curate(config(f"git:{tmp_path / 'a.git'}", tmp_path / "out", tokenizer=f"sentencepiece:{spec}"), engine)
    train_sentencepiece([pathlib.Path(__file__).read_text()], 400, spec)
    tasks.curate(config(f"git:{tmp_path / 'a.git'}", tmp_path / "out", tokenizer=f"sentencepiece:{spec}"), engines[1])
    names = [[task.function.__name__ for task in engine.done] for engine in engines]
    assert names[0] == names[1][1:] and names[1][0] == "look_at"


@pytest.mark.slow
def test_the_commands_of_the_whole_way(tmp_path):
    """Curate, inspect, and a few steps of training, as the README writes them."""
    make_clone(tmp_path / "a.git", "o/a", fixes=12, seed=9, modules=2)
    out = tmp_path / "shards"
    done = small.run("--config=configs/curate.py", f"--config.source=git:{tmp_path / 'a.git'}", f"--config.out={out}")
    assert done.returncode == 0, done.stderr
    assert "12 examples" in done.stdout or "held out (by id)" in done.stdout
    done = small.run("--config=configs/inspect.py", f"--config.data={out}", "--config.inspect.index=1")
    assert done.returncode == 0 and "reward         1.0" in done.stdout, done.stderr
    done = small.run("--config=configs/tiny.py:quick", f"--config.data={out}", "--config.rl.steps=2", "--config.rl.prompts=2",
                     "--config.rl.samples=2", "--config.engine.groups=2", "--config.answer.max_tokens=32",
                     "--config.rl.row_tokens=()", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows][-2:] == [1, 2]
    assert (tmp_path / "run" / "evaluations" / "step_000002.jsonl").exists()
