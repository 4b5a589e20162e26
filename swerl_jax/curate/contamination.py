"""What is evaluated on is not trained on: changes of evaluation repositories, of their forks, and of copies of their code.

A repository belongs to an evaluation if it has, or ever had, such a name, or only the part behind the owner where that is an
uncommon word, as forks and mirrors do; if its number is one that such a name was seen with; or if it shares a root commit with
a clone of such a name. A change is also dropped if an issue that it fixes was reported in such a repository. Copies without
history are left to the comparison of contents.

SWE-bench's *dev* split is no evaluation: its repositories are in none of the splits listed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from swerl_jax.curate import paths, swebench_source
from swerl_jax.curate.change import Change
from swerl_jax.curate.shingles import changed_lines, shingles, visible_text
from swerl_jax.data.records import Example

_HERE = pathlib.Path(__file__).resolve().parent
REPOSITORIES_PATH = _HERE / "evaluation_repositories.json"
ALIASES_PATH = _HERE / "evaluation_aliases.json"

RUN_WORDS = 10
_NEEDED = ("instance_id", "problem_statement", "patch")
OVERLAP = 0.5  # share of the runs of the smaller of two texts from which one holds the other
_MIN_RUNS = 5  # fewer common runs are chance: 14 words in a row
_MIN_LINE_CHARS = 14  # white space aside; shorter lines are everywhere
_PATCHED_FILE = re.compile(r"^--- (?:a/)?([^\t\n]*).*\n\+\+\+ (?:b/)?([^\t\n]*).*\n(?=@@ )", re.MULTILINE)
_MAX_ROWS_OF_A_RUN = 3  # a run of words in more rows is a template's, a licence's, a warning's
# Forks, mirrors and directories are called by the project alone; these words say nothing.
_COMMON_NAMES = frozenset(
    "bat carbon core druid faker fmt format framework hugo json next prism teleport vuls webclient xray".split()
)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What identifies a repository of an evaluation.

    Attributes:
      names: "owner/name", as `normal_name` writes it.
      ids: GitHub's numbers.
      roots: full ids of root commits.
      alone: what their forks, mirrors and directories may be called, whatever stands before the last slash; only of names
        that were given, for any word can be the name that an archive tells.
    """

    names: frozenset[str]
    ids: frozenset[int] = frozenset()
    roots: frozenset[str] = frozenset()
    alone: frozenset[str] = frozenset()

    def with_seen(self, pairs: Iterable[tuple[str, int]]) -> Evaluation:
        """Adds what (name, id) pairs of an archive tell: ids seen with a known name, and all names of such ids."""
        names_of: dict[int, set[str]] = {}
        for name, number in pairs:
            if number:
                names_of.setdefault(number, set()).add(normal_name(name))
        ids = self.ids | {number for number, names in names_of.items() if names & self.names}
        # One step: a name that a stranger took over later must not drag in the stranger's other names.
        return dataclasses.replace(self, ids=ids, names=self.names.union(*(names_of.get(number, ()) for number in ids)))

    def with_clones(self, clones: Iterable[tuple[str, Iterable[str]]]) -> Evaluation:
        """Adds the root commits of clones, given as (name, roots), whose name is one of these.

        A shallow clone has no true root: give none for it.
        """
        found = {root for name, roots in clones if self._is_named(name) for root in roots}
        return dataclasses.replace(self, roots=self.roots | found)

    def repository_reason(self, names: Iterable[str], repo_id: int = 0, roots: Iterable[str] = ()) -> str:
        """Why a repository belongs to an evaluation, "" if it does not.

        Args:
          names: all it is known by; "owner/name", a remote address, or a directory's name.
          repo_id: 0 where unknown.
          roots: its root commits.
        """
        for name in names:
            if self._is_named(name):
                return f"named {name}"
        if repo_id and repo_id in self.ids:
            return f"repository {repo_id}"
        shared = sorted(self.roots.intersection(roots))
        return f"shares root commit {shared[0]}" if shared else ""

    def change_reason(self, change: Change, roots: Iterable[str] = (), names: Iterable[str] = ()) -> str:
        """Why a change belongs to an evaluation, "" if it does not; "names" and "issue_repo_ids" of its meta count.

        Args:
          change: what was found.
          roots, names: of its clone, as in `repository_reason`.
        """
        names = [change.repo, *map(str, change.meta.get("names", ())), *names]
        if reason := self.repository_reason(names, change.repo_id, roots):
            return reason
        reported = sorted({issue.repo for issue in change.issues if self._is_named(issue.repo)})
        reported += sorted(f"repository {number}" for number in self.ids.intersection(change.meta.get("issue_repo_ids", ())))
        return f"fixes an issue of {reported[0]}" if reported else ""

    def _is_named(self, name: str) -> bool:
        normal = normal_name(name)
        return normal in self.names or normal.rpartition("/")[2] in self.alone


def load(paths: Iterable[str | os.PathLike[str]] = (REPOSITORIES_PATH, ALIASES_PATH)) -> Evaluation:
    """The evaluation repositories of JSON files: `splits` (name → repositories), and perhaps `former_names` and `ids`.

    Raises:
      ValueError: a file names no repository.
    """
    names: set[str] = set()
    ids: set[int] = set()
    for path in paths:
        value = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        groups = [*value.get("splits", {}).values(), *value.get("former_names", {}).values()]
        found = {normal_name(name) for group in groups for name in group}
        if not found or not all(name.count("/") == 1 for name in found):
            raise ValueError(f"{path} has no evaluation repositories; needed are \"splits\" of lists of \"owner/name\"")
        names |= found
        ids |= set(value.get("ids", {}).values())
    return Evaluation(frozenset(names), frozenset(ids), alone=_names_alone(names))


def normal_name(name: str) -> str:
    """"owner/name" in lower case of a name or an address; a directory's name in lower case."""
    name = name.strip().lower().rstrip("/").removesuffix(".git")
    name = re.sub(r"\A(?:[a-z+]{1,16}://)?(?:[^\s/@]{1,128}@)?(?:www\.)?github\.com[/:]", "", name)
    mirror = re.fullmatch(r"(?:[^/\s]{1,100}/)?([^/\s]{1,100}?)__([^/\s]{1,100}?)(?:\.[0-9a-f]{6,40})?", name)
    return f"{mirror[1]}/{mirror[2]}" if mirror else name  # how SWE-bench's directories and SWE-smith's mirrors are called


def _names_alone(names: Iterable[str]) -> frozenset[str]:
    owner_and_name = [name.split("/") for name in names]
    joined = {f"{owner}{sign}{name}" for owner, name in owner_and_name for sign in "-_."}
    return frozenset(joined | ({name for _, name in owner_and_name} - _COMMON_NAMES))


class EvaluationTexts:
    """The issues and fixes of evaluation rows, to find their copies elsewhere.

    Compared are runs of ten words of the issue, and of each file's changed lines, removed before added. Two texts overlap by
    the share of common runs in the smaller of the two sets, so that a fix hidden in a large change is found as well as an
    excerpt of one. A fix too short for that is found where all lines of code that it adds are added.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]]):
        """Reads rows in SWE-bench's format; needed are `instance_id`, `problem_statement` and `patch`."""
        self._ids: list[str] = []
        self._short: dict[str, list[tuple[int, frozenset[str]]]] = {}  # the longest added line → rows with all of theirs
        issues, changes = [], []
        for number, row in enumerate(rows):
            self._ids.append(str(row["instance_id"]))
            issues.append(shingles(visible_text(row["problem_statement"]), RUN_WORDS))
            changed = _changed_in(row["patch"])
            changes.append(_runs(changed))
            if len(changes[-1]) < _MIN_RUNS and (added := _added_lines(changed)):
                self._short.setdefault(max(added, key=lambda line: (len(line), line)), []).append((number, added))
        self._issues, self._changes = _Index(issues), _Index(changes)

    def __len__(self) -> int:
        return len(self._ids)

    def reason(self, example: Example) -> str:
        """Which row an example's issue or change repeats, "" for none."""
        if not self._ids:
            return ""
        changed = {path: changed_lines(example.files.get(path, ""), after) for path, after in example.oracle.items()}
        issue = shingles(visible_text(example.issue), RUN_WORDS)
        for what, index, runs in (("issue", self._issues, issue), ("change", self._changes, _runs(changed))):
            row, share = index.nearest(runs)
            if share >= OVERLAP:
                return f"{what} shares {share:.0%} with {self._ids[row]}"
        added = _added_lines(changed)
        rows = [row for line in added & self._short.keys() for row, lines in self._short[line] if lines <= added]
        return f"change adds all lines of {self._ids[min(rows)]}" if rows else ""


class _Index:
    """Run of words → the rows that have it, as two sorted arrays."""

    def __init__(self, sets: list[np.ndarray]):
        runs = np.concatenate([np.zeros(0, np.uint64), *sets])
        rows = np.repeat(np.arange(len(sets)), [len(one) for one in sets])
        order = np.argsort(runs, kind="stable")
        runs, rows = runs[order], rows[order]
        _, inverse, counts = np.unique(runs, return_inverse=True, return_counts=True)
        is_telling = counts[inverse] <= _MAX_ROWS_OF_A_RUN
        self._runs, self._rows = runs[is_telling], rows[is_telling]
        self._sizes = np.bincount(self._rows, minlength=len(sets))

    def nearest(self, runs: np.ndarray) -> tuple[int, float]:
        """(the row that shares most with `runs`, the share of the smaller set), (0, 0.0) where none shares enough."""
        starts, ends = np.searchsorted(self._runs, runs, "left"), np.searchsorted(self._runs, runs, "right")
        found = [self._rows[start:end] for start, end in zip(starts, ends, strict=True) if end > start]
        if not found:
            return 0, 0.0
        hits = np.bincount(np.concatenate(found), minlength=len(self._sizes))
        shares = np.where(hits >= _MIN_RUNS, hits / np.maximum(1, np.minimum(self._sizes, len(runs))), 0.0)
        row = int(np.argmax(shares))
        return row, float(shares[row])


def read_rows(url: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yields the rows of an evaluation file, as of `swebench_source.read_rows`.

    Raises:
      ValueError: it cannot be read, or naming the row that is none in SWE-bench's format.
    """
    url = os.fspath(url)
    for number, row in enumerate(swebench_source.read_rows(url), start=1):
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in _NEEDED):
            raise ValueError(f"{url}, row {number} is no evaluation row; needed is an object with the texts {', '.join(_NEEDED)}")
        yield row


def _changed_in(patch: str) -> dict[str, tuple[Sequence[str], Sequence[str]]]:
    """Path → the lines that a unified diff removes and adds there, as `changed_lines` tells them of whole files."""
    _, *parts = _PATCHED_FILE.split(patch)
    found = {}
    for old, new, hunks in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        lines = hunks.split("\n")
        removed, added = (tuple(line[1:] for line in lines if line[:1] == sign) for sign in "-+")
        found[old if new == "/dev/null" else new] = changed_lines("\n".join(removed), "\n".join(added))
    return found


def _runs(changed: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> np.ndarray:
    """The runs of words of every file by itself, so that they do not depend on which files are left out."""
    runs = [shingles("\n".join((*removed, *added)), RUN_WORDS) for removed, added in changed.values()]
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *runs]))


def _added_lines(changed: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> frozenset[str]:
    """Added lines of code that are long enough to tell something, without white space."""
    lines = ("".join(line.split()) for path, (_, added) in changed.items() if paths.language(path) for line in added)
    return frozenset(line for line in lines if len(line) >= _MIN_LINE_CHARS)
