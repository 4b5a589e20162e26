"""How fast hours of GH Archive become facts on disk, and in how much memory: prints one JSON line.

    python tests/bench/archive.py [--events 20000] [--hours 2] [--seed 0]

Generates `--hours` files of `--events` events each, in the mix of a working day of 2024: 55 % pushes, 9 % events of pull
requests, 3 % reviews, of about the sizes that GitHub's payloads have. "Scanned" is reading facts and dropping them,
"written" is the whole work item: facts and names sorted into runs. One and two processes, each its own fresh one; "4x"
has files four times as long. The rates are of wall-clock time; "cpu" divides by processor time instead, which tells
more where the machine is busy. The bars: 40,000 events/s scanned with two processes, 1.5 GiB at both sizes.
"""

import argparse
import concurrent.futures
import gzip
import json
import multiprocessing
import os
import pathlib
import random
import resource
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from swerl_jax.curate import archive, events  # noqa: E402: the checkout comes first

BUCKETS = 64
# Type → its share in a thousand.
MIX = {"PushEvent": 550, "CreateEvent": 140, "WatchEvent": 60, "DeleteEvent": 40, "PullRequestEvent": 90,
       "IssueCommentEvent": 45, "IssuesEvent": 22, "PullRequestReviewEvent": 18, "PullRequestReviewCommentEvent": 10,
       "ForkEvent": 20, "ReleaseEvent": 5}  # fmt: skip
WORDS = ("the a of to in is that it for when with not this on as error value function test file fails after call returns "
         "none expected but got version install import module build user page request response timeout config option "
         "please add fix bug line code because should would type list string number key path open close memory thread "
         "`foo_bar(x)` 3.11 2.0.1 https://example.com/docs/page TypeError: traceback most recent call last").split()
REPO_LINKS = ("forks keys teams hooks events assignees branches tags blobs trees statuses languages stargazers contributors "
              "subscribers subscription commits comments contents compare merges archive downloads issues pulls milestones "
              "notifications labels releases deployments git_tags git_refs git_commits issue_comment issue_events svn clone "
              "mirror ssh").split()  # fmt: skip
USER_LINKS = ("followers following gists starred subscriptions organizations repos events received_events").split()
BATCH = 1000


def hexadecimal(rng, length=40):
    return f"{rng.getrandbits(4 * length):0{length}x}"


def text(rng, words):
    return " ".join(rng.choices(WORDS, k=max(0, int(rng.expovariate(1 / words)))))


def user(rng):
    number = int(rng.paretovariate(0.6)) * 7919 % 900_000 + 1
    login, url = f"user-{number}", f"https://api.github.com/users/user-{number}"
    return {"login": login, "id": number, "node_id": f"MDQ6VXNlcjEx{number}", "gravatar_id": "", "url": url,
            "avatar_url": f"https://avatars.githubusercontent.com/u/{number}?v=4", "html_url": f"https://github.com/{login}",
            **{f"{name}_url": f"{url}/{name}" for name in USER_LINKS}, "type": "User", "site_admin": False}


def repository(rng, number):
    owner = user(rng)
    name = f"{owner['login']}/project-{number % 500}"
    url = f"https://api.github.com/repos/{name}"
    return {"id": number, "node_id": f"R_kgDO{number}", "name": name.split("/")[1], "full_name": name, "private": False,
            "owner": owner, "html_url": f"https://github.com/{name}", "description": text(rng, 10), "fork": False, "url": url,
            **{f"{link}_url": f"{url}/{link}{{/sha}}" for link in REPO_LINKS}, "created_at": "2019-03-04T05:06:07Z",
            "updated_at": "2024-03-04T05:06:07Z", "pushed_at": "2024-03-05T05:06:07Z", "size": number % 9999,
            "stargazers_count": number % 77, "watchers_count": number % 77, "language": "Python", "has_issues": True,
            "license": {"key": "mit", "name": "MIT License", "spdx_id": "MIT", "url": "https://api.github.com/licenses/mit"},
            "topics": [], "visibility": "public", "default_branch": "main"}  # fmt: skip


def issue(rng, number, repo, at):
    return {"url": f"https://api.github.com/repos/{repo}/issues/{number}",
            "html_url": f"https://github.com/{repo}/issues/{number}", "id": 786_000_000 + number,
            "repository_url": f"https://api.github.com/repos/{repo}",
            "labels_url": f"https://api.github.com/repos/{repo}/issues/{number}/labels{{/name}}",
            "comments_url": f"https://api.github.com/repos/{repo}/issues/{number}/comments", "number": number,
            "title": text(rng, 8), "user": user(rng), "labels": [{"name": "bug", "id": 25, "color": "d73a4a"}], "state": "open",
            "locked": False, "assignee": None, "assignees": [], "milestone": None, "comments": 1,
            "created_at": "2024-03-01T10:00:00Z", "updated_at": at, "closed_at": None,
            "author_association": "NONE", "body": text(rng, 150)}  # fmt: skip


def pull_request(rng, number, repo, repo_id, at):
    is_merged = rng.random() < 0.4
    url = f"https://api.github.com/repos/{repo}/pulls/{number}"
    sides = {side: {"label": f"user:{side}", "ref": side, "sha": hexadecimal(rng), "user": user(rng),
                    "repo": {**repository(rng, repo_id), "full_name": repo}} for side in ("base", "head")}
    return {**issue(rng, number, repo, at), "url": url, "created_at": at, "issue_url": url, "commits_url": f"{url}/commits",
            "diff_url": f"{url}.diff", "patch_url": f"{url}.patch", "statuses_url": f"{url}/{hexadecimal(rng)}",
            "merge_commit_sha": hexadecimal(rng), "requested_reviewers": [user(rng)], "draft": False, **sides,
            "_links": {name: {"href": f"{url}/{name}"} for name in ("self", "html", "issue", "comments", "commits")},
            "merged": is_merged, "merged_at": at if is_merged else None, "merged_by": user(rng),
            "additions": 9, "deletions": 3, "changed_files": 2, "commits": 1,
            "body": f"Fixes #{max(1, number - 3)}. {text(rng, 60)}"}  # fmt: skip


def comment(rng, at, **more):
    return {"url": f"https://api.github.com/comments/{rng.getrandbits(30)}", "id": rng.getrandbits(30), "user": user(rng),
            "created_at": at, "updated_at": at, "author_association": "NONE",
            "body": text(rng, 50), **more}  # fmt: skip


def payload(rng, kind, repo, repo_id, at):
    number = rng.randrange(4, 40)
    if kind == "PushEvent":
        commits = [{"sha": hexadecimal(rng), "author": {"email": f"{hexadecimal(rng, 12)}@example.com", "name": text(rng, 2)},
                    "message": text(rng, 12), "distinct": True,
                    "url": f"https://api.github.com/repos/{repo}/commits/{hexadecimal(rng)}"}
                   for _ in range(min(20, int(rng.paretovariate(1.5))))]
        return {"repository_id": repo_id, "push_id": rng.getrandbits(34), "size": len(commits), "ref": "refs/heads/main",
                "head": hexadecimal(rng), "before": hexadecimal(rng), "commits": commits}
    made = {"PullRequestEvent": lambda: {"action": rng.choice(("opened", "closed")), "number": number},
            "IssuesEvent": lambda: {"action": "opened", "issue": issue(rng, number, repo, at)},
            "IssueCommentEvent": lambda: {
                "action": "created", "issue": issue(rng, number, repo, at), "comment": comment(rng, at)},
            "PullRequestReviewEvent": lambda: {"action": "created", "review": comment(rng, at, state="approved")},
            "PullRequestReviewCommentEvent": lambda: {
                "action": "created", "comment": comment(rng, at, diff_hunk=text(rng, 60), path="a")},
            "ForkEvent": lambda: {"forkee": repository(rng, repo_id + 1)}}  # fmt: skip
    value = made[kind]() if kind in made else {"ref": "main", "ref_type": "branch", "description": text(rng, 8)}
    if kind.startswith("PullRequest"):
        value["pull_request"] = pull_request(rng, number, repo, repo_id, at)
    return value


def line(rng, number, second):
    kind = rng.choices(list(MIX), MIX.values())[0]
    repo_id = int(rng.paretovariate(0.5)) * 104_729 % 2_000_000 + 1
    actor, repo = user(rng), f"user-{repo_id % 900_000}/project-{repo_id % 500}"
    at = f"2024-03-06T10:{second // 60:02d}:{second % 60:02d}Z"
    event = {"id": str(34_000_000_000 + number), "type": kind,
             "actor": {"id": actor["id"], "login": actor["login"], "display_login": actor["login"], "gravatar_id": "",
                       "url": actor["url"], "avatar_url": actor["avatar_url"]},
             "repo": {"id": repo_id, "name": repo, "url": f"https://api.github.com/repos/{repo}"},
             "payload": payload(rng, kind, repo, repo_id, at), "public": True,
             "created_at": at}  # fmt: skip
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"


def generate(path, count, seed, first):
    """Writes one file of events numbered from `first`; returns (bytes of lines, bytes of the file)."""
    rng, size = random.Random(seed), 0
    with open(path, "wb") as file:
        for start in range(0, count, BATCH):  # each a gzip member: nothing is kept
            lines = b"".join(line(rng, first + n, 3600 * n // count) for n in range(start, min(start + BATCH, count)))
            size += len(lines)
            file.write(gzip.compress(lines, 6, mtime=0))
    return size, os.path.getsize(path)


def scan(path):
    """(events, facts, seconds of processor time) of reading one file."""
    start_s = time.process_time()
    hour = events.read_hour(path)
    facts = sum(1 for _ in hour)
    assert not hour.fault, hour.fault
    return hour.counts["lines"], facts, time.process_time() - start_s


def write(path):
    """The same, and its run."""
    start_s = time.process_time()
    report = archive.write_hour(path, f"{path}.run", BUCKETS)
    assert not report["fault"], report
    return report["counts"]["lines"], report["counts"]["facts"], time.process_time() - start_s


def join(paths, directory):
    """(facts, changes, linked issues, seconds): everything after the hours, in this process."""
    hours, made = [f"{path}.run" for path in paths], {}
    start_s = time.process_time()
    for step in ("asks", "resolved", "answers"):
        made[step] = [f"{directory}/{step}-{bucket}" for bucket in range(BUCKETS)]
        for bucket, out in enumerate(made[step]):
            if step == "asks":
                archive.ask(hours, bucket, BUCKETS, out)
            elif step == "resolved":
                archive.resolve(hours, made["asks"], bucket, BUCKETS, out)
            else:
                archive.answer(hours, made["asks"] + made["resolved"], bucket, BUCKETS, out)
    found = issues = 0
    for bucket in range(BUCKETS):
        for change in archive.changes(hours, made["answers"], bucket):
            found += 1
            issues += len(getattr(change, "issues", ()))
    return found, issues, time.process_time() - start_s


def inflate_rate(path, count):
    """Events/s of processor time of decompressing alone: the floor."""
    start_s = time.process_time()
    with gzip.open(path, "rb") as file:
        while file.read(1 << 20):
            pass
    return count / (time.process_time() - start_s)


def measure(work, paths, processes):
    """{what: number} of `work` on every path, in fresh processes."""
    with concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(peak_bytes, [0.5] * processes))  # starts them
        start_s = time.perf_counter()
        found = list(pool.map(work, paths))
        wall_s = time.perf_counter() - start_s
        peak = sum(pool.map(peak_bytes, [0.5] * processes))
    lines, facts, cpu_s = (sum(values) for values in zip(*found, strict=True))
    return {"events_per_s": round(lines / wall_s), "events_per_cpu_s": round(processes * lines / cpu_s),
            "facts_per_s": round(facts / wall_s), "peak_rss_gib": round((peak + peak_bytes(0)) / 2**30, 3)}  # fmt: skip


def peak_bytes(wait_s):
    """This process's peak memory; waits, so that each process of a pool is asked once."""
    time.sleep(wait_s)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    """Generates, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--hours", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    result = {"bench": "archive", **vars(flags)}
    for scale in (1, 4):
        with tempfile.TemporaryDirectory() as directory:
            paths = [f"{directory}/{hour}.json.gz" for hour in range(flags.hours)]
            count = scale * flags.events
            sizes = [generate(path, count, flags.seed + hour, hour * count) for hour, path in enumerate(paths)]
            lines, files = (sum(values) for values in zip(*sizes, strict=True))
            result[f"{scale}x"] = {
                "line_bytes": round(lines / count / flags.hours), "gzip_ratio": round(lines / files, 1),
                "inflate_events_per_cpu_s": round(inflate_rate(paths[0], count)),
                "scan_1_process": measure(scan, paths, 1), "scan_2_processes": measure(scan, paths, 2),
                "write_2_processes": measure(write, paths, 2),
                "join_changes_issues_cpu_s": join(paths, directory), "peak_rss_gib": round(peak_bytes(0) / 2**30, 3),
            }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
