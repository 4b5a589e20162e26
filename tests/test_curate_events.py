"""Lines of both payload forms become facts; what is damaged is counted and named, and the rest is used."""

import gzip
import json
import pathlib
import zlib

import pytest
from hypothesis import given, settings, strategies

from swerl_jax.curate import events
from swerl_jax.curate.events import read_hour
from swerl_jax.curate.facts import WANTED, IssueSeen, PullRequestSeen, Remark, fact_from_row

FIXTURES = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "events"

AT, LATER = "2024-01-31T12:00:00Z", "2024-01-31T12:00:09Z"
USER = {"login": "ann", "type": "User"}
ISSUE = {"number": 7, "title": "It breaks", "body": "Often.", "user": USER, "created_at": "2024-01-01T00:00:00Z",
         "updated_at": AT, "labels": [{"name": "bug"}, {"name": "a, b"}]}  # fmt: skip
COMMENT = {"id": 5, "body": "Me too", "user": {"login": "x[bot]", "type": "User"}, "created_at": AT, "updated_at": AT,
           "author_association": "NONE"}  # fmt: skip


def event(kind="IssuesEvent", payload=None, **changes):
    return {"id": "11", "type": kind, "actor": USER, "repo": {"id": 3, "name": "o/n"},
            "payload": {"action": "opened", "issue": ISSUE} if payload is None else payload, "public": True,
            "created_at": AT, **changes}  # fmt: skip


def lines(*made):
    return b"".join(json.dumps(value, separators=(",", ":")).encode() + b"\n" for value in made)


def read(tmp_path, data, wanted=(), *, is_raw=False):
    path = tmp_path / "2024-01-31-12.json.gz"
    path.write_bytes(data if is_raw else gzip.compress(data))
    hour = read_hour(str(path), wanted)
    return list(hour), hour.counts, hour.fault


def fixture(form):
    if not FIXTURES.exists():
        pytest.skip(f"{FIXTURES} is absent")
    return lines(*(json.loads(path.read_bytes()) for path in sorted(FIXTURES.glob(f"{form}2025_*.json"))))


REPO, SHORT = "wayofthepie/test-events", "wayofthepie"
ISSUES_OF_FIXTURES = [
    IssueSeen(316335970, 5, "2021-01-14T13:41:43Z", 14819577464, "issue", REPO, SHORT, False, "2021-01-14T13:18:48Z",
              "Test34", "", ("bug",)),
    Remark(316335970, 5, "2021-01-14T13:41:43Z", 14819577464, "remark", REPO, SHORT, False, "2021-01-14T13:41:43Z", "Test",
           "issue", 760203693, "", ""),
    IssueSeen(316335970, 6, "2021-01-15T09:33:54Z", 14830571677, "issue", REPO, SHORT, False, "2021-01-15T09:33:54Z", "Test",
              "", ()),
]  # fmt: skip
# Its payload is younger than the event: updated 33 seconds after it.
REVIEW_COMMENT = Remark(316335970, 8, "2021-01-20T13:55:24Z", 14883883803, "remark", REPO, SHORT, False, "2021-01-20T13:54:51Z",
                        "Review comment test again", "review_comment", 560976245, "test", "")
BASE, HEAD = "dfbedd9e1470e53f3a0f2e408e4d6808585b6987", "184cb4b61e26de7cccc385d37da25cd8bd817d27"


def test_payloads_before_october_2025(tmp_path):
    facts, counts, fault = read(tmp_path, fixture("pre"))
    assert fault == "" and counts["lines"] == 6 and counts["PushEvent"] == 1 and counts["facts"] == 5
    assert facts == [*ISSUES_OF_FIXTURES, PullRequestSeen(
        316335970, 8, "2021-01-20T10:12:34Z", 14881217608, "pull_request", REPO, SHORT, False, "2021-01-20T10:12:33Z",
        "Add test file", "", (), "opened", False, "", "", "master", BASE, "test", HEAD, "", "", 1, 0, 0, 1, 0, False, "2015",
    ), REVIEW_COMMENT]  # fmt: skip


def test_payloads_since_october_2025(tmp_path):
    facts, counts, fault = read(tmp_path, fixture("post"))
    assert fault == "" and counts["lines"] == 6 and counts["facts"] == 7
    assert facts[:3] == ISSUES_OF_FIXTURES and facts[5] == REVIEW_COMMENT
    assert facts[3] == PullRequestSeen(
        316335970, 8, "2021-01-20T10:12:34Z", 14881217608, "pull_request", REPO, "", False, "", "", "", (), "opened", None, "",
        "", "master", BASE, "test", HEAD, "", "", None, None, None, None, None, None, "2025",
    )  # fmt: skip
    # Reviews still tell what the pull request's own event does not.
    assert (facts[4].title, facts[4].author, facts[4].created_at) == ("Add test file ()", SHORT, "2021-01-20T10:12:33Z")
    assert (facts[6].language, facts[6].licence, facts[6].labels) == ("JavaScript", "AGPL-3.0", ("l10n", "babel"))


def test_facts_survive_json(tmp_path):
    facts, _, _ = read(tmp_path, fixture("post"))
    assert [fact_from_row(json.loads(json.dumps(fact))) for fact in facts] == facts


def test_an_issue_and_a_comment(tmp_path):
    payload = {"action": "created", "issue": {**ISSUE, "updated_at": LATER}, "comment": COMMENT}
    facts, _, fault = read(tmp_path, lines(event(), event("IssueCommentEvent", payload, id="12")))
    assert fault == "" and facts == [
        IssueSeen(3, 7, AT, 11, "issue", "o/n", "ann", False, "2024-01-01T00:00:00Z", "It breaks", "Often.", ("bug", "a, b")),
        # The same text a second time is no news; the comment is a bot's by its name.
        Remark(3, 7, AT, 12, "remark", "o/n", "x[bot]", True, AT, "Me too", "issue", 5, "", ""),
    ]  # fmt: skip


def test_a_text_is_told_again_when_it_changes_or_was_seen_earlier(tmp_path):
    def seen(at, body):
        return event(payload={"action": "edited", "issue": {**ISSUE, "body": body, "updated_at": None}}, created_at=at)

    stories = [(LATER, "a"), (LATER, "b"), (LATER, "b"), (LATER, "a"), (AT, "a"), (LATER, "a")]
    facts, _, _ = read(tmp_path, lines(*(seen(*story) for story in stories)))
    assert [(fact.at, fact.body) for fact in facts] == [(LATER, "a"), (LATER, "b"), (LATER, "a"), (AT, "a")]


def test_a_merged_pull_request(tmp_path):
    side = {"ref": "main", "sha": "b" * 40, "repo": {"language": "Python", "license": {"spdx_id": "MIT"}, "fork": False,
                                                     "stargazers_count": 4}}  # fmt: skip
    told = {**ISSUE, "number": 8, "merged": True, "merged_at": AT, "merge_commit_sha": "m" * 40, "base": side,
            "head": {"ref": "fix", "sha": "h" * 40, "repo": None}, "changed_files": 2, "additions": 3, "deletions": 1,
            "commits": 1}  # fmt: skip
    [fact], _, _ = read(tmp_path, lines(event("PullRequestEvent", {"action": "closed", "number": 8, "pull_request": told})))
    assert fact == PullRequestSeen(
        3, 8, AT, 11, "pull_request", "o/n", "ann", False, "2024-01-01T00:00:00Z", "It breaks", "Often.", ("bug", "a, b"),
        "closed", True, AT, "m" * 40, "main", "b" * 40, "fix", "h" * 40, "Python", "MIT", 2, 3, 1, 1, 4, False, "2015",
    )  # fmt: skip
    [fact], _, _ = read(tmp_path, lines(event("PullRequestEvent", {"action": "merged", "number": 8, "pull_request": {}})))
    assert fact.merged is True and fact.schema == "2025"
    # The commit of an unmerged one is only a trial of GitHub's.
    [fact], _, _ = read(tmp_path, lines(event("PullRequestEvent", {"action": "closed", "number": 8, "pull_request": {
        **told, "merged": False, "merged_at": None}})))  # fmt: skip
    assert fact.merged is False and fact.merge_commit == ""


def test_comments_of_a_pull_request_tell_of_it_only_since_the_cut(tmp_path):
    issue = {**ISSUE, "pull_request": {"merged_at": AT}}
    old, _, _ = read(tmp_path, lines(event("IssueCommentEvent", {"issue": issue, "comment": COMMENT})))
    assert [(fact.kind, fact.where) for fact in old] == [("remark", "pull_request")]
    comment = {key: value for key, value in COMMENT.items() if key != "author_association"}
    new, _, _ = read(tmp_path, lines(event("IssueCommentEvent", {"issue": issue, "comment": comment})))
    assert [fact.kind for fact in new] == ["pull_request", "remark"]
    assert (new[0].title, new[0].merged, new[0].action, new[0].schema) == ("It breaks", True, "commented", "2025")


def test_reviews_without_words_and_deleted_comments_tell_nothing(tmp_path):
    review = {"id": 1, "state": "approved", "body": None, "user": USER, "submitted_at": AT, "author_association": "NONE"}
    spoken = {**review, "id": 2, "state": "CHANGES_REQUESTED", "body": "No."}
    facts, counts, _ = read(tmp_path, lines(
        *(event("PullRequestReviewEvent", {"action": "created", "review": r, "pull_request": {"number": 8}})
          for r in (review, spoken)),
        event("IssueCommentEvent", {"action": "deleted", "issue": ISSUE, "comment": COMMENT})))  # fmt: skip
    assert [(fact.body, fact.where, fact.state, fact.created_at) for fact in facts] == [
        ("No.", "review", "changes_requested", AT)]
    assert counts["incomplete"] == 0


def test_a_type_is_not_taken_from_a_payload(tmp_path):
    text = '{"id":"1","type":"IssuesEvent"'
    trap = {"id": "1", "payload": {"id": "2", "type": "IssuesEvent", "text": text}, "type": "PushEvent"}
    other_order = {key: event()[key] for key in ("type", "repo", "payload", "created_at", "id")}
    spaced = json.dumps(event(), indent=1).replace("\n", " ").encode() + b"\n"
    number = lines(event()).replace(b'"id":"11"', b'"id":11')
    facts, counts, fault = read(tmp_path, lines(trap, other_order) + spaced + number)
    assert fault == "" and len(facts) == 1 and facts[0].event == 11
    assert (counts["PushEvent"], counts["IssuesEvent"], counts["lines"]) == (1, 3, 4)


def test_skipped_types_are_not_parsed(tmp_path):
    line = b'{"id":"1","type":"PushEvent","payload":{broken\n'
    assert read(tmp_path, line) == ([], {"lines": 1, "bytes": len(line), "PushEvent": 1}, "")
    assert read(tmp_path, lines(event()), ["PullRequestEvent"])[0] == []
    with pytest.raises(ValueError, match=r"got the event types \['PushEvent'\]"):
        read_hour("x", ["PushEvent"])


INCOMPLETE = {
    "deleted repository": {"repo": {"id": 0, "name": "/"}},
    "nameless repository": {"repo": {"id": 5, "name": "/"}},
    "no repository": {"repo": None},
    "no time": {"created_at": None},
    "odd time": {"created_at": "yesterday"},
    "no payload": {"payload": []},
    "no issue": {"payload": {"issue": None}},
    "no slash": {"repo": {"id": 3, "name": "on"}},
    "no number": {"payload": {"issue": {**ISSUE, "number": None}}},
    "number as text": {"payload": {"issue": {**ISSUE, "number": "7"}}},
}


@pytest.mark.parametrize("name", INCOMPLETE)
def test_events_that_lack_something_are_counted(tmp_path, name):
    facts, counts, fault = read(tmp_path, lines({**event(), **INCOMPLETE[name]}))
    assert (facts, counts["incomplete"], fault) == ([], 1, "")


def test_null_texts_users_and_labels(tmp_path):
    bare = {"number": 7, "title": None, "body": None, "user": None, "labels": None, "created_at": None}
    [fact], _, _ = read(tmp_path, lines(event(payload={"action": "opened", "issue": bare})))
    assert fact == IssueSeen(3, 7, AT, 11, "issue", "o/n", "", False, "", "", "", ())


@pytest.mark.parametrize("written, meant", [
    ("2015-01-01T15:00:00Z", "2015-01-01T15:00:00Z"), ("2015-01-01T15:00:00-08:00", "2015-01-01T23:00:00Z"),
    ("2015-01-01 15:00:00 UTC", "2015-01-01T15:00:00Z"), ("2015-01-01T15:00:00.250Z", "2015-01-01T15:00:00Z"),
])  # fmt: skip
def test_times_are_in_utc(tmp_path, written, meant):
    [fact], _, _ = read(tmp_path, lines(event(created_at=written, payload={"issue": {**ISSUE, "updated_at": None}})))
    assert fact.at == meant


def test_half_a_surrogate_pair_is_replaced(tmp_path):
    [fact], _, _ = read(tmp_path, lines(event(payload={"issue": {**ISSUE, "title": "a\ud83d", "body": "\U0001f40d é"}})))
    assert (fact.title, fact.body) == ("a\ufffd", "\U0001f40d é")


@pytest.mark.parametrize("bad", [b"{", b"[]", b"3", b'"type"', b"\xff\xfe", b'{"id":"1","type":"IssuesEvent"', b'{"a":1}',
                                 b"[" * 100_000, b'{"id":"1","type":"IssuesEvent","x":"\xff"}'])
def test_bad_lines_are_counted(tmp_path, bad):
    facts, counts, fault = read(tmp_path, lines(event()) + bad + b"\n\n" + lines(event(id="12")))
    assert counts["bad_lines"] == 1 and fault == "1 of 4 lines are no events" and len(facts) == 1


def test_the_last_line_may_lack_its_end(tmp_path):
    assert len(read(tmp_path, lines(event())[:-1])[0]) == 1


def numbered(count):
    return lines(*(event(payload={"issue": {**ISSUE, "number": number, "body": str(zlib.crc32(b"%d" % number)) * 9}})
                   for number in range(1, count + 1)))


def test_a_torn_file_is_used_as_far_as_it_goes(tmp_path):
    data = gzip.compress(numbered(4000))
    facts, counts, fault = read(tmp_path, data[:len(data) // 2], is_raw=True)
    assert fault == f"torn: it ends after {len(data) // 2} bytes, within its compressed data"
    assert 1000 < len(facts) < 3000 and counts["bad_lines"] == 0
    assert [fact.number for fact in facts] == list(range(1, len(facts) + 1))


def test_a_damaged_file_is_used_up_to_the_damage(tmp_path, monkeypatch):
    monkeypatch.setattr(events, "PIECE_BYTES", 1 << 12)
    data = bytearray(gzip.compress(numbered(4000)))
    data[len(data) // 2:len(data) // 2 + 50] = b"\xff" * 50
    facts, _, fault = read(tmp_path, bytes(data), is_raw=True)
    assert fault.startswith("damaged within its first") and len(facts) > 500
    assert [fact.number for fact in facts] == list(range(1, len(facts) + 1))


@pytest.mark.parametrize("data, fault", [
    (b"", "torn: it ends after 0 bytes"), (b"no gzip", "damaged within its first 7 bytes"),
])  # fmt: skip
def test_what_is_no_archive_is_named(tmp_path, data, fault):
    facts, _, found = read(tmp_path, data, is_raw=True)
    assert facts == [] and found.startswith(fault)


def test_members_and_padding(tmp_path):
    parts = [gzip.compress(numbered(3)), gzip.compress(b""), gzip.compress(lines(event(repo={"id": 4, "name": "o/m"})))]
    facts, _, fault = read(tmp_path, b"".join(parts) + b"\0" * 512, is_raw=True)
    assert len(facts) == 4 and fault == ""
    facts, _, fault = read(tmp_path, b"".join(parts) + b"junk", is_raw=True)
    assert len(facts) == 4 and fault.startswith("damaged")


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(events, "LINE_LIMIT_BYTES", 3 << 20)
    facts, _, fault = read(tmp_path, lines(event()) + b"x" * (9 << 20))
    assert len(facts) == 1 and fault == "a line has more than 3145728 bytes; what follows was not read"


def test_a_missing_file_is_the_callers_fault(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(read_hour(str(tmp_path / "none.json.gz")))


JSON = strategies.recursive(strategies.none() | strategies.booleans() | strategies.integers() | strategies.text(max_size=5),
                            lambda inner: strategies.lists(inner, max_size=2) | strategies.dictionaries(
                                strategies.sampled_from([*ISSUE, *COMMENT, "issue", "comment", "base", "repo", "name"]), inner,
                                max_size=4), max_leaves=12)  # fmt: skip


@settings(max_examples=60)
@given(strategies.sampled_from(sorted(WANTED)), JSON,
       strategies.sampled_from(["payload", "issue", "comment", "pull_request", "review", "repo", "created_at", "id"]))
def test_any_payload_is_read(tmp_path_factory, kind, value, where):
    made = event(kind, {"action": "created", "issue": ISSUE, "comment": COMMENT, "review": COMMENT, "pull_request": ISSUE})
    (made if where in made else made["payload"])[where] = value
    facts, counts, fault = read(tmp_path_factory.mktemp("hour"), lines(made))
    assert fault == "" and (facts or counts["incomplete"] or not counts["facts"])
    for fact in facts:
        assert fact.repo_id > 0 and fact.number > 0 and fact == fact_from_row(json.loads(json.dumps(fact)))
