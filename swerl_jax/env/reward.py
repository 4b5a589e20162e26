"""Rewards: what a policy wrote, compared with the oracle, becomes an `Outcome`.

On the path: text → edits → contents → diffs → **similarity → reward** → advantage. The default is SWE-RL's reward
(arXiv 2502.18449, section 2.1), number for number: −1 for an answer that cannot be used, else the mean over files of
the character similarity of the predicted and the oracle diff.

What the paper's reward leaves open is settled so that no answer gains by it: matching work is bounded by
`RewardSpec.work_limit`, growth of a file by `RewardSpec.max_growth_chars`. Past either, the number is a lower bound of
the paper's and `Outcome.detail` says so; an exact fix costs no matching and has 1 whatever its size.

`files` holds every file shown in the prompt, `oracle` the changed ones only: so an edit of a shown file that needed no
change counts as one more file with similarity 0.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import unidiff
from rapidfuzz.distance import Indel

from swerl_jax.data.records import FORMAT_REASONS, INFRA_FAULT, POLICY_FAULT, SCORED, STATUSES, Outcome, Similarity
from swerl_jax.env import matching, patch
from swerl_jax.env.matching import Work

FORMAT_REWARD = -1.0  # of every answer that cannot be used
WORK_LIMIT_PAIRS = 5_000_000_000  # two diffs of 60,000 characters of source code fit
MAX_GROWTH_CHARS = 1_000_000

Files = Mapping[str, str]
RewardFunction = Callable[[str, Files, Files], Outcome]

_INDEL_SHARE = 64  # characters compared in one step of the bit-parallel algorithm
_LINE_PAIRS = 1_000  # price of parsing one line of a unified diff, in pairs
_TRIAL_PAIRS = 8  # price of one step of a pattern, in pairs


class RewardContractError(ValueError):
    """A user's reward function returned something that is no reward."""


@dataclasses.dataclass(frozen=True)
class RewardSpec:
    """Which reward, with which options; can be pickled.

    Attributes:
      name: "search_replace" (the paper's), "unified_diff" (the answer is a diff), or a user's "module:function" of
        (output, files, oracle) that returns an Outcome, or a float: the rest is then as of "search_replace".
      similarity: "difflib", the paper's ratio, or "indel": 2·LCS / total length, faster and never smaller.
      line_autojunk: True as released: in files of 200 lines or more, lines that occur often do not start a match when
        the diff is made, so the diff of a small edit can be long and a wrong edit can score 0.99. False: plain diffs.
      discrete: 1 where the predicted contents equal the oracle's, else 0; −1 as ever (the paper's ablation).
      work_limit_pairs: compared pairs of characters or lines for one answer, see `matching.Work`.
      max_growth_chars: by how much the edits may make one file longer.
    """

    name: str = "search_replace"
    similarity: str = "difflib"
    line_autojunk: bool = True
    discrete: bool = False
    work_limit_pairs: int = WORK_LIMIT_PAIRS
    max_growth_chars: int = MAX_GROWTH_CHARS

    @classmethod
    def of(cls, settings: Any) -> RewardSpec:
        """The spec of a config's section `reward`."""
        return cls(settings.name, settings.similarity, settings.line_autojunk, settings.discrete)

    def __post_init__(self) -> None:
        if self.similarity not in ("difflib", "indel"):
            raise ValueError(f"reward similarity is {self.similarity!r}; it must be 'difflib' or 'indel'")
        if self.name not in ("search_replace", "unified_diff") and self.name.count(":") != 1:
            raise ValueError(
                f"reward name is {self.name!r}; it must be 'search_replace', 'unified_diff' or 'module:function'"
            )
        if self.work_limit_pairs < 1 or self.max_growth_chars < 0:
            raise ValueError(
                f"reward limits are {self.work_limit_pairs} pairs and {self.max_growth_chars} characters; "
                "the first must be at least 1, the second at least 0"
            )


PAPER = RewardSpec()


def make_reward(spec: RewardSpec) -> RewardFunction:
    """Returns the function of (output, files, oracle) that `spec` describes.

    Raises:
      ValueError: a "module:function" that cannot be imported or called.
    """
    if spec.name == "search_replace":
        return functools.partial(search_replace_reward, options=spec)
    if spec.name == "unified_diff":
        return functools.partial(unified_diff_output_reward, options=spec)
    module_name, _, function_name = spec.name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"reward {spec.name!r} cannot be imported ({error}); put its module on PYTHONPATH and check both names"
        ) from error
    if not callable(function):
        raise ValueError(f"reward {spec.name!r} is {type(function).__name__}, not a function")
    return functools.partial(_user_reward, spec, function)


def _user_reward(spec: RewardSpec, function: Callable[..., Any], output: str, files: Files, oracle: Files) -> Outcome:
    result = function(output, files, oracle)
    if isinstance(result, Outcome):
        _check_outcome(spec.name, result)
        return result
    reward = _checked_number(spec.name, result)
    return dataclasses.replace(search_replace_reward(output, files, oracle, spec), reward=reward)


def _check_outcome(name: str, outcome: Outcome) -> None:
    if outcome.status not in STATUSES:
        raise RewardContractError(f"reward {name!r} returned status {outcome.status!r}; use one of {STATUSES}")
    if outcome.status != INFRA_FAULT:
        _checked_number(name, outcome.reward)
        if outcome.reason not in ("", *FORMAT_REASONS):
            raise RewardContractError(f"reward {name!r} returned the reason {outcome.reason!r}; use one of {FORMAT_REASONS}, or "
                                      "\"\" for a usable answer, and `detail` for what else there is to say")
    elif outcome.reward is not None:
        raise RewardContractError(f"reward {name!r} returned an infra fault with a reward; its reward must be None")


def _checked_number(name: str, value: Any) -> float:
    if isinstance(value, numbers.Real) and math.isfinite(value):
        return float(value)
    raise RewardContractError(f"reward {name!r} returned {value!r}; it must return a finite float or an Outcome")


def search_replace_reward(output: str, files: Files, oracle: Files, options: RewardSpec = PAPER) -> Outcome:
    """Scores a text of thought and search/replace edits.

    Checked in this order, the first failure being the reason for −1: tag_count, empty_thought, no_blocks, then edit by
    edit no_change before search_not_found. No text raises.

    Source: arXiv 2502.18449, section 2.1, with the released behaviour where the paper is silent.
    """
    thought = answer = ""
    work = Work(options.work_limit_pairs)
    try:
        thought, answer = patch.split_output(output)
        patch.check_thought(thought)
        edits = patch.parse(answer)
        if not edits:
            raise patch.FormatFault("no_blocks", "the solution has no complete search/replace block")
        predicted = patch.apply_edits(edits, files, work, options.max_growth_chars)
    except patch.FormatFault as fault:
        return _malformed(fault, thought, answer)
    outcome = _compare_contents(predicted, files, oracle, options, work)
    return dataclasses.replace(outcome, thought=thought, answer=answer)


def contents_reward(predicted: Files, files: Files, oracle: Files, options: RewardSpec = PAPER) -> Outcome:
    """Scores predicted contents (path → text) of changed files; never −1, 1.0 where neither side changes anything."""
    return _compare_contents(predicted, files, oracle, options, Work(options.work_limit_pairs))


def unified_diff_reward(
    predicted_patches: Iterable[str], oracle_patches: Iterable[str], options: RewardSpec = PAPER
) -> Outcome:
    """Scores diff texts against diff texts; never −1.

    A text that cannot be parsed counts as no change, so two such sides score 1.0. Binary files are passed over. A file
    without hunks (a mode change) scores 0. Where a path occurs twice the last one counts.
    """
    return _compare_patches(predicted_patches, oracle_patches, options, Work(options.work_limit_pairs))


def _compare_patches(
    predicted_patches: Iterable[str], oracle_patches: Iterable[str], options: RewardSpec, work: Work
) -> Outcome:
    oracle = _read_patches(oracle_patches, work)
    predicted = _read_patches(predicted_patches, work)
    if work.is_exhausted:
        return Outcome(SCORED, 0.0, detail="work limit reached while reading the diffs: scored 0")
    return _compare_diffs(predicted, oracle, predicted == oracle, (), options, work)


def unified_diff_output_reward(output: str, files: Files, oracle: Files, options: RewardSpec = PAPER) -> Outcome:
    """Scores a text of thought and one unified diff; −1 for tag_count and empty_thought, as with edits.

    The diff is what stands between the first and the last line with three backticks of the solution, or all of it
    where there is no such pair. Ours: the paper defines this variant on diffs, not on a policy's text.
    """
    thought = answer = ""
    try:
        thought, answer = patch.split_output(output)
        patch.check_thought(thought)
    except patch.FormatFault as fault:
        return _malformed(fault, thought, answer)
    work = Work(options.work_limit_pairs)
    oracle_patches = [
        f"--- a/{path}\n+++ b/{path}\n{diff}\n"
        for path, after in oracle.items()
        if (diff := patch.file_diff(files.get(path, ""), after, options.line_autojunk, work))
    ]
    if work.is_exhausted:
        return Outcome(SCORED, 0.0, detail=_ORACLE_TOO_LARGE, thought=thought, answer=answer)
    outcome = _compare_patches([_unfenced(answer)], oracle_patches, options, work)
    return dataclasses.replace(outcome, thought=thought, answer=answer)


_ORACLE_TOO_LARGE = "work limit reached while diffing the oracle: scored 0"


def _unfenced(answer: str) -> str:
    lines = answer.split("\n")
    fences = [number for number, line in enumerate(lines) if line.startswith("```")]
    inside = lines[fences[0] + 1 : fences[-1]] if len(fences) > 1 else lines
    return "\n".join(inside) + "\n"


def _malformed(fault: patch.FormatFault, thought: str, answer: str) -> Outcome:
    return Outcome(POLICY_FAULT, FORMAT_REWARD, fault.reason, fault.detail, thought=thought, answer=answer)


def _compare_contents(
    predicted: Mapping[str, str | None], files: Files, oracle: Files, options: RewardSpec, work: Work
) -> Outcome:
    """Compares by diffs; a predicted content of None (grown past the limit) is a change that scores 0."""
    oracle_diffs, pairs = _oracle_diffs(tuple((path, files.get(path, ""), oracle[path]) for path in sorted(oracle)),
                                        options.line_autojunk, options.work_limit_pairs)  # fmt: skip
    is_exact = all(
        predicted.get(path, files.get(path, "")) == oracle.get(path, files.get(path, ""))
        for path in predicted.keys() | oracle.keys()
    )
    if not work.pay(pairs):
        return Outcome(SCORED, float(is_exact), detail="" if is_exact else _ORACLE_TOO_LARGE, is_exact=is_exact)
    known, diffs, remarks = dict(oracle_diffs), {}, []
    for path in sorted(predicted):
        content, before = predicted[path], files.get(path, "")
        diff = ""
        if content is None:
            remarks.append(f"{path}: grown by more than {options.max_growth_chars} characters: scored 0")
        elif content == oracle.get(path, before):
            if path not in known:
                continue
            diff = known[path]
        else:
            diff = patch.file_diff(before, content, options.line_autojunk, work)
            if work.is_exhausted:
                remarks.append(f"{path}: work limit reached: scored 0")
                diff = ""
            elif not diff:
                continue
        diffs[path] = diff
    return _compare_diffs(diffs, known, is_exact, remarks, options, work)


@functools.lru_cache(maxsize=8)  # the answers of one group are scored one after the other, against the same oracle
def _oracle_diffs(
    changes: tuple[tuple[str, str, str], ...], line_autojunk: bool, limit_pairs: int
) -> tuple[tuple[tuple[str, str], ...], int]:
    """Diffs of (path, before, after), empty ones left out, and the pairs they cost (past the limit: too many)."""
    work = Work(limit_pairs)
    diffs = [(path, patch.file_diff(before, after, line_autojunk, work)) for path, before, after in changes]
    return tuple(item for item in diffs if item[1]), limit_pairs + 1 if work.is_exhausted else work.spent


def _compare_diffs(
    predicted: Files, oracle: Files, is_exact: bool, remarks: Iterable[str], options: RewardSpec, work: Work
) -> Outcome:
    """The mean similarity over the paths of either side; 1.0 where there is none. `work` may run dry on the way."""
    similarities, details = [], list(remarks)
    for path in sorted(predicted.keys() | oracle.keys()):
        ours, theirs = predicted.get(path, ""), oracle.get(path, "")
        was_exhausted = work.is_exhausted
        ratio = _ratio(ours, theirs, options.similarity, work) if ours and theirs else 0.0
        if work.is_exhausted and not was_exhausted:
            details.append(f"{path}: work limit reached: its similarity is a lower bound, later ones are 0")
        similarities.append(Similarity(path, ours, theirs, ratio))
    mean = sum(s.ratio for s in similarities) / len(similarities) if similarities else 1.0
    reward = float(is_exact) if options.discrete else mean
    return Outcome(SCORED, reward, "", "; ".join(details), tuple(similarities), is_exact)


def _ratio(predicted: str, oracle: str, similarity: str, work: Work) -> float:
    if predicted == oracle:
        return 1.0
    if similarity == "difflib":
        return matching.ratio(predicted, oracle, work)
    if not work.pay(len(predicted) * len(oracle) // _INDEL_SHARE + len(predicted) + len(oracle)):
        return 0.0
    return Indel.normalized_similarity(predicted, oracle)


def _read_patches(patches: Iterable[str], work: Work) -> dict[str, str]:
    """Path → the text of its hunks, with a first line for a rename; an unparsable text adds nothing."""
    diffs: dict[str, str] = {}
    for text in patches:
        if not work.pay(_parse_pairs(text)):
            break
        diffs |= _read_patch(text)
    return diffs


def _parse_pairs(text: str) -> int:
    """The price of parsing: two kinds of header are matched by patterns that backtrack over their separators."""
    pairs = 0
    for line in text.split("\n"):
        trials = 1
        if line.startswith("diff --git "):
            trials = (1 + line.count(" ")) * (1 + line.count("://"))
        elif line.startswith("Binary file"):
            trials = (1 + line.count(" and ")) * (1 + line.count("\t"))
        pairs += _LINE_PAIRS + _TRIAL_PAIRS * len(line) * trials
    return pairs


def _read_patch(text: str) -> dict[str, str]:
    try:
        patched = unidiff.PatchSet(text)
        return dict(_file_text(file) for file in patched if not file.is_binary_file)
    except Exception:  # noqa: BLE001: the policy wrote it; whatever the parser trips over is no diff
        return {}


def _file_text(file: unidiff.PatchedFile) -> tuple[str, str]:
    hunks = "\n".join(str(hunk).strip() for hunk in file)
    if not file.is_rename:
        return file.path, hunks.strip()
    source, target = file.source_file.removeprefix("a/"), file.target_file.removeprefix("b/")
    return source, f"rename from {source} to {target}\n{hunks}".strip()
