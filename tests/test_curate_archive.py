"""Hours of events become changes through files, whatever the order of hours, the runs' number and what was there before."""

import gzip
import json
import pathlib

import pytest

from swerl_jax.curate import archive, runs
from swerl_jax.curate.change import Change, Comment, Reject

FIXTURES = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "events"
BUCKETS = 3


def at(minute):
    return f"2024-01-01T00:{minute:02d}:00Z"


def event(number, minute, kind, payload, repo=(1, "o/n")):
    return {"id": str(number), "type": kind, "repo": {"id": repo[0], "name": repo[1]}, "payload": payload,
            "created_at": at(minute)}  # fmt: skip


def issue_payload(minute, body, number=5, created=1):
    return {"action": "opened", "issue": {"number": number, "title": "t", "body": body, "created_at": at(created),
                                          "updated_at": at(minute), "user": {"login": "ann"}}}  # fmt: skip


def pull_payload(action, minute, body, number=8):
    return {"action": action, "number": number, "pull_request": {
        "title": "Mend", "body": body, "created_at": at(10), "updated_at": at(minute), "merged": action == "closed",
        "merged_at": at(minute) if action == "closed" else None, "base": {"sha": "b"}, "head": {"sha": "h"}}}  # fmt: skip


def write_hours(directory, hours, buckets=BUCKETS):
    for number, lines in enumerate(hours):
        path = directory / f"{number}.json.gz"
        path.write_bytes(gzip.compress(b"".join(json.dumps(line).encode() + b"\n" for line in lines)))
        report = archive.write_hour(str(path), f"{directory}/{number}.run", buckets)
        assert report["fault"] == "" and report["counts"]["lines"] == len(lines)
    return [f"{directory}/{number}.run" for number in range(len(hours))]


def join(directory, hours, buckets=BUCKETS):
    made = {step: [f"{directory}/{step}-{bucket}" for bucket in range(buckets)] for step in ("asks", "resolved", "answers")}
    for bucket in range(buckets):
        archive.ask(hours, bucket, buckets, made["asks"][bucket])
    for bucket in range(buckets):
        archive.resolve(hours, made["asks"], bucket, buckets, made["resolved"][bucket])
    for bucket in range(buckets):
        archive.answer(hours, made["asks"] + made["resolved"], bucket, buckets, made["answers"][bucket])
    found = [one for bucket in range(buckets) for one in archive.changes(hours, made["answers"], bucket)]
    return sorted(found, key=lambda one: one.id)


BODY = "Fixes #5, fixes p/lib#6, fixes https://github.com/p/old-lib/issues/7, fixes q/nowhere#1, fixes #9"
HOURS = [
    # Out of order, and partly seen twice; p/old-lib becomes p/lib.
    [event(12, 9, "IssuesEvent", issue_payload(9, "edited")), event(11, 1, "IssuesEvent", issue_payload(1, "first")),
     event(14, 2, "IssuesEvent", issue_payload(2, "six", 6), (2, "p/old-lib")),
     event(15, 3, "IssuesEvent", issue_payload(3, "seven", 7), (2, "p/Lib"))],
    [event(12, 9, "IssuesEvent", issue_payload(9, "edited")),
     event(20, 10, "PullRequestEvent", pull_payload("opened", 10, BODY)),
     event(21, 12, "IssuesEvent", issue_payload(12, "solved by #8")),
     event(22, 9, "IssuesEvent", issue_payload(12, "nine", 9, created=11))],
    [event(30, 20, "PullRequestEvent", pull_payload("closed", 20, BODY), (1, "o/renamed")),
     event(30, 20, "PullRequestEvent", pull_payload("closed", 20, BODY), (1, "o/renamed")),
     event(31, 21, "PullRequestEvent", pull_payload("opened", 21, "", number=10), (1, "o/renamed"))],
]  # fmt: skip


@pytest.mark.parametrize("buckets", [1, 3])
def test_hours_are_joined(tmp_path, buckets):
    rejected, made = join(tmp_path, write_hours(tmp_path, HOURS, buckets), buckets)
    assert rejected == Reject("o/renamed#10@1", "pull_requests", "open")
    assert (made.id, made.repo, made.meta["names"]) == ("o/renamed#8@1", "o/renamed", ["o/n", "o/renamed"])
    assert [(one.repo, one.number, one.body) for one in made.issues] == [
        ("o/n", 5, "edited"), ("p/old-lib", 6, "six"), ("p/Lib", 7, "seven")]
    assert made.meta["issue_repo_ids"] == [1, 2, 2]
    assert made.meta["links"] == {"#5": "linked", "p/lib#6": "linked", "p/old-lib#7": "linked",
                                  "q/nowhere#1": "unknown_repository", "#9": "newer"}  # fmt: skip


def test_the_order_of_hours_does_not_matter(tmp_path):
    found = []
    for name, hours in (("a", HOURS), ("b", HOURS[::-1]), ("c", [sum(HOURS, [])])):
        (tmp_path / name).mkdir()
        found.append(join(tmp_path / name, write_hours(tmp_path / name, hours)))
    assert found[0] == found[1] == found[2]


def test_what_is_there_is_kept(tmp_path):
    hours = write_hours(tmp_path, HOURS)
    first = join(tmp_path, hours)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.suffix != ".gz"}
    (tmp_path / "answers-1").unlink()
    assert join(tmp_path, write_hours(tmp_path, HOURS)) == first
    assert [path.name for path, time in times.items() if path.stat().st_mtime_ns != time] == ["answers-1"]


def test_many_runs_are_merged_first(tmp_path, monkeypatch):
    hours = write_hours(tmp_path, HOURS)
    expected = join(tmp_path, hours)
    monkeypatch.setattr(runs, "FAN_IN", 2)
    merged = archive.compact(hours, str(tmp_path / "merged"))
    assert len(merged) == 2 and archive.compact(hours[::-1], str(tmp_path / "merged")) == merged
    monkeypatch.setattr(runs, "FAN_IN", 256)
    (tmp_path / "again").mkdir()
    assert join(tmp_path / "again", merged) == expected


def test_a_torn_hour_is_reported_and_the_rest_of_it_used(tmp_path):
    path = tmp_path / "0.json.gz"
    path.write_bytes(gzip.compress(b"".join(json.dumps(line).encode() + b"\n" for line in HOURS[0] * 999))[:-40])
    for _ in range(2):  # the second time it is only read
        report = archive.write_hour(str(path), f"{tmp_path}/0.run", BUCKETS)
        assert report["path"] == str(path) and report["fault"].startswith("torn")
        assert report["counts"]["facts"] > 0


@pytest.mark.parametrize("form", ["pre", "post"])
def test_real_events_of_both_forms(tmp_path, form):
    if not FIXTURES.exists():
        pytest.skip(f"{FIXTURES} is absent")
    lines = [json.loads(path.read_bytes()) for path in sorted(FIXTURES.glob(f"{form}2025_*.json"))]
    [opened] = [line for line in lines if line["type"] == "PullRequestEvent"]
    closed = json.loads(json.dumps(opened))
    closed.update(id="99", created_at="2021-01-21T00:00:00Z")
    closed["payload"]["action"] = "closed" if form == "pre" else "merged"
    if form == "pre":
        closed["payload"]["pull_request"].update(merged=True, merged_at="2021-01-21T00:00:00Z", body="Closes #5, closes #6")
    else:
        [reviewed] = [line for line in lines if line["type"] == "PullRequestReviewCommentEvent"]
        reviewed["payload"]["pull_request"]["body"] = "Closes #5, closes #6"
    found = join(tmp_path, write_hours(tmp_path, [[*lines, closed]]))
    [made] = [one for one in found if isinstance(one, Change)]
    assert made.id == "wayofthepie/test-events#8@316335970" and made.created_at == "2021-01-20T10:12:33Z"
    assert [(one.number, one.title) for one in made.issues] == [(5, "Test34"), (6, "Test")]
    assert [(one.body, one.path) for one in made.conversation] == [("Review comment test again", "test")]
    assert made.issues[0].comments == (Comment("issue", "wayofthepie", "2021-01-14T13:41:43Z", "Test"),)
    assert (made.base, made.meta["merged"]) == ("dfbedd9e1470e53f3a0f2e408e4d6808585b6987", True)
    # The review of another repository's pull request is known to be of one that was never closed here.
    assert [one.reason for one in found if isinstance(one, Reject)] == ([] if form == "pre" else ["open"])
