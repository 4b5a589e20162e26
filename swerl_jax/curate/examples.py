"""Candidate + context → Example: what the policy is shown, what it should do, and the proof that it can be said.

On the path: filters → context → **examples** → near-duplicates → shards. The proof is the oracle's own answer: written
by `env.edits`, read back and scored by the reward that will judge the policy. An example whose answer does not score
exactly 1.0 is dropped by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from swerl_jax.curate import paths, scrub
from swerl_jax.curate.change import Candidate, Change, FileChange, Reject
from swerl_jax.curate.filters import file_role, oracle_files
from swerl_jax.curate.issue_text import clean, issue_text
from swerl_jax.curate.lru import Lru
from swerl_jax.data import shards
from swerl_jax.data.records import Example
from swerl_jax.env import prompts
from swerl_jax.env.chat import Chat
from swerl_jax.env.reward import PAPER, RewardSpec, make_reward

STAGE = "examples"
REASONS = {
    "no_file": "only new files, and no unchanged one to show",
    "unwritable": "search/replace edits cannot say it: its lines hold the format's own markers",
    "invisible": "the reward sees no difference: only line endings differ",
    "oracle_score": "the oracle's own answer does not score 1.0",
    "prompt_tokens": "the issue and the changed files are longer than a prompt may be",
    "answer_tokens": "the oracle's own answer is longer than an answer may be",
    "invalid": "not what a shard may hold",
}
THOUGHT = "The fix."
MESSAGE_AS_ISSUE = "message_as_issue"
TESTS_LEFT_OUT = "tests_left_out"
OPENING_UNSEEN = "opening_unseen"  # so the issues may read as they did only after the pull request was opened
NO_CONTEXT = "no_context"  # every file shown is one to be edited
_ANSWER_THAT_IS_RIGHT = 1.0


@dataclasses.dataclass(frozen=True)
class ExampleSettings:
    """What an example may be.

    Attributes:
      oracle_roles: as in FilterSettings.
      max_prompt_tokens, max_answer_tokens: limits; an answer is the oracle's, with a thought of one line.
      reward: what scores the oracle's answer.
      max_test_chars: of the tests kept with an example, together; those that do not fit are left out, in order of length.
      keep_conversation: whether `meta` holds the pull request's comments (scrubbed).
    """

    oracle_roles: tuple[str, ...] = (paths.SOURCE, paths.DATA)
    max_prompt_tokens: int = 16_384
    max_answer_tokens: int = 4_096
    reward: RewardSpec = PAPER
    max_test_chars: int = 200_000
    keep_conversation: bool = True


class TokenCounter:
    """Tokens of prompts and answers, by the tokenizer, template and style of the training to come.

    Files are counted one by one and remembered, as neighbouring changes show the same ones; where the sum comes within
    2 % of a limit the whole prompt is counted, since a tokenizer may join what stands on both sides of a seam.
    """

    def __init__(self, chat: Chat, style: str = "swe_rl", cache_chars: int = 64_000_000):
        """Counts for `chat` and a key of `prompts.STYLES`; `cache_chars` bounds the files remembered."""
        self._chat = chat
        self._style = style
        self._files: Lru[tuple[str, str], int] = Lru(cache_chars)

    def file(self, path: str, text: str) -> int:
        """Tokens that one more file costs."""
        count = self._files.get((path, text))
        if count is None:
            count = len(self._chat.tokenizer.encode(f"### {path}\n{text}\n\n"))
            self._files.put((path, text), count, weight=len(path) + len(text) + 100)
        return count

    def without_files(self, example: Example) -> int:
        """Tokens of everything but the files."""
        return self.exact(dataclasses.replace(example, files={}))

    def exact(self, example: Example) -> int:
        """Tokens of the whole prompt."""
        return len(self._chat.prompt(prompts.messages(example, self._style)))

    def answer(self, text: str) -> int:
        """Tokens of an answer, stop id included."""
        return len(self._chat.answer(text))


def build(
    candidate: Candidate, context: Mapping[str, str], settings: ExampleSettings, counter: TokenCounter
) -> Example | Reject:
    """Makes the example of a candidate that the filters kept.

    Args:
      candidate: its files of `settings.oracle_roles` become the oracle, its tests are kept apart, others are named in
        `meta["left_out"]`.
      context: unchanged files, path → text at `candidate.commit`, the most relevant first; as many are shown as fit, none
        that holds a secret or that the change touches.
      counter: of tokens.

    Returns:
      An Example that a shard takes, its files in order of their paths so that the order does not tell which change; or a
      Reject with one of REASONS.
    """
    example = _without_context(candidate, settings)
    fault = _oracle_fault(example, settings, counter)
    if not fault:
        example, tokens = _with_context(example, _unchanged(candidate, context), settings.max_prompt_tokens, counter)
        example.meta["prompt_tokens"] = tokens
        if example.files.keys() <= example.oracle.keys():
            example = dataclasses.replace(example, flags=(*example.flags, NO_CONTEXT))
        if tokens > settings.max_prompt_tokens:
            fault = "prompt_tokens", f"{tokens} tokens in {len(example.files)} files"
        elif not example.files:
            fault = "no_file", ", ".join(example.oracle)
        else:
            fault = _invalid(example)
    return Reject(candidate.change.id, STAGE, *fault) if fault else example


def oracle_score(example: Example, reward: RewardSpec = PAPER) -> tuple[str, str]:
    """Scores the oracle's own answer.

    Returns:
      ("", the answer) where it scores exactly 1.0 and restores the oracle; else (one of REASONS, what is wrong).
    """
    try:
        answer = prompts.answer_text(example, THOUGHT)
    except ValueError as error:
        return "unwritable", str(error)
    outcome = make_reward(reward)(answer, example.files, example.oracle)
    if outcome.reward != _ANSWER_THAT_IS_RIGHT or not outcome.is_exact:
        return "oracle_score", f"{outcome.reward} {outcome.reason} {outcome.detail}".strip()
    if not outcome.similarities and not reward.discrete:
        return "invisible", ", ".join(example.oracle)
    return "", answer


def _oracle_fault(example: Example, settings: ExampleSettings, counter: TokenCounter) -> tuple[str, str] | None:
    reason, text = oracle_score(example, settings.reward)
    if reason:
        return reason, text
    tokens = example.meta["answer_tokens"] = counter.answer(text)
    return ("answer_tokens", f"{tokens} tokens") if tokens > settings.max_answer_tokens else None


def _without_context(candidate: Candidate, settings: ExampleSettings) -> Example:
    change = candidate.change
    changed = oracle_files(candidate, settings.oracle_roles)
    issue, scrubbed = scrub.scrub(issue_text(change))
    tests, is_whole = _tests(candidate, settings)
    flags = [*map(str, change.meta.get("flags", ()))]
    flags += [MESSAGE_AS_ISSUE] if change.meta.get(MESSAGE_AS_ISSUE) or not change.issues else []
    flags += [] if is_whole else [TESTS_LEFT_OUT]
    flags += [OPENING_UNSEEN] if change.issues and not change.meta.get("is_opening_seen", True) else []
    return Example(
        id=change.id,
        repo=change.repo,
        commit=candidate.commit,
        issue=issue,
        files={file.path: file.before for file in changed if file.before is not None},
        oracle={file.path: file.after for file in changed if file.after is not None and file.after != (file.before or "")},
        tests=tests,
        image=str(change.meta.get("image", "")),
        flags=tuple(dict.fromkeys(flags)),
        meta=_meta(candidate, scrubbed, changed, settings),
    )


def _meta(
    candidate: Candidate, scrubbed: Mapping[str, int], changed: Sequence[FileChange], settings: ExampleSettings
) -> dict[str, Any]:
    change = candidate.change
    main = paths.main_language(file.path for file in changed if file_role(file) == paths.SOURCE)
    shown = {file.path for file in changed}
    meta: dict[str, Any] = {
        "source": change.source,
        "repo_id": change.repo_id,
        "head": change.head,
        "merge_commit": change.merge_commit,
        "title": scrub.scrub(clean(change.title))[0],
        "created_at": change.created_at,
        "issues": [{"repo": issue.repo, "number": issue.number, "created_at": issue.created_at} for issue in change.issues],
        "language": main or change.language,
        "licence": change.licence,
        "left_out": {file.path: file_role(file) for file in candidate.files if file.path not in shown},
        "scrubbed": dict(scrubbed),
        "origin": {key: value for key, value in change.meta.items() if key not in ("tests", "flags", "image")},
    }
    if settings.keep_conversation:
        meta["conversation"] = _conversation(change)
    return meta


def _conversation(change: Change) -> list[dict[str, str]]:
    return [
        {**dataclasses.asdict(comment), "body": scrub.scrub(clean(comment.body))[0], "author": clean(comment.author)}
        for comment in change.conversation
    ]


def _tests(candidate: Candidate, settings: ExampleSettings) -> tuple[dict[str, Any], bool]:
    """What the source gave, and "test_files": path → text after the change, None where it goes; whether that is all."""
    kept: dict[str, str | None] = {}
    room, is_whole = settings.max_test_chars, True
    files = [file for file in candidate.files if file_role(file) == paths.TEST not in settings.oracle_roles]
    for file in sorted(files, key=lambda file: (len(file.after or ""), file.path)):
        is_gone = file.kind == "delete"
        if not is_gone and (file.after is None or len(file.after) > room or scrub.find_secret(file.after)):
            is_whole = False
            continue
        kept[file.path] = file.after
        if file.old_path:
            kept[file.old_path] = None
        room -= len(file.after or "")
    given = dict(candidate.change.meta.get("tests", {}))
    return {**given, "test_files": dict(sorted(kept.items()))} if kept else given, is_whole


def _unchanged(candidate: Candidate, context: Mapping[str, str]) -> dict[str, str]:
    touched = {path for file in candidate.files for path in (file.path, file.old_path)}
    return {path: text for path, text in context.items() if path not in touched and not scrub.find_secret(text)}


def _with_context(
    example: Example, context: Mapping[str, str], limit: int, counter: TokenCounter
) -> tuple[Example, int]:
    """Adds as many files as fit, in the order given; returns the example and the tokens of its prompt."""
    tokens = counter.without_files(example) + sum(counter.file(*item) for item in example.files.items())
    shown = dict(example.files)
    for path, text in context.items():
        if tokens + (cost := counter.file(path, text)) <= limit:
            shown[path] = text
            tokens += cost
    filled = dataclasses.replace(example, files=dict(sorted(shown.items())))
    if abs(tokens - limit) > 0.02 * limit:
        return filled, tokens
    exact = counter.exact(filled)
    if exact <= limit or len(shown) == len(example.files):
        return filled, exact
    return _with_context(example, dict(list(context.items())[:-1]), limit, counter)  # the seams cost more than thought


def _invalid(example: Example) -> tuple[str, str] | None:
    try:
        shards.example_from_json(shards.example_to_json(example))
    except ValueError as error:
        return "invalid", str(error)
    return None
