"""Merged pull requests meet the issues they close, as those stood before it was opened."""

import pytest

from swerl_jax.curate import runs
from swerl_jax.curate.change import Change, Comment, Issue, Reject
from swerl_jax.curate.facts import IssueSeen, NameSeen, PullRequestSeen, Remark
from swerl_jax.curate.pull_requests import Ask, answer, asks, change, folded, resolve, threads


def at(minute):
    return f"2024-01-01T00:{minute:02d}:00Z"


def issue(minute, body="b", *, repo_id=1, number=5, repo="o/n", created=1):
    return IssueSeen(repo_id, number, at(minute), minute, "issue", repo, "ann", False, at(created), "t", body, ("bug",))


def remark(minute, body, *, number=5, where="issue", remark=1, written=None, author="bob", is_bot=False):
    return Remark(1, number, at(minute), minute, "remark", "o/n", author, is_bot, at(written or minute), body, where, remark,
                  "a.py" if where == "review_comment" else "", "")  # fmt: skip


def pull(minute, action="closed", **changes):
    told = {"author": "cy", "is_bot": False, "created_at": at(10), "title": "Mend", "body": "Fixes #5", "labels": (),
            "action": action, "merged": action == "closed", "merged_at": at(minute) if action == "closed" else "",
            "merge_commit": "m" if action == "closed" else "", "base_ref": "main", "base": "b", "head_ref": "fix", "head": "h",
            "language": "Python", "licence": "MIT", "files": 1, "additions": 2, "deletions": 3, "commits": 4, "stars": 5,
            "is_fork": False, "schema": "2015"}  # fmt: skip
    return PullRequestSeen(1, changes.pop("number", 8), at(minute), minute, "pull_request", changes.pop("repo", "o/n"),
                           **{**told, **changes})  # fmt: skip


def cut(minute, action, **changes):
    """The same as GitHub tells it since October 2025."""
    nothing = {"author": "", "created_at": "", "title": "", "body": "", "merged": None, "merged_at": "", "merge_commit": "",
               "language": "", "licence": "", "files": None, "additions": None, "deletions": None, "commits": None,
               "stars": None, "is_fork": None, "schema": "2025"}  # fmt: skip
    return pull(minute, action, **{**nothing, **changes})


def thread(*facts):
    [made] = threads(sorted(facts, key=lambda fact: fact[:6]))
    return made


def asked(before=10, **changes):
    return Ask(1, 5, at(before), 1, 8, 0, "#5")._replace(**changes)


def test_facts_become_threads_of_their_repository():
    names = [NameSeen(1, 0, at(1), 0, "name", "o/new", at(9)), NameSeen(1, 0, at(2), 0, "name", "o/old", at(3)),
             NameSeen(1, 0, at(3), 0, "name", "o/old", at(4))]
    made = list(threads([*names, issue(1), remark(2, "x"), pull(3), issue(4, repo_id=2)]))
    assert [(t.repo_id, t.number, t.names) for t in made] == [
        (1, 5, ("o/old", "o/new")), (1, 8, ("o/old", "o/new")), (2, 5, ())]
    assert (len(made[0].issues), len(made[0].remarks), len(made[1].pulls)) == (1, 1, 1)


def test_what_a_pull_request_asks():
    text = "fixes #5, closes O/N#6, resolves Other/Repo#7, fixes https://github.com/x/y/issues/9, fixes #5"
    found = asks(thread(pull(20, body=text, title="Fix #4")), "> `fix #3`")
    assert [(ask.repo_id, ask.number, ask.written) for ask in found] == [
        (1, 4, "#4"), (1, 5, "#5"), (1, 6, "O/N#6"), ("other/repo", 7, "Other/Repo#7"), ("x/y", 9, "x/y#9"), (1, 3, "#3")]
    assert [ask.position for ask in found] == list(range(6))
    assert {ask[2:5] for ask in found} == {(at(10), 1, 8)}
    assert asks(thread(pull(20, merged=False))) == asks(thread(pull(20, "opened"))) == asks(thread(issue(1))) == []


NAMES = {
    "one": ([(7, 1, 2)], 7),  # GitHub forwards it for ever
    "two, in the first's time": ([(7, 1, 10), (8, 20, 30)], 7),
    "two, in neither's": ([(7, 1, 9), (8, 20, 30)], 0),
    "two, in both's": ([(7, 1, 15), (8, 9, 30)], 0),
    "one in pieces": ([(7, 1, 2), (7, 12, 13), (8, 20, 30)], 7),
    "none": ([], 0),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_means_who_had_it_then(name):
    seen, expected = NAMES[name]
    facts = [NameSeen(repo_id, 0, at(first), 0, "name", "o/n", at(last)) for repo_id, first, last in seen]
    assert resolve(facts, asked(repo_id="o/n")) == asked(repo_id=expected)


ANSWERS = {
    "linked": ([issue(2)], "linked"),
    "nothing seen": ([], "not_seen"),
    "only a comment": ([remark(2, "x")], "not_seen"),
    "a pull request": ([pull(2, number=5)], "pull_request"),
    "newer": ([issue(11, created=11)], "newer"),
    "as old": ([issue(10, created=10)], "newer"),
    "older, seen later": ([issue(11)], "no_text_before"),
    "seen in the same second": ([issue(10)], "no_text_before"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers(name):
    facts, status = ANSWERS[name]
    found = answer(thread(*facts) if facts else None, asked())
    assert (found.status, bool(found.issue)) == (status, status == "linked")
    assert found[:6] == (1, 8, 0, "#5", 1, 5)
    assert answer(thread(*facts) if facts else None, asked(repo_id=0)).status == "unknown_repository"


def test_an_issue_answers_as_it_stood_before():
    facts = [issue(1, "first"), issue(9, "last before", repo="o/renamed"), issue(10, "the fix is"), issue(12, "fixed"),
             remark(2, "draft", remark=1, written=2), remark(3, "edited", remark=1, written=2), remark(1, "older", remark=2),
             remark(11, "edited after", remark=1, written=2), remark(12, "after", remark=3)]  # fmt: skip
    found = answer(thread(*facts), asked())
    assert found.issue == {
        "repo": "o/renamed", "number": 5, "title": "t", "body": "last before", "author": "ann", "created_at": at(1),
        "labels": ("bug",), "comments": (
            {"kind": "issue", "author": "bob", "created_at": at(1), "body": "older", "path": ""},
            {"kind": "issue", "author": "bob", "created_at": at(2), "body": "edited", "path": ""})}  # fmt: skip


def test_a_change():
    said = [remark(15, "Hm", number=8, where="pull_request"), remark(14, "No", number=8, where="review_comment"),
            remark(16, "beep", number=8, where="review", author="x[bot]", is_bot=True)]  # fmt: skip
    made = thread(pull(10, "opened", merged=False, body="wip", base="b0", head="h0"), pull(20), *said)
    answers = [answer(thread(issue(2)), asked()), answer(thread(issue(2)), asked(position=1, written="o/n#5")),
               answer(None, asked(position=2, number=6, written="#6"))]  # fmt: skip
    assert change(made, answers) == Change(
        id="o/n#8@1", source="gharchive", repo="o/n", base="b", head="h", repo_id=1, merge_commit="m", title="Mend",
        body="Fixes #5", author="cy", created_at=at(10), language="Python", licence="MIT",
        issues=(Issue("o/n", 5, "t", "b", "ann", at(1), ("bug",)),),
        conversation=(Comment("review_comment", "bob", at(14), "No", "a.py"), Comment("pull_request", "bob", at(15), "Hm"),
                      Comment("review", "x[bot]", at(16), "beep")),
        meta={"number": 8, "schema": "2015", "merged": True, "merged_at": at(20), "names": ["o/n"], "base_ref": "main",
              "head_ref": "fix", "is_opening_seen": True, "links": {"#5": "linked", "o/n#5": "linked", "#6": "not_seen"},
              "issue_repo_ids": [1], "is_bot": False, "labels": [], "is_fork": False, "bots": ["x[bot]"], "files": 1,
              "additions": 2, "deletions": 3, "commits": 4, "stars": 5},
    )  # fmt: skip


REJECTED = {
    "open": [pull(10, "opened")],
    "not_merged": [pull(20, merged=False, merged_at="", merge_commit="")],
    "no_commit": [pull(20, head="", merge_commit="")],
}


@pytest.mark.parametrize("reason", REJECTED)
def test_what_was_not_merged_is_rejected(reason):
    assert change(thread(*REJECTED[reason]), []) == Reject("o/n#8@1", "pull_requests", reason)


def test_closed_opened_again_and_merged():
    facts = [pull(10, "opened", merged=False), pull(12, merged=False, head="h0"), pull(13, "reopened", merged=False), pull(20)]
    assert folded(thread(*facts))[-17:] == pull(20)[-17:]


def test_the_text_is_the_last_before_the_end():
    texts = [pull(10, "opened", merged=False, body="first"), cut(15, "reviewed", title="t", body="edited"), cut(20, "merged",
             merged=True), cut(30, "reviewed", title="t", body="after")]  # fmt: skip
    made = folded(thread(*texts))
    assert (made.body, made.merged, made.merged_at) == ("edited", True, at(20))


def test_cut_payloads_tell_what_they_can():
    bare = change(thread(cut(10, "opened"), cut(20, "closed")), [])
    assert (bare.title, bare.base, bare.head, bare.created_at) == ("", "b", "h", at(10))
    assert (bare.meta["schema"], bare.meta["merged"], bare.meta["is_opening_seen"]) == ("2025", None, True)
    told = change(thread(cut(20, "closed"), cut(21, "commented", title="T", body="B", created_at=at(3), author="di", base="",
                                                head="", merged=True, merged_at=at(20))), [])  # fmt: skip
    assert (told.title, told.body, told.author, told.created_at, told.base) == ("T", "B", "di", at(3), "b")
    assert (told.meta["merged"], told.meta["merged_at"], told.meta["schema"]) == (True, at(20), "2025")
    unseen = change(thread(cut(20, "closed")), [])
    assert (unseen.created_at, unseen.meta["is_opening_seen"]) == (at(20), False)


def test_facts_have_one_key_each():
    assert runs.KEY_COLUMNS == 6
    for kind in (NameSeen, IssueSeen, PullRequestSeen, Remark):
        assert kind._fields[:6] == ("repo_id", "number", "at", "event", "kind", "repo")
