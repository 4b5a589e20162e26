"""What a policy is shown of a tree: the files that change, and unchanged ones that matter, within a budget of tokens.

On the path: candidate + ranking → **context** → Example. Shown only what is to be edited, a policy learns to edit
everything that it sees.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

from swerl_jax.curate.repository import Repository
from swerl_jax.curate.term_index import Snapshot

RECALL_AT = (1, 3, 5, 10)

_READ_AT_ONCE = 8
_MOST_CHARS_PER_TOKEN = 12  # beyond this no file of code comes: one that is larger still need not be counted


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is shown.

    Attributes:
      tokens: of all files together, changed ones included; unchanged ones are added while they fit.
      added_files: unchanged ones at most.
      tried_files: of the ranking looked at before giving up; some do not fit, or are no text.
    """

    tokens: int
    added_files: int = 8
    tried_files: int = 40


def snapshot(repository: Repository, commit: str, is_shown: Callable[[str], bool]) -> Snapshot | None:
    """Returns the files of a commit's tree that may be shown, None where the tree cannot be read.

    Args:
      repository: where they are read from, when they are.
      commit: before the change.
      is_shown: whether a path may be; all that a change may edit, or what is shown tells what changes.
    """
    tree = repository.tree(commit)
    if tree is None:
        return None
    files = {path: blob for path, (mode, blob) in tree.items() if mode.startswith("100") and is_shown(path)}
    return Snapshot(files, repository.texts)


def choose(
    changed: Mapping[str, str], ranking: Sequence[str], snapshot: Snapshot, budget: Budget,
    count: Callable[[str, str], int],
) -> dict[str, str]:
    """Returns the files to show: the changed ones, whatever they take, and the first others that fit.

    Args:
      changed: path → text before the change, of the files that it edits.
      ranking: paths, most relevant first.
      snapshot: the tree before the change; files outside it are not added.
      budget: how much.
      count: tokens that a file of this path and text takes.

    Returns:
      Path → text, sorted by path, so that the order tells nothing of what changes.
    """
    left = budget.tokens - sum(count(path, text) for path, text in changed.items())
    others = [path for path in ranking if path not in changed and path in snapshot.files][:budget.tried_files]
    added: dict[str, str] = {}
    for start in range(0, len(others), _READ_AT_ONCE):
        if left <= 0 or len(added) >= budget.added_files:
            break
        chunk = others[start:start + _READ_AT_ONCE]
        texts = snapshot.read([snapshot.files[path] for path in chunk])
        for path in chunk:
            text = texts[snapshot.files[path]]
            if not text or len(text) > left * _MOST_CHARS_PER_TOKEN or len(added) >= budget.added_files:
                continue
            tokens = count(path, text)
            if tokens <= left:
                added[path] = text
                left -= tokens
    return dict(sorted({**changed, **added}.items()))


def recall(ranking: Sequence[str], changed: Collection[str], k: int) -> float:
    """Returns the share of the changed files that are among the first k of the ranking.

    Args:
      ranking: from the issue alone, or it tells nothing of finding them.
      changed: files that the change touches and that exist before it; at least one.
      k: see RECALL_AT.
    """
    changed = set(changed)
    return len(changed & set(ranking[:k])) / len(changed)
