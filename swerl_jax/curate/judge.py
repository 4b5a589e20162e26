"""One change from finding to verdict: an Example, or the reason why not.

On the path: Change + clone → contamination → candidate → filters → context → **Example or Reject** → near-duplicates.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Mapping

from swerl_jax.curate import candidates, context, contamination, examples, filters, paths
from swerl_jax.curate.change import Candidate, Change, Reject
from swerl_jax.curate.contamination import Evaluation, EvaluationTexts
from swerl_jax.curate.examples import ExampleSettings, TokenCounter
from swerl_jax.curate.filters import FilterSettings
from swerl_jax.curate.issue_text import issue_text
from swerl_jax.curate.ranking import StaticRanker
from swerl_jax.curate.repository import Repository
from swerl_jax.data.records import Example
from swerl_jax.env.chat import Chat
from swerl_jax.env.tokenizer import load_tokenizer

STAGE = "contamination"
REASONS = {
    "repository": "of a repository that is evaluated on, or fixes an issue of one",
    "content": "its issue or its change repeats one that is evaluated on",
}


@dataclasses.dataclass(frozen=True)
class JudgeSettings:
    """Everything that a verdict depends on, beside the change and its clone.

    Attributes:
      filters, examples: as their modules say.
      tokenizer, chat, style: of the prompts whose length counts; as the settings of the same names.
      context_files: unchanged files shown, at most.
      evaluation: repositories to keep out; None: none are.
      evaluation_files: rows in SWE-bench's format whose copies are kept out.
      evaluation_state: of those files.
      tokenizer_digest: of the tokenizer's file, whose name may come to mean another.
    """

    filters: FilterSettings
    examples: ExampleSettings
    tokenizer: str
    chat: str
    style: str
    context_files: int = 8
    evaluation: Evaluation | None = None
    evaluation_files: tuple[str, ...] = ()
    evaluation_state: str = ""
    tokenizer_digest: str = ""


class Tally:
    """What is counted while changes are judged, beside what becomes of them.

    Attributes:
      kinds: of the files of all candidates, edits and new ones apart.
      found: for each k of context.RECALL_AT the sum of the recalls of the ranking by the issue alone.
      ranked: of how many.
    """

    def __init__(self) -> None:
        self.kinds: collections.Counter[str] = collections.Counter()
        self.found: collections.Counter[int] = collections.Counter()
        self.ranked = 0


def judge_of(settings: JudgeSettings) -> Judge:
    """The judge of this thread: what it has read (tokenizer, evaluation rows) and remembers serves all items."""
    if getattr(_thread, "settings", None) != settings:
        _thread.judge, _thread.settings = Judge(settings), settings
    return _thread.judge


_thread = threading.local()


class Judge:
    """Decides on changes, one after the other; neighbours of one repository come cheap."""

    def __init__(self, settings: JudgeSettings):
        """Loads what `settings` name.

        Raises:
          ValueError: what cannot be loaded, and what to do.
        """
        self._settings = settings
        self._filters = filters.make_filters(settings.filters)
        self.counter = TokenCounter(Chat(load_tokenizer(settings.tokenizer), settings.chat), settings.style)
        self._texts = EvaluationTexts(row for path in settings.evaluation_files for row in contamination.read_rows(path))
        self._ranker = StaticRanker()
        self._budget = context.Budget(settings.examples.max_prompt_tokens, settings.context_files)

    def repository_reason(self, names: tuple[str, ...], repo_id: int = 0, roots: tuple[str, ...] = ()) -> str:
        """Why a whole repository is evaluated on, "" if it is not; see `Evaluation.repository_reason`."""
        evaluation = self._settings.evaluation
        return evaluation.repository_reason(names, repo_id, roots) if evaluation else ""

    def contaminated(self, change: Change, roots: tuple[str, ...] = (), names: tuple[str, ...] = ()) -> Reject | None:
        """Why a change may not be learnt from, by where it and its clone are from; None where it may."""
        evaluation = self._settings.evaluation
        reason = evaluation.change_reason(change, roots, names) if evaluation else ""
        return Reject(change.id, STAGE, "repository", reason) if reason else None

    def change(self, change: Change, repository: Repository, roots: tuple[str, ...], tally: Tally) -> Example | Reject:
        """Decides on a change of a clone.

        Raises:
          RepositoryError: the clone cannot be read any further.
        """
        if rejected := self.contaminated(change, roots):
            return rejected
        made = candidates.candidate(repository, change)
        return made if isinstance(made, Reject) else self.candidate(made, repository, tally)

    def candidate(self, candidate: Candidate, repository: Repository | None, tally: Tally) -> Example | Reject:
        """Decides on a candidate of a change that is not contaminated; without a clone nothing but its files is shown.

        Raises:
          RepositoryError: the clone cannot be read any further.
        """
        tally.kinds.update(file.kind for file in candidate.files)
        if rejected := filters.reject(candidate, self._filters):
            return rejected
        shown = self._context(candidate, repository, tally) if repository else {}
        example = examples.build(candidate, shown, self._settings.examples, self.counter)
        if isinstance(example, Example) and (reason := self._texts.reason(example)):
            return Reject(example.id, STAGE, "content", reason)
        return example

    def _context(self, candidate: Candidate, repository: Repository, tally: Tally) -> Mapping[str, str]:
        """Unchanged files, the most relevant first."""
        changed = {file.path: file.before for file in filters.oracle_files(candidate, self._settings.filters.oracle_roles)
                   if file.before is not None}
        roles = self._settings.filters.oracle_roles  # of another role a file would be shown only where it changes
        tree = context.snapshot(repository, candidate.commit, lambda path: paths.role(path) in roles)
        issue = issue_text(candidate.change)
        if tree is None:
            return {}
        self._count_recall(issue, tree, changed, tally)
        ranking = self._ranker.rank(issue, tree, list(changed))
        shown = context.choose(changed, ranking, tree, self._budget, self.counter.file)
        return {path: shown[path] for path in ranking if path in shown and path not in changed}

    def _count_recall(self, issue: str, tree: context.Snapshot, changed: Mapping[str, str], tally: Tally) -> None:
        if changed:
            alone = self._ranker.rank(issue, tree)
            tally.ranked += 1
            tally.found.update({k: context.recall(alone, changed, k) for k in context.RECALL_AT})
