"""What a change did, read from the clone: which two trees to compare, and the text of every path that differs.

On the path: Change + repository → **Candidate** → filters.
"""

from __future__ import annotations

import dataclasses
import re

from swerl_jax.curate import file_changes, licences
from swerl_jax.curate.change import Candidate, Change, Reject
from swerl_jax.curate.file_changes import Blob, Difference
from swerl_jax.curate.git_objects import Commit
from swerl_jax.curate.repository import Repository

STAGE = "repository"
REASONS = {
    "missing_commit": "the clone lacks the commits on both sides of the change",
    "unknown_extent": "neither its last commit nor as many as it had change as many files as it did",
    "shallow": "the clone's history is cut off before the two sides meet",
    "no_merge_base": "the two sides share no history",
    "several_merge_bases": "the two sides were merged crosswise: no one tree is the one before the change",
    "missing_tree": "the clone lacks a directory of one side",
    "too_many_files": "more paths differ than are read",
    "too_many_bytes": "the files that differ are larger together than is read",
}

_SQUASHED = re.compile(r"\(#(\d+)\)\s*$")


class _Dropped(Exception):
    """Carries the reason out of the steps below."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def candidate(repository: Repository, change: Change) -> Candidate | Reject:
    """Reads what a change did: the cumulative difference from the merge base to its end.

    Args:
      repository: a clone of the repository that the change was made in.
      change: `base` and `head`, or `merge_commit`, are known; where the clone lacks `head` (a squashed or rebased pull
        request, whose own commits were never fetched), what `merge_commit` brought in stands for it.

    Returns:
      A candidate, whose files may be none, and whose licence is the tree's where the change tells none; or a Reject
      with one of REASONS.

    Raises:
      RepositoryError: the clone cannot be read any further.
    """
    try:
        base, head = _ends(repository, change)
        before = _merge_base(repository, base, head)
        differences = repository.differences(before, head)
        if differences is None:
            raise _Dropped("missing_tree", f"between {before.id} and {head.id}")
        blobs = _blobs(repository, differences)
    except _Dropped as dropped:
        return Reject(change.id, STAGE, dropped.reason, dropped.detail)
    if not change.licence:
        change = dataclasses.replace(change, licence=licence(repository, before))
    files = [file_changes.file_change(difference, blobs) for difference in differences]
    return Candidate(change, before.id, tuple(sorted(files, key=lambda file: (file.path, file.kind))))


def _ends(repository: Repository, change: Change) -> tuple[Commit, Commit]:
    """Returns the branch as it was before the change came in, and the end of the change."""
    head = repository.commit(change.head)
    merge = repository.commit(change.merge_commit)
    if merge and merge.parents and merge != head:
        is_merge = len(merge.parents) > 1
        if not head:
            head = repository.commit(merge.parents[1]) if is_merge else merge
        base_id = merge.parents[0] if is_merge or head != merge else _before_rebased(repository, change, merge)
    else:
        base_id = change.base or (head.parents[0] if head and head.parents else "")
    base = repository.commit(base_id)
    if not base or not head:
        wanted = [id_ for id_ in (change.base, change.head, change.merge_commit) if id_]
        raise _Dropped("missing_commit", f"of {', '.join(wanted) or 'nothing that is named'}")
    return base, head


def _before_rebased(repository: Repository, change: Change, merge: Commit) -> str:
    """Returns the commit below those that `merge`, the last of a pull request's, brought in without a merge.

    Squashed, there is one, and GitHub mostly puts the number behind its title. Rebased, there are as many as there were. Where
    the title does not tell, the number of files does, if it is known.
    """
    is_squashed = _SQUASHED.search(merge.message.partition("\n")[0])
    count, files = 1 if is_squashed else change.meta.get("commits") or 1, change.meta.get("files")
    if count == 1 or files is None:
        return _below(repository, merge, count)
    for below in (_below(repository, merge, count), merge.parents[0]):
        before = repository.commit(below)
        if before and len(repository.differences(before, merge) or ()) == files:
            return below
    raise _Dropped("unknown_extent", f"{files} files in {count} commits up to {merge.id}")


def _below(repository: Repository, last: Commit, count: int) -> str:
    """Returns the commit below so many of a line, "" where they are not there or not all of one parent."""
    below: Commit | None = last
    for _ in range(count - 1):
        below = repository.commit(below.parents[0]) if below and len(below.parents) == 1 else None
    return below.parents[0] if below and below.parents else ""


def _merge_base(repository: Repository, base: Commit, head: Commit) -> Commit:
    bases = repository.merge_bases(base.id, head.id)
    if not bases.is_complete:
        raise _Dropped("shallow", f"between {base.id} and {head.id}")
    if len(bases.ids) > 1:
        raise _Dropped("several_merge_bases", ", ".join(sorted(bases.ids)))
    found = repository.commit(bases.ids[0]) if bases.ids else None
    if not found:
        raise _Dropped("no_merge_base", f"of {base.id} and {head.id}")
    return found


def licence(repository: Repository, commit: Commit) -> str:
    """Returns the licence that the first licence file at the root of the tree is known to be, else ""."""
    names = repository.root_files(commit)
    ids = [names[name] for name in sorted(names) if licences.is_licence_file(name)]
    texts = repository.texts(ids)
    return next((name for id_ in ids if (name := licences.identify(texts[id_] or ""))), "")


def _blobs(repository: Repository, differences: list[Difference]) -> dict[str, Blob]:
    limits = repository.limits
    if len(differences) > limits.change_files:
        raise _Dropped("too_many_files", f"{len(differences)} paths differ; read are at most {limits.change_files}")
    ids = [id_ for difference in differences for id_ in difference.blob_ids()]
    blobs = repository.blobs(ids, limits.change_bytes)
    if blobs is None:
        raise _Dropped("too_many_bytes", f"{len(differences)} files; read are at most {limits.change_bytes} bytes")
    return blobs
