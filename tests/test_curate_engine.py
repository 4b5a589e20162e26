"""Processes that die, hang, grow or fail cost one item at most, and a killed run ends as one that was never killed."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import small
from curated import Inline, make_clone, shards

from swerl_jax.curate import work
from swerl_jax.curate.engine import LocalEngine
from swerl_jax.curate.work import Item, Work
from swerl_jax.data import files


def note(item):
    """Appends the process's number to a file, then does what the item says."""
    path, what = item
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    if what == "die" or (what == "die once" and len(pathlib.Path(path).read_text().split()) == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hang":
        time.sleep(600)


@pytest.fixture
def engine():
    made = LocalEngine(2, timeout_s=60.0, memory_bytes=1 << 40)
    yield made
    made.close()


def test_a_dead_worker_is_replaced_and_its_item_tried_once_more(engine, tmp_path, capsys):
    whats = ["", "die", "", "die once", "", ""]
    found = dict(engine.run(note, [(str(tmp_path / str(i)), what) for i, what in enumerate(whats)]))
    assert sorted(found) == list(range(6)) and [bool(found[i]) for i in range(6)] == [False, True, False, False, False, False]
    assert found[1] == "a worker died (exit code -9)" and "tried once more" in capsys.readouterr().err
    assert [len((tmp_path / str(i)).read_text().split()) for i in range(6)] == [1, 2, 1, 2, 1, 1]
    assert dict(engine.run(note, [(str(tmp_path / "7"), "")])) == {0: ""}, "the engine serves further stages"
    assert list(engine.run(note, [])) == []


def test_a_worker_that_hangs_is_given_up(tmp_path):
    engine = LocalEngine(1, timeout_s=20.0, memory_bytes=1 << 40)
    try:
        list(engine.run(note, [(str(tmp_path / "a"), "")]))
        engine._timeout_s = 0.5
        assert dict(engine.run(note, [(str(tmp_path / "b"), "hang")])) == {0: "a worker took longer than 0.5 s"}
    finally:
        engine.close()


def test_a_worker_that_has_grown_is_replaced(tmp_path):
    engine = LocalEngine(1, timeout_s=60.0, memory_bytes=1)
    try:
        assert dict(engine.run(note, [(str(tmp_path / "a"), "")] * 2)) == {0: "", 1: ""}
    finally:
        engine.close()
    assert len(set((tmp_path / "a").read_text().split())) == 2


def double(shared, number, out):
    if number == 3:
        raise ValueError("three")
    pathlib.Path(out + ".txt").parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(out + ".txt").write_text("x")
    return {"twice": shared * number}


def numbers(*values):
    return [Item(f"number {value}", (value,)) for value in values]


def test_results_are_kept_by_what_they_were_made_from(tmp_path):
    engine = Inline()
    runs = Work(str(tmp_path), engine)
    assert [result.value for result in runs.run("s", double, 2, numbers(1, 2))] == [{"twice": 2}, {"twice": 4}]
    assert [result.value for result in runs.run("s", double, 2, numbers(2, 1, 5))] == [{"twice": 4}, {"twice": 2}, {"twice": 10}]
    assert len(engine.done) == 3
    runs.run("s", double, 3, numbers(1))
    runs.run("s", double, 2, [Item("number 1", (1,), "another file")])
    runs.run("other", double, 2, numbers(1))
    assert len(engine.done) == 6
    runs.run("s", double, 2, numbers(1), is_kept=False)
    runs.run("s", double, 2, numbers(1), is_whole=lambda value: False)
    runs.run("s", double, 2, numbers(1), is_whole=lambda value: value == {"twice": 2})
    assert len(engine.done) == 8


def test_an_item_that_fails_is_a_result_and_is_tried_again_later(tmp_path, monkeypatch):
    engine = Inline()
    results = Work(str(tmp_path), engine).run("s", double, 2, numbers(2, 3))
    assert results[0].value == {"twice": 4} and results[1].value is None and "ValueError: three" in results[1].fault
    monkeypatch.setattr(sys.modules[__name__], "double", lambda shared, number, out: {"now": number})
    again = Work(str(tmp_path), engine).run("s", double, 2, numbers(2, 3))
    assert [result.value for result in again] == [{"twice": 4}, {"now": 3}] and not again[1].fault
    monkeypatch.undo()
    with pytest.raises(work.AllFailed, match="(?s)stage s: all 1 items failed.*number 3.*three"):
        Work(str(tmp_path / "new"), engine).run("s", double, 2, numbers(3))


def test_files_appear_whole_or_not_at_all(tmp_path):
    url = str(tmp_path / "deep" / "a.json")
    with pytest.raises(RuntimeError), files.written(url) as path:
        pathlib.Path(path).write_text("half")
        raise RuntimeError
    assert not files.exists(url) and files.names(str(tmp_path / "deep")) == [] and files.size_bytes(url) == -1
    files.write_json(url, {"a": 1})
    assert files.read_json(url) == {"a": 1} and files.names(str(tmp_path / "deep")) == ["a.json"]
    before = files.state(url)
    files.write_json(url, {"a": 12})
    assert files.state(url) != before and files.absolute(url) == url
    files.remove(url)
    files.remove(url)
    assert not files.exists(url)


def test_files_elsewhere_are_written_and_read_the_same_way():
    url = "memory://place/deep/a.json"
    files.write_json(url, [1])
    assert files.read_json(url) == [1] and files.names("memory://place/deep") == ["a.json"] and not files.is_local(url)
    assert files.absolute("memory://place/") == "memory://place" and files.state(url)
    files.remove(url)
    assert files.size_bytes(url) == -1


def arguments(directory, out, workers):
    return small.command("--config=configs/curate.py", f"--config.source=git:{directory}", f"--config.out={out}",
                         "--config.curate.range_commits=8", "--config.curate.buckets=4", f"--config.curate.workers={workers}")


def run(*args):
    done = subprocess.run(arguments(*args), cwd=small.ROOT, env=small.environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_killed_and_gone_on_with_by_another_number_of_workers(tmp_path):
    """kill -9 in the first stage's middle and again later: the same bytes as of a run that was never killed."""
    for number in range(3):
        make_clone(tmp_path / "clones" / f"{number}.git", f"o/{number}", fixes=40, seed=number)
    told = run(tmp_path / "clones", tmp_path / "whole", 2)
    assert "120 examples" in told or "held out" in told
    expected = shards(tmp_path / "whole")
    out = tmp_path / "killed"
    for stage, count in (("commits", 3), ("commits", 9), ("collect", 2)):
        process = subprocess.Popen(arguments(tmp_path / "clones", out, 1), cwd=small.ROOT, env=small.environment(),
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list((out / "work" / stage).glob("*.json"))) < count:
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL and not (out / "manifest.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in (out / "work" / "commits").glob("*.json")}
    run(tmp_path / "clones", out, 1)
    assert shards(out) == expected and {path: path.stat().st_mtime_ns for path in kept} == kept
