"""Every commit of a history is a change or has the reason why not; messages give titles, numbers, links and reverts."""

import gzip
import json
import re

import pytest
from hypothesis import given, strategies

from clones import History, git
from swerl_jax.curate import git_message, git_source, issue_file
from swerl_jax.curate.change import Change, Comment, Issue, Reject
from swerl_jax.curate.git_message import Message, Revert
from swerl_jax.curate.repository import Repository


def found_in(path, *arguments, **options):
    with Repository(path) as repository:
        return list(git_source.changes(repository, *arguments, **options))


def test_every_commit_is_a_change_or_has_a_reason(tmp_path):
    history = History().commit("root", {"a": "1", "b": "1"})
    history.commit("plain", {"a": "2"}, message="Fix a\n\nIt was 1.\n\nSigned-off-by: A <a@x>")
    history.commit("squash", {"a": "3"}, message="Fix a again (#12)\n\nBody", zone="-0330")
    history.commit("topic1", {"b": "2"}, message="b: two", author="Topic <t@x>").commit("topic2", {"b": "3"}, message="review")
    history.commit("merge", {"b": "3"}, ["squash", "topic2"], "Merge pull request #13 from me/fix-b\n\nFix b\n\nLong text")
    history.commit("quiet1", {"b": "4"}, message="b: four\n\nWhy four").commit("quiet2", {"b": "5"}, message="five")
    history.commit("quiet", {"b": "5"}, ["merge", "quiet2"], "Merge branch 'quiet'")
    history.commit("c1", {"c": "1"}, ["quiet"]).commit("c2", {"d": "1"}, ["quiet"])
    history.commit("octopus", {"c": "1", "d": "1"}, ["quiet", "c1", "c2"], "Merge branches 'c1' and 'c2'")
    history.commit("empty", {}, ["octopus"], "Nothing").commit("bad", {"a": "9"}, message="Fix wrongly (#14)")
    ids = history.write(tmp_path / "n")
    found = found_in(tmp_path / "n")
    assert [(made.id, made.reason) if isinstance(made, Reject) else made.id for made in found] == [
        (f"n@{ids['root']}", "root"), *(f"n@{ids[name]}" for name in ("plain", "squash", "merge", "quiet")),
        (f"n@{ids['octopus']}", "octopus"), (f"n@{ids['empty']}", "empty"), f"n@{ids['bad']}"]
    plain, squash, merge, quiet = found[1:5]
    assert plain == Change(
        id=f"n@{ids['plain']}", source="git", repo="n", base=ids["root"], head=ids["plain"], merge_commit=ids["plain"],
        title="Fix a", body="It was 1.\n\nSigned-off-by: A <a@x>", author="Ann", created_at="2020-09-13T12:28:40Z",
        issues=(Issue("n", 0, "Fix a", "It was 1.", "Ann", "2020-09-13T12:28:40Z"),),
        meta={"kind": "commit", "committed_at": "2020-09-13T12:28:40Z", "message_as_issue": True})
    assert (squash.title, squash.body, squash.meta["number"], squash.meta["kind"]) == ("Fix a again", "Body", 12, "squash")
    assert (merge.title, merge.body, merge.meta["number"], merge.meta["branch"]) == ("Fix b", "Long text", 13, "me/fix-b")
    assert (merge.base, merge.head, merge.merge_commit) == (ids["squash"], ids["topic2"], ids["merge"])
    assert (quiet.title, quiet.body, quiet.issues[0].title, quiet.meta["kind"]) == ("b: four", "Why four", "b: four", "merge")
    assert found_in(tmp_path / "n", 2, 4) == found[2:4]
    assert {made.reason for made in found if isinstance(made, Reject)} <= set(git_source.REASONS)


def test_lines_that_are_merged_are_looked_into(tmp_path):
    history = History().commit("root", {"a": "1"}).commit("d1", {"d": "1"}, message="Fix d1").commit("t", {"t": "1"})
    history.commit("pull", {"t": "1"}, ["d1", "t"], "Merge pull request #1 from me/master\n\nFix t")
    history.commit("local", {"l": "1"}, ["d1"], "Fix l")
    history.commit("pulled", {"t": "1", "l": "1"}, ["local", "pull"], "Merge branch 'develop' of github.com:o/n into develop")
    history.commit("release", {"d": "1", "t": "1", "l": "1"}, ["root", "pulled"], "Merge branch 'develop'")
    history.commit("r1", {"r": "1"}, ["release"], "Fix r1").commit("main", {"m": "1"}, ["release"], "Fix m")
    history.commit("back", {"r": "1"}, ["main", "r1"], "Merge branch 'release/1.2' into main")
    history.commit("d2", {"d": "2"}, ["pulled"], "Fix d2")
    history.commit("own", {"d": "2"}, ["back", "d2"], "Merge pull request #2 from o/develop\n\nRelease 2")
    history.commit("gone", {"g": "1"}, ["own"]).commit("last", {"g": "1"}, ["own", "gone"], "Merge branch 'fix-g'")
    ids = history.write(tmp_path / "r")
    git(tmp_path / "r", "config", "remote.origin.url", "https://github.com/o/n")
    found = {made.id[4:]: getattr(made, "reason", "") for made in found_in(tmp_path / "r")}
    upstream = "merge_of_upstream"
    expected = {"root": "root", "d1": "", "pull": "", "local": "", "pulled": upstream, "release": upstream, "r1": "", "main": "",
                "back": upstream, "d2": "", "own": upstream, "last": ""}
    assert found == {ids[name]: reason for name, reason in expected.items()}
    parts = [found_in(tmp_path / "r", first, first + 5) for first in (0, 5, 10)]
    assert [made.id[4:] for part in parts for made in part] == list(found), "in ranges as at once"


def test_what_was_taken_back_is_no_fix(tmp_path):
    history = History().commit("root", {"a": "1"}).commit("bad", {"a": "2"}, message="Bad fix")
    history.commit("undo", {"a": "1"}, message="Back to one\n\nThis reverts commit {bad}.")
    history.commit("bad2", {"a": "3"}, message="Bad fix two (#5)")
    history.commit("undo2", {"a": "1"}, message='Revert "Bad fix two (#5)" (#6)\n\nReverts o/n#5')
    history.commit("t", {"a": "4"}, message="w")
    history.commit("bad3", {"a": "4"}, ["undo2", "t"], "Merge pull request #7 from o/x\n\nBad three")
    history.commit("u", {"a": "1"}, message="w2")
    history.commit("undo3", {"a": "1"}, ["bad3", "u"], 'Merge pull request #8 from o/revert-7-x\n\nRevert "Bad three"')
    history.commit("bad5", {"a": "7"}, message="Bad five (#9)").commit("undo5", {"a": "1"}, message='Revert "Bad five (#9)" (#10)')
    history.commit("bad6", {"a": "8"}, message="bad: six").commit("undo6", {"a": "1"}, message="revert: bad: six")
    history.commit("bad4", {"a": "5"}, message="Bad four").commit("undo4", {"a": "1"}, message='Revert "Bad four"')
    history.commit("again", {"a": "6"}, message="Bad four").commit("main", {"b": "1"}, message="x")
    history.commit("feature", {"c": "1"}, ["again"])
    history.commit("pull", {"b": "1"}, ["feature", "main"], "Merge branch 'main' into feature")
    ids = history.write(tmp_path / "r")
    reasons = {made.id[2:]: getattr(made, "reason", "") for made in found_in(tmp_path / "r")}
    expected = {"root": "root", "bad": "", "undo": "", "bad2": "reverted", "undo2": "revert", "bad3": "reverted",
                "undo3": "revert", "bad4": "reverted", "bad5": "reverted", "undo5": "revert", "bad6": "reverted",
                "undo6": "revert", "undo4": "revert", "again": "", "feature": "",
                "pull": "merge_of_upstream"}
    assert {name: reasons[ids[name]] for name in expected} == expected  # "{bad}" names no commit


def test_what_is_named_by_its_id_was_taken_back(tmp_path):
    def history():
        return History().commit("root", {"a": "1"}).commit("bad", message="Bad").commit("bad2", {"a": "3"}, message="Worse")

    ids = history().write(tmp_path / "ids")
    for name, named, expected in (("short", ids["bad"][:9], "bad"), ("full", ids["bad2"], "bad2")):
        message = f"Undo\n\nThis reverts commit {named}, reversing\nchanges."
        history().commit("undo", {"a": "1"}, message=message).write(tmp_path / name)
        found = found_in(tmp_path / name)
        assert [made.id[-40:] for made in found if getattr(made, "reason", "") == "reverted"] == [ids[expected]]
        assert found[-1].reason == "revert"


def test_a_clone_without_commits_or_cut_off_says_so(tmp_path):
    History().write(tmp_path / "empty")
    assert [(made.id, made.reason) for made in found_in(tmp_path / "empty")] == [("empty", "no_commits")]
    History().commit("a", {"x": "1"}).commit("b", {"x": "2"}).commit("c", {"x": "3"}).write(tmp_path / "full")
    git(tmp_path, "clone", "-q", "--depth=2", (tmp_path / "full").as_uri(), "cut")
    assert [getattr(made, "reason", "") for made in found_in(tmp_path / "cut")] == ["shallow", ""]


def test_issues_are_linked_as_they_stood_before_the_change(tmp_path):
    rows = [
        {"number": 1, "title": "a is wrong", "body": "It is 1.", "created_at": "2020-09-13T12:00:00Z", "labels": ["bug", 3],
         "author": "Reporter", "comments": [{"author": "B", "created_at": "2020-09-13T12:10:00Z", "body": "Same."},
                                            {"author": "C", "created_at": "2024-01-01T00:00:00Z", "body": "Fixed."}]},
        {"number": 2, "title": "later", "created_at": "2024-01-01T00:00:00Z"},
        {"number": 3, "title": "no issue", "pull_request": {"url": "u"}},
        {"repo": "Else/where", "number": 4, "title": "theirs"},
        {"repo": "", "number": 5, "title": "from the branch", "body": None, "comments": 7},
        {"repository_url": "https://api.github.com/repos/n/r", "number": 8, "user": {"login": "me"}, "labels": [{"name": "bug"}],
         "created_at": "2020-09-13T14:00:00+02:00"}, {"number": 9, "created_at": "yesterday"},
        {"number": "6"}, [], {"number": True}, {"number": 7, "title": 7},
    ]
    path = tmp_path / "issues.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join([*map(json.dumps, rows), "", "{"]).encode()))
    issues, faults = issue_file.read_issues(path, "r")
    assert sorted(issues) == [("", 1), ("", 2), ("", 5)]
    assert [fault.partition("row ")[2][:20] for fault in faults] == [
        "7: created_at is 'ye", "8: number is '6'; ne", "9: the row is list; ", "10: number is True; ", "11: title is int 7; ",
        "13: Expecting proper"]
    named, faults = issue_file.read_issues(path, "N/r", is_only=False)
    assert named == {("n/r", 8): Issue("N/r", 8, "", "", "me", "2020-09-13T12:00:00Z", ("bug",))}
    assert "3 rows were left out, for they name no repository" in faults[-1]
    history = History().commit("root", {"a": "1"})
    history.commit("fix", {"a": "2"}, message="Two\n\nFixes #1, closes #2, fixes #3, fixes other/repo#1")
    history.commit("topic", {"a": "3"}, message="Three\n\nResolves #5").commit("review", {"a": "4"}, message="review")
    history.commit("merge", {"a": "4"}, ["fix", "review"], "Merge pull request #9 from o/three\n\nThree")
    history.write(tmp_path / "r")
    _, fix, merge = found_in(tmp_path / "r", issues=issues)
    assert fix.issues == (Issue("r", 1, "a is wrong", "It is 1.", "Reporter", "2020-09-13T12:00:00Z", ("bug",),
                                (Comment("issue", "B", "2020-09-13T12:10:00Z", "Same."),)),)
    assert "message_as_issue" not in fix.meta
    assert merge.issues == (Issue("r", 5, "from the branch", ""),)
    assert found_in(tmp_path / "r", 1)[0].meta["message_as_issue"] is True


def test_a_cut_event_is_completed_from_the_clone(tmp_path):
    history = History().commit("root", {"a": "1"}).commit("squash", {"a": "2"}, message="Fix a (#4)\n\nIt was one.")
    history.commit("topic", {"a": "3"}, message="Three")
    history.commit("merge", {"a": "3"}, ["squash", "topic"], "Merge pull request #5 from o/x\n\nFix b")
    history.commit("undo", {"a": "2"}, message='Revert "Fix b" (#5)')
    ids = history.write(tmp_path / "r")
    with Repository(tmp_path / "r") as repository:
        merged = git_source.merged_pull_requests(repository)
        assert merged == {4: ids["squash"], 5: ids["merge"]}
        event = Change("o/n#4@1", "gharchive", "o/n", "", "f" * 40, author="dev", meta={"number": 4, "merged": None})
        made = git_source.completed(event, repository, merged)
        assert (made.title, made.body, made.merge_commit, made.author) == ("Fix a", "It was one.", ids["squash"], "dev")
        assert (made.meta, made.created_at) == ({"number": 4, "merged": True}, "2020-09-13T12:28:40Z")
        unknown = Change("o/n#9@1", "gharchive", "o/n", "", "", meta={"number": 9})
        assert git_source.completed(unknown, repository, merged) == unknown


def test_a_number_alone_ties_no_commit_to_a_pull_request(tmp_path):
    history = History().commit("root", {"a": "1"}).commit("squash", {"a": "2"}, message="Fix a (#4)")
    history.commit("topic", {"a": "3"}).commit("merge", {"a": "3"}, ["squash", "topic"], "Merge pull request #5 from o/x\n\nFix b")
    ids = history.write(tmp_path / "r")
    git(tmp_path, "clone", "-q", "--bare", "--depth=2", f"file://{tmp_path}/r", "s")

    def found(number, head="", base="", created_at="2020-09-13T12:28:40Z", clone="r"):
        meta = {"number": number, "merged": None, "is_opening_seen": bool(created_at)}
        change = Change("o/n#4@1", "gharchive", "o/n", base, head, created_at=created_at or "2030-01-01T00:00:00Z", meta=meta)
        with Repository(tmp_path / clone) as repository:
            made = git_source.completed(change, repository, git_source.merged_pull_requests(repository))
            return made.meta["merged"]

    assert found(4, "f" * 40, ids["root"]) and found(5, ids["topic"], ids["squash"]) and found(4, created_at="")
    assert not found(4, created_at="2020-09-13T12:28:41Z"), "it is older than the pull request"
    assert not found(5, ids["squash"]), "it merged something else"
    assert not found(4, base="e" * 40) and not found(5, ids["topic"], "e" * 40), "of another repository"
    assert found(5, ids["topic"], "e" * 40, clone="s"), "cut off"


@pytest.mark.parametrize(("text", "message"), [
    ("Fix it\n", Message("Fix it", "")), ("", Message("", "")), ("\n\n a \r\n\r\nb\r\n", Message("a", "b")),
    ("Fix it (#12)", Message("Fix it", "", 12, is_squash=True)),
    ("Fix it (pull request #3)\n\nx", Message("Fix it", "x", 3, is_squash=True)),
    ("Merge pull request #1 from a/b-c", Message("", "", 1, "a/b-c")),
    ("Merge pull request #1 from a/b\n\nFix it (#1)\n\nLong", Message("Fix it", "Long", 1, "a/b")),
    ("Merged in fix (pull request #2)\n\nFix it", Message("Fix it", "", 2, "fix")),
    ("Auto merge of #77 - me:fix, r=you\n\nFix it", Message("Fix it", "", 77, "me:fix,")),
    ("Merge branch 'fix' into 'main'\n\nFix it\n\nCloses #3\n\nSee merge request g/p!55",
     Message("Fix it", "Closes #3", 55, "fix")),
    ("Merge branch 'fix'\n\n* fix:\n  one\n  two", Message("", "", 0, "fix")),
    ("Merge branch 'fix'\n\n# Conflicts:\n#\ta.py", Message("", "", 0, "fix")),
])
def test_a_message_is_taken_apart(text, message):
    assert git_message.parse_message(text) == message


@pytest.mark.parametrize(("text", "revert"), [
    ("Fix it", None), ("Revert", Revert()), ("Document how to revert\n\nReverts are hard", None),
    ('Revert "Fix (#1)"\n\nThis reverts commit 0123456789.', Revert(("0123456789",), (1,), ("Fix",))),
    ('Revert "Fix x (#12)" (#15)', Revert((), (12,), ("Fix x",))), ("Revert: Fix x (#15)", Revert((), (), ("Fix x",))),
    ('revert(api): "fix: x (#12)" (#15)', Revert((), (12,), ("fix: x",))), ("Revert to the old way", Revert()),
    ('Revert "Revert "Fix x (#12)" (#15)" (#16)', Revert((), (15,), ('Revert "Fix x (#12)"',))),
    ("Revert \"Fix\" (#9)\n\nReverts o/n#8", Revert((), (8,), ("Fix",))), ("Back out the fix", Revert()),
    ("Merge pull request #3 from o/revert-2-fix\n\nUndo", Revert((), (2,))),
])
def test_a_revert_says_what_it_takes_back(text, revert):
    assert git_message.parse_revert(text) == revert


@pytest.mark.parametrize(("text", "is_upstream"), [
    ("Merge branch 'master' into fix", True), ("Merge branch 'main' of github.com:o/n", True),
    ("Merge remote-tracking branch 'upstream/master'", True), ("Merge branch 'fix' into main", False),
    ("Merge branch 'fix'", False), ("Merge branch 'develop' into main", True), ("Merge branch 'hotfix/1.2.1'", False),
    ("Merge branch 'stable-2.0'", True), ("Merge branch '1.4.x' into 2.0", True), ("Merge branch '1234'", False),
    ("Merge branch 'release-notes'", False), ("Merge pull request #3 from O/dev", True),
    ("Merge pull request #3 from me/dev", False),
    ("Merge pull request #3 from o/fix", False), ("Merge branch 'fix' of url into fix", True),
    ("Merge remote-tracking branch 'origin/main' into topic", True), ("Fix", False),
])
def test_merges_of_the_main_line_are_told_from_merges_into_it(text, is_upstream):
    assert git_message.brings_in_upstream(text, "o") == is_upstream
    patterns = git_message.upstream_patterns("o")
    assert not is_upstream or any(re.search(pattern, text, re.IGNORECASE) for pattern in patterns)


def test_what_tools_write_below_a_message_is_no_issue():
    trailers = "Bug: 12, 13\nCc: a@x\nSigned-off-by: A <a@x>\n(cherry picked from commit 0af)\nChange-Id: I1\n"
    body = f"It broke.\nBug: it is here\n\n{trailers}See #3"
    assert git_message.without_trailers(body) == "It broke.\nBug: it is here\n\nSee #3"


LIKELY = strategies.sampled_from("Merge branch'#(12)\nRvt\"oi/-:é\ud800")


@given(strategies.text(alphabet=LIKELY, max_size=80) | strategies.text())
def test_any_message_can_be_read(text):
    message = git_message.parse_message(text)
    assert message.number >= 0 and "\n" not in message.title
    git_message.parse_revert(text)
    git_message.brings_in_upstream(text)
