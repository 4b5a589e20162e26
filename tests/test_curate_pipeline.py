"""From each of the three sources to shards, funnel, rejects and manifest; what is torn or corrupt is told and passed over."""

import gzip
import hashlib
import json
import pathlib
import shutil

import pytest
from clones import History, git
from curated import MIT, Inline, config, contents, make_clone, shards

from swerl_jax.curate import candidates, clones, git_names, tasks
from swerl_jax.curate.git_process import GitTimeout
from swerl_jax.data.shards import open_examples
from swerl_jax.env import prompts, reward

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


def curate(source, out, engine=None, **changes):
    """(manifest, what is printed) of a run."""
    told = tasks.curate(config(source, out, **changes), engine or Inline())
    return json.loads((pathlib.Path(out) / "manifest.json").read_text()), told


def rejects(out):
    with gzip.open(pathlib.Path(out) / "rejects.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def assert_sound(out, manifest):
    """What the manifest says is so, and every example's own answer scores 1.0."""
    made = shards(out)
    assert {shard["name"] for shard in manifest["shards"]} == set(made)
    for shard in manifest["shards"]:
        assert hashlib.sha256(made[shard["name"]]).hexdigest() == shard["sha256"] and len(made[shard["name"]]) == shard["bytes"]
        rows = open_examples(pathlib.Path(out) / shard["name"])
        assert len(rows) == shard["rows"]
        for example in rows:
            outcome = reward.search_replace_reward(prompts.answer_text(example, "So."), example.files, example.oracle)
            assert outcome.reward == 1.0 and outcome.is_exact
    funnel = manifest["funnel"]
    assert funnel["in"] == funnel["out"] + sum(count for reasons in funnel["dropped"].values() for count in reasons.values())
    assert funnel["out"] == sum(manifest["examples"].values())
    assert {"funnel.json", "funnel.txt", "funnel.png", "manifest.json"} <= set(contents(out))


@pytest.fixture(scope="module")
def git_run(tmp_path_factory):
    """(directory of three clones, one of them corrupt, its run's output, manifest, what was printed)."""
    directory = tmp_path_factory.mktemp("git")
    make_clone(directory / "clones" / "a.git", "o/a", fixes=12, seed=1)
    make_clone(directory / "clones" / "b.git", "o/b", fixes=7, seed=2)
    make_clone(directory / "clones" / "c.git", "o/c", fixes=3, seed=3)
    shutil.rmtree(directory / "clones" / "c.git" / "objects")
    (directory / "clones" / "c.git" / "objects").mkdir()
    manifest, told = curate(f"git:{directory / 'clones'}", directory / "out", keep_rejects=True, held_out_share=0.4)
    return directory, manifest, told


def test_clones_become_shards(git_run):
    directory, manifest, told = git_run
    assert_sound(directory / "out", manifest)
    assert manifest["examples"] == {"train": 12, "held_out": 7} and manifest["split_by"] == "repository"
    train = open_examples(directory / "out" / "train-00000-of-00001.array_record")
    assert {example.repo for example in train} == {"o/a"} and {example.meta["licence"] for example in train} == {"MIT"}
    assert manifest["licences"] == {"MIT": 19} and manifest["languages"] == {"Python": 19}
    assert manifest["flags"] == {"message_as_issue": 19}
    assert all(len(example.files) > len(example.oracle) == 1 for example in train), "unchanged files are shown too"
    assert manifest["funnel"]["in"] == 2 * 2 + 12 + 7 + 1  # a root and a README of each, the fixes, the corrupt clone
    recall = manifest["recall_from_issue_alone"]
    assert recall["of"] == 19 and recall["at_1"] > 0.8 and recall["at_10"] == 1.0, "the issues name the function"
    assert f"{recall['at_1']:.3f} at 1" in told
    assert manifest["config"]["curate.buckets"] == 4 and manifest["versions"]["swerl_jax"]
    assert "django/django" in manifest["contamination"]["repositories"]


def test_a_corrupt_clone_and_every_drop_are_told(git_run):
    directory, manifest, told = git_run
    clone = str(directory / "clones" / "c.git")
    assert len(manifest["faults"]) == 1 and clone in manifest["faults"][0] and clone in told
    found = [(row["id"].partition("@")[0], row["stage"], row["reason"]) for row in rejects(directory / "out")]
    assert sorted(found) == sorted([("o/a", "source", "root"), ("o/b", "source", "root"), ("o/a", "filters", "no_source"),
                                    ("o/b", "filters", "no_source"), (clone, "source", "unreadable_clone")])
    assert manifest["funnel"]["dropped"] == {"filters": {"no_source": 2}, "source": {"root": 2, "unreadable_clone": 1}}


def test_nothing_is_done_twice_and_the_order_of_work_does_not_show(git_run, tmp_path):
    directory, _, _ = git_run
    engine = Inline()
    curate(f"git:{directory / 'clones'}", directory / "out", engine, keep_rejects=True, held_out_share=0.4)
    assert [task.function.__name__ for task in engine.done] == ["look_at"] * 3
    expected = shards(directory / "out")
    curate(f"git:{directory / 'clones'}", tmp_path / "again", Inline(-1), curate__range_commits=3, held_out_share=0.4)
    assert shards(tmp_path / "again") == expected
    (directory / "out" / "train-00000-of-00001.array_record").unlink()
    curate(f"git:{directory / 'clones'}", directory / "out", held_out_share=0.4)
    assert shards(directory / "out") == expected


def test_what_may_not_be_looked_into_is_listed_and_told(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q", "--bare", "a.git")
    (tmp_path / "locked").mkdir()
    stat = pathlib.Path.stat

    def guarded(path, **options):
        if path.parent.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(pathlib.Path, "stat", guarded)
    found = git_names.find_repositories(tmp_path)
    assert found == [str(tmp_path / "a.git"), str(tmp_path / "locked")]
    assert [clones.look_at(None, path, "")["fault"][:28] for path in found] == ["", "[Errno 13] Permission denied"]


def test_objects_fetched_later_show_in_a_clones_state_in_a_work_tree_of_it_too(tmp_path):
    make_clone(tmp_path / "a.git", "o/a", fixes=2, seed=1)
    git(tmp_path / "a.git", "worktree", "add", "-q", "--detach", str(tmp_path / "side"))
    states = []
    for text in (b"one", b"two"):
        states.append([clones.look_at(None, str(tmp_path / name), "")["state"] for name in ("a.git", "side")])
        git(tmp_path / "a.git", "hash-object", "-w", "--stdin", data=text)
    assert states[0][0] == states[0][1] and states[1][0] == states[1][1] != states[0][1]


@pytest.mark.parametrize("error, odd, dropped", [
    (ValueError("odd"), 1, {"failed": 1}), (GitTimeout("slow"), 4, {"git_timeout": 4}),
    (GitTimeout("slow"), 5, {"git_timeout": 4, "unreadable_clone": 9}),
])
def test_an_odd_change_costs_no_other(tmp_path, monkeypatch, error, odd, dropped):
    make_clone(tmp_path / "a.git", "o/a", fixes=12, seed=1)
    seen, read = [], candidates.candidate

    def candidate(repository, change):
        seen.append(change)
        if len(seen) <= odd:
            raise error
        return read(repository, change)

    monkeypatch.setattr(candidates, "candidate", candidate)
    manifest, _ = curate(f"git:{tmp_path / 'a.git'}", tmp_path / "out", keep_rejects=True, curate__range_commits=100)
    assert_sound(tmp_path / "out", manifest)
    assert manifest["funnel"]["in"] == 14 and manifest["funnel"]["dropped"]["source"] == {"root": 1, **dropped}
    told = [row["detail"] for row in rejects(tmp_path / "out") if row["reason"] in ("failed", "git_timeout")]
    assert len(told) == min(odd, 4) and all(str(error) in detail for detail in told)


class Deadly(Inline):
    """Its worker dies of the second range of commits."""

    def run(self, function, items):
        for index, fault in super().run(function, items):
            is_range = "commits" in items[index].out and index == 1
            if is_range:
                pathlib.Path(items[index].out + ".json").unlink()
            yield index, "a worker died" if is_range else fault


def test_a_range_that_fails_is_counted_with_all_its_changes(tmp_path):
    make_clone(tmp_path / "a.git", "o/a", fixes=12, seed=1)
    manifest, told = curate(f"git:{tmp_path / 'a.git'}", tmp_path / "out", Deadly(), keep_rejects=True)
    assert manifest["funnel"]["in"] == 14 and manifest["funnel"]["dropped"]["source"] == {"root": 1, "failed": 5}
    assert rejects(tmp_path / "out")[-1]["changes"] == 5 and "a worker died" in told


def test_other_settings_are_refused(git_run):
    directory, _, _ = git_run
    with pytest.raises(ValueError, match="(?s)made with other settings.*curate.max_files: was 100, is 3"):
        curate(f"git:{directory / 'clones'}", directory / "out", curate__max_files=3, held_out_share=0.4)


def test_one_clone_is_split_by_id_and_copies_are_dropped(tmp_path):
    make_clone(tmp_path / "a.git", "o/a", fixes=11, seed=4)
    manifest, _ = curate(f"git:{tmp_path / 'a.git'}", tmp_path / "out", held_out_share=0.2)
    assert manifest["split_by"] == "id" and manifest["examples"] == {"train": 9, "held_out": 2}
    make_clone(tmp_path / "two" / "a.git", "o/a", fixes=11, seed=4)
    make_clone(tmp_path / "two" / "b.git", "fork/a", fixes=14, seed=4)
    manifest, _ = curate(f"git:{tmp_path / 'two'}", tmp_path / "out2", keep_rejects=True)
    assert sum(manifest["examples"].values()) == 14 and manifest["split_by"] == "id", "forks are one repository"
    assert manifest["funnel"]["dropped"]["near_duplicates"] == {"near_duplicate": 11}
    assert all(row["detail"].startswith("like ") for row in rejects(tmp_path / "out2") if row["stage"] == "near_duplicates")
    make_clone(tmp_path / "same" / "x" / "a.git", "o/a", fixes=11, seed=4)
    make_clone(tmp_path / "same" / "y" / "a.git", "o/a", fixes=11, seed=4)
    manifest, _ = curate(f"git:{tmp_path / 'same'}", tmp_path / "out3")
    assert manifest["funnel"]["dropped"]["near_duplicates"] == {"same_id": 11}


def test_few_repositories_are_split_by_id_where_one_would_be_too_much(tmp_path):
    for name, fixes in (("a", 12), ("b", 8)):
        make_clone(tmp_path / "clones" / f"{name}.git", f"o/{name}", fixes=fixes, seed=fixes)
    for share, split_by, held_out in ((0.1, "id", 2), (0.19, "id", 3), (0.2, "repository", 8), (0.0, "repository", 0)):
        manifest, _ = curate(f"git:{tmp_path / 'clones'}", tmp_path / f"{share}", held_out_share=share)
        assert (manifest["split_by"], manifest["examples"]["held_out"]) == (split_by, held_out)


def test_evaluation_repositories_and_their_forks_stay_out(tmp_path):
    make_clone(tmp_path / "clones" / "django.git", "Django/django", fixes=3, seed=5)
    make_clone(tmp_path / "clones" / "fork.git", "someone/else", fixes=5, seed=5)
    make_clone(tmp_path / "clones" / "other.git", "o/other", fixes=4, seed=6)
    manifest, _ = curate(f"git:{tmp_path / 'clones'}", tmp_path / "out")
    assert sum(manifest["examples"].values()) == 4 and manifest["funnel"]["dropped"]["contamination"] == {"repository": 5 + 7}
    kept_out = {note: count for note, count in manifest["funnel"]["notes"].items() if note.startswith("kept out")}
    assert kept_out.pop("kept out: named Django/django") == 5 and list(kept_out.values()) == [7]
    assert list(kept_out)[0].startswith("kept out: shares root commit")
    rows = [{"instance_id": "e-1", "problem_statement": example.issue, "patch": ""}
            for example in open_examples(str(tmp_path / "out" / "*.array_record"))]
    (tmp_path / "eval.jsonl").write_text(json.dumps(rows[0]))
    manifest, _ = curate(f"git:{tmp_path / 'clones'}", tmp_path / "out2",
                         curate__evaluation_files=(str(tmp_path / "eval.jsonl"),))
    assert manifest["funnel"]["dropped"]["contamination"]["content"] == 1


def test_data_is_shown_whether_it_changes_or_not(tmp_path):
    files = {"src/shape.py": BEFORE, "conf/area.yml": "unit: m\n", "conf/colour.yml": "wall: red\n", "conf/logo.png": b"\0\1",
             "LICENSE": MIT}
    history = History().commit("root", files)
    history.commit("one", {"src/shape.py": AFTER, "conf/area.yml": "unit: mm\n"}, message="Fix the area of a wall, which was wrong")
    history.commit("two", {"src/shape.py": BEFORE}, message="Fix the crash of the shape").write(tmp_path / "a.git")
    manifest, _ = curate(f"git:{tmp_path / 'a.git'}", tmp_path / "out", held_out_share=0.0)
    shown = {len(example.oracle): sorted(example.files) for example in open_examples(str(tmp_path / "out" / "train-*"))}
    everything = ["conf/area.yml", "conf/colour.yml", "src/shape.py"]
    assert shown == {1: everything, 2: everything}
    recall = manifest["recall_from_issue_alone"]
    assert (recall["of"], recall["at_1"], recall["at_5"]) == (2, 0.75, 1.0), "the file of data counts too"


@pytest.mark.parametrize("address", ["https://github.com/django/django", "/srv/mirrors/django.git", "file:///srv/sympy"])
def test_a_mirror_is_known_by_any_of_its_remotes(tmp_path, address):
    make_clone(tmp_path / "clones" / "a.git", "someone/web", fixes=2, seed=5)
    git(tmp_path / "clones" / "a.git", "config", "remote.upstream.url", address)
    manifest, _ = curate(f"git:{tmp_path / 'clones'}", tmp_path / "out")
    assert sum(manifest["examples"].values()) == 0 and manifest["funnel"]["dropped"] == {"contamination": {"repository": 4}}


def test_issues_from_a_file_are_linked(tmp_path):
    def clone(name):
        path = tmp_path / "clones" / f"{name}.git"
        history = History().commit("root", {"src/shape.py": BEFORE, "LICENSE": MIT + name})
        history.commit("fix", {"src/shape.py": AFTER}, message="Use the height\n\nFixes #1").write(path)
        git(path, "config", "remote.origin.url", f"https://github.com/o/{name}")

    def issues(out):
        manifest, _ = curate(f"git:{tmp_path / 'clones'}", tmp_path / out, curate__issues=str(tmp_path / "issues.jsonl"),
                             held_out_share=0.0, curate__similarity=1.0)
        read = open_examples(str(tmp_path / out / "train-*"))
        return manifest["faults"], {one.repo: (one.issue.split("\n")[0], one.meta["issues"]) for one in read}

    said = {"number": 1, "title": "It breaks badly", "body": "always, with an error", "created_at": "2020-09-13T14:26:00+02:00"}
    (tmp_path / "issues.jsonl").write_text(json.dumps(said) + "\nnot JSON\n")
    clone("a")
    linked = [{"repo": "o/a", "number": 1, "created_at": "2020-09-13T12:26:00Z"}]
    faults, found = issues("one")
    assert found == {"o/a": ("It breaks badly", linked)} and len(faults) == 1 and "row 2" in faults[0]
    clone("b")
    with (tmp_path / "issues.jsonl").open("a") as file:
        file.write(json.dumps(said | {"repository_url": "https://api.github.com/repos/o/a", "title": "Of a"}))
    faults, found = issues("two")
    assert found["o/a"] == ("Of a", linked) and found["o/b"][0] == "Use the height"
    assert "1 rows were left out, for they name no repository and there is more than one clone" in faults[1]


@pytest.mark.parametrize("source, message", [
    ("svn:x", "needed is git:PATH, gharchive:DIRECTORY or swebench:FILE"), ("git:/nonexistent/x", "there is no /nonexistent/x"),
    ("git:{}", "found no clone"), ("gharchive:{}", "found no hour of events at|found no clone"),
])
def test_sources_that_cannot_be_read_are_said(tmp_path, source, message):
    with pytest.raises(ValueError, match=message):
        curate(source.format(tmp_path), tmp_path / "out")


def test_rows_without_clones_are_shown_in_part(tmp_path):
    path = SHARED / "swebench_dev.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    manifest, _ = curate(f"swebench:{path}", tmp_path / "out", prompt__max_tokens=12_288, answer__max_tokens=4096,
                         keep_rejects=True)
    assert_sound(tmp_path / "out", manifest)
    dropped = manifest["funnel"]["dropped"]
    assert manifest["funnel"]["in"] == 216 and dropped["filters"]["kind_rename"] == 2 and "contamination" not in dropped
    assert sum(manifest["examples"].values()) > 150 and manifest["split_by"] == "repository"
    example = open_examples(str(tmp_path / "out" / "train-*"))[0]
    assert example.flags == ("partial_context", "no_context")
    assert {"FAIL_TO_PASS", "PASS_TO_PASS", "test_patch"} <= set(example.tests)


def test_rows_with_a_clone_show_whole_files(tmp_path):
    ids = make_clone(tmp_path / "clones" / "o" / "n.git", "o/n", fixes=2, seed=8)
    clone = tmp_path / "clones" / "o" / "n.git"
    row = {"repo": "o/n", "instance_id": "o__n-7", "base_commit": ids["docs"], "hints_text": "look there",
           "problem_statement": "It breaks\nwith an error when called twice", "patch": git(clone, "diff", ids["docs"], ids[1]) + "\n",
           "test_patch": "", "FAIL_TO_PASS": "[\"t\"]", "PASS_TO_PASS": "[]"}
    wrong = row | {"instance_id": "o__n-8", "patch": row["patch"].replace("\n     ", "\n     other")}
    lines = [json.dumps(row), json.dumps(wrong), json.dumps(row | {"instance_id": "x-1", "base_commit": "0" * 40}), "[]",
             json.dumps(row)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    manifest, _ = curate(f"swebench:{tmp_path / 'rows.jsonl'}", tmp_path / "out", keep_rejects=True, held_out_share=0.0,
                         curate__clones=str(tmp_path / "clones"), curate__hints=True)
    assert [(one["reason"], one["id"]) for one in rejects(tmp_path / "out")] == [
        ("patch_fails", "o__n-8"), ("missing_commit", "x-1"), ("malformed_row", "[]"), ("same_id", "o__n-7")]
    assert manifest["funnel"]["in"] == 5 and manifest["funnel"]["out"] == 1
    example, = open_examples(str(tmp_path / "out" / "train-*"))
    (path, after), = example.oracle.items()
    assert after == git(clone, "show", f"{ids[1]}:{path}") + "\n" * after.endswith("\n")
    assert example.files[path].startswith('"""What') and len(example.files) > 1 and not example.flags
    assert example.issue.endswith("look there") and example.meta["licence"] == "MIT" and example.tests["FAIL_TO_PASS"] == ["t"]


EVENTS = SHARED / "events"
BEFORE = "def area(width, height):\n    return width\n\n\ndef edge(width):\n    return 4 * width\n"
AFTER = BEFORE.replace("return width\n", "return width * height\n")


def fixture(name, **fields):
    """An event of the fixtures; `a__b` of the fields names what lies in its payload at a, b."""
    event = json.loads((EVENTS / f"{name}.json").read_text())
    for path, value in fields.items():
        *above, key = path.split("__")
        place = event if path in ("id", "created_at", "repo") else event["payload"]
        for part in above:
            place = place[part]
        place[key] = value
    return event


def make_archive(directory, schema):
    """Two hours of events of a schema, one of them torn behind its last event, and a clone; returns the merge."""
    ids = History().commit("root", {"src/shape.py": BEFORE, "src/other.py": "import shape\n", "LICENSE": MIT}).commit(
        "fix", {"src/shape.py": AFTER}, message="Use the height\n\nFixes #6").commit(
        "merge", {"src/shape.py": AFTER}, parents=["root", "fix"],
        time_s=1_611_223_950, message="Merge pull request #8 from wayofthepie/test\n\nFix area").write(
        directory / "clones" / "test-events.git")
    commits = {"pull_request__base__sha": ids["root"], "pull_request__head__sha": ids["fix"]}
    later = {"id": "14881217700", "created_at": "2021-01-21T10:12:34Z", "action": "closed"}
    told = {"pull_request__body": "Fixes #6", "pull_request__title": "Fix area"} if schema == "pre2025" else {}
    merged = {"pull_request__merged": True, "pull_request__merge_commit_sha": ids["merge"],
              "pull_request__merged_at": later["created_at"]} if schema == "pre2025" else {}
    events = [
        [fixture(f"{schema}_issues_event", issue__title="area() is wrong", issue__body="It ignores the height, an error."),
         fixture(f"{schema}_push_event"), fixture(f"{schema}_pull_request_event", **commits, **told)],
        [fixture(f"{schema}_pull_request_event", **later, **commits, **told, **merged),
         fixture(f"{schema}_pull_request_event", id="14881217701", repo={"id": 5, "name": "no/clone"}, action="closed", **{
             key: value for key, value in later.items() if key == "created_at"}, **commits, **told, **merged),
         fixture(f"{schema}_pull_request_review_comment_event"), fixture(f"{schema}_issue_comment_event")],
    ]
    for hour, lines in enumerate(events):
        data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        packed = gzip.compress(data) + (gzip.compress(b"x" * 999)[:-12] if hour else b"")
        (directory / f"2021-01-2{hour}-10.json.gz").write_bytes(packed)
    return ids


@pytest.mark.parametrize("schema", ["pre2025", "post2025"])
def test_events_are_joined_to_clones(tmp_path, schema):
    if not EVENTS.exists():
        pytest.skip(f"{EVENTS} is absent")
    ids = make_archive(tmp_path, schema)
    manifest, told = curate(f"gharchive:{tmp_path}", tmp_path / "out", keep_rejects=True, held_out_share=0.0)
    assert_sound(tmp_path / "out", manifest)
    example, = open_examples(str(tmp_path / "out" / "train-*"))
    assert (example.id, example.commit) == ("wayofthepie/test-events#8@316335970", ids["root"])
    assert example.issue == "area() is wrong\n\nIt ignores the height, an error." and not example.flags
    assert dict(example.oracle) == {"src/shape.py": AFTER} and sorted(example.files) == ["src/other.py", "src/shape.py"]
    title = {"pre2025": "Fix area", "post2025": "Add test file ()"}[schema]  # the second is what a review comment repeats
    assert (example.meta["repo_id"], example.meta["title"], example.meta["origin"]["merged"]) == (316335970, title, True)
    assert [issue["number"] for issue in example.meta["issues"]] == [6]
    found = {(row["id"], row["reason"]) for row in rejects(tmp_path / "out")}
    assert ("no/clone#8@5", "no_clone") in found
    assert len(manifest["faults"]) == 1 and "2021-01-21-10.json.gz: torn" in manifest["faults"][0] and "torn" in told


def test_a_clone_of_an_archive_is_known_by_any_of_its_remotes(tmp_path):
    if not EVENTS.exists():
        pytest.skip(f"{EVENTS} is absent")
    make_archive(tmp_path, "pre2025")
    path = tmp_path / "clones" / "test-events.git"
    git(path, "config", "remote.origin.url", "https://github.com/wayofthepie/test-events")
    git(path, "config", "remote.upstream.url", "https://github.com/django/django")
    manifest, _ = curate(f"gharchive:{tmp_path}", tmp_path / "out")
    assert manifest["funnel"]["notes"]["kept out: named django/django"] == 1 and not sum(manifest["examples"].values())


def test_an_archive_tells_the_numbers_of_evaluation_repositories(tmp_path):
    if not EVENTS.exists():
        pytest.skip(f"{EVENTS} is absent")
    make_archive(tmp_path, "pre2025")
    seen = fixture("pre2025_issues_event", id="1", repo={"id": 316335970, "name": "django/django"}, issue__number=99)
    (tmp_path / "2015-01-01-1.json.gz").write_bytes(gzip.compress(json.dumps(seen).encode() + b"\n"))
    manifest, _ = curate(f"gharchive:{tmp_path}", tmp_path / "out")
    assert manifest["examples"] == {"train": 0, "held_out": 0} and manifest["funnel"]["dropped"]["contamination"] == {"repository": 1}
    assert 316335970 in manifest["contamination"]["ids"] and "wayofthepie/test-events" in manifest["contamination"]["repositories"]
