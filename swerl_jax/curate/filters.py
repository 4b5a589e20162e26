"""Which changes are worth learning from: one named function for each reason to drop one.

On the path: Candidate → **filters** → context → Example. A filter is a pure function that returns "" to keep a candidate,
or what a person needs to see why not. They run in the order of the table, the cheap ones first, and the first that speaks
decides; so of a change that is both huge and a bot's the funnel counts the bot's.

The thresholds err on the side of keeping, as the paper's do (arXiv 2502.18449, section 2: "tuned for recall"); what is
left too large for the prompt is dropped later.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import re
from collections.abc import Callable, Mapping, Sequence

from swerl_jax.curate import bots, bug_fix, licences, paths, scrub
from swerl_jax.curate.change import (
    BINARY,
    DELETE,
    EDIT,
    MISSING,
    MODE,
    NOT_UTF8,
    ODD_PATH,
    RENAME,
    SUBMODULE,
    SYMLINK,
    TOO_LARGE,
    Candidate,
    FileChange,
    Reject,
)
from swerl_jax.curate.issue_text import issue_text
from swerl_jax.curate.shingles import changed_lines

STAGE = "filters"
Filter = Callable[[Candidate], str]

_INEXPRESSIBLE = {  # the kinds that search/replace edits cannot say; the others are EDIT and NEW
    DELETE: "deleted", RENAME: "renamed", MODE: "given another mode", BINARY: "binary", NOT_UTF8: "not UTF-8",
    SYMLINK: "a symbolic link", SUBMODULE: "a submodule", ODD_PATH: "under a path that no example can hold",
    MISSING: "missing from the clone", TOO_LARGE: "too large to be read",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class FilterSettings:
    """How strict the filters are.

    Attributes:
      bots: a key of `bots.RULES`.
      bug_fix: "words", see `bug_fix`; "any": everything passes; or "module:function" of a Candidate that returns "" for the
        fix of a bug, else why it is none.
      needs_issue: False where the source has no issues, so that the message stands for one.
      min_issue_words: an issue of fewer says nothing.
      max_files: paths that differ, of any kind.
      max_changed_lines: removed and added ones of the oracle's files.
      max_file_chars: of any file of the oracle, before or after.
      max_fix_share: of the characters of new lines of code, how many may stand in the issue; more gives the fix away.
      languages: of the files, as in `paths.LANGUAGES`; empty: any.
      licences: SPDX identifiers and names of `licences.GROUPS`; empty: any, known or not.
      oracle_roles: roles of files that the policy is to change; unchanged ones of all these roles are shown beside. Lock
        files, generated and vendored ones, documentation and change logs are left out: nobody can guess them from an issue,
        and each would cost a share of the reward.
    """

    bots: str = "signed"
    bug_fix: str = "words"
    needs_issue: bool = True
    min_issue_words: int = 5
    max_files: int = 100
    max_changed_lines: int = 2_000
    max_file_chars: int = 400_000
    max_fix_share: float = 0.5
    languages: tuple[str, ...] = ()
    licences: tuple[str, ...] = ("permissive", "weak_copyleft", "copyleft")
    oracle_roles: tuple[str, ...] = (paths.SOURCE, paths.DATA)

    def __post_init__(self) -> None:
        if self.bots not in bots.RULES:
            raise ValueError(f"bots is {self.bots!r}; needed is one of {', '.join(bots.RULES)}")
        if unknown := sorted(set(self.languages) - paths.LANGUAGES):
            raise ValueError(f"languages has {unknown}; known are {', '.join(sorted(paths.LANGUAGES))}")
        if unknown := sorted(set(self.oracle_roles) - set(paths.ROLES)):
            raise ValueError(f"oracle_roles has {unknown}; needed are names out of {', '.join(paths.ROLES)}")


def make_filters(settings: FilterSettings = FilterSettings()) -> dict[str, Filter]:
    """Returns reason → filter, in the order in which they run.

    Raises:
      ValueError: `settings.bug_fix` cannot be imported or called.
    """
    filters: dict[str, Filter] = {
        reason: functools.partial(function, settings=settings) for reason, function in _TABLE.items()
    }
    filters["bot"] = bots.RULES[settings.bots]
    filters["not_a_bug_fix"] = _bug_fix_filter(settings.bug_fix)
    return {reason: filters[reason] for reason in REASONS}


def reject(candidate: Candidate, filters: Mapping[str, Filter]) -> Reject | None:
    """Returns why the candidate is dropped, by the first filter that says so; None where it is kept."""
    for reason, function in filters.items():
        if detail := function(candidate):
            return Reject(candidate.change.id, STAGE, reason, detail)
    return None


def file_role(file: FileChange) -> str:
    """The role of a file of a change, by its name and its text before (after, where it is new)."""
    return paths.role(file.path, file.before or file.after or "")


def oracle_files(candidate: Candidate, roles: tuple[str, ...]) -> list[FileChange]:
    """The files whose change is the oracle's, of any kind."""
    return [file for file in candidate.files if file_role(file) in roles]


def _empty(candidate: Candidate, settings: FilterSettings) -> str:
    del settings
    if not candidate.files:
        return "no file differs"
    is_same = all(file.kind == EDIT and _lines(file.before) == _lines(file.after) for file in candidate.files)
    return "only line endings differ" if is_same else ""


def _lines(text: str | None) -> list[str]:
    """As the reward compares them: what differs in line endings alone is no change to it."""
    return (text or "").splitlines()


def _huge(candidate: Candidate, settings: FilterSettings) -> str:
    if len(candidate.files) > settings.max_files:
        return f"{len(candidate.files)} files"
    lines = 0
    for file in oracle_files(candidate, settings.oracle_roles):
        before, after = file.before or "", file.after or ""
        if max(len(before), len(after)) > settings.max_file_chars:
            return f"{file.path} has {max(len(before), len(after))} characters"
        lines += sum(map(len, changed_lines(before, after)))
    return f"{lines} changed lines" if lines > settings.max_changed_lines else ""


def _unwritten_only(candidate: Candidate, settings: FilterSettings) -> str:
    del settings
    roles = {file_role(file) for file in candidate.files}
    return ", ".join(sorted(roles)) if roles and roles <= set(paths.UNWRITTEN) else ""


def _version_only(candidate: Candidate, settings: FilterSettings) -> str:
    """Nothing but version numbers differ, besides what no person wrote."""
    del settings
    written = [file for file in candidate.files if file_role(file) not in (*paths.UNWRITTEN, paths.DOCUMENTATION)]
    if not written or any(file.kind != EDIT for file in written):
        return ""
    pairs = [changed_lines(file.before or "", file.after or "") for file in written]
    if not all(_is_version_change(removed, added) for removed, added in pairs):
        return ""
    return ", ".join(file.path for file in written)


# Three numbers, or two beside a word that says what they are: `0.5` alone is a number like others.
_VERSION = re.compile(
    r"\d{1,9}(?:\.\d{1,9}){2,4}(?:[-.+]?[A-Za-z0-9]{1,20}){0,3}|\d{1,9}(?:\.\d{1,9})?(?:\.?(?:dev|rc|a|b|post)\d{0,4})?"
)
_VERSION_LINE = re.compile(r"version|release|\d\.\d{1,9}\.\d", re.IGNORECASE)


def _is_version_change(removed: Sequence[str], added: Sequence[str]) -> bool:
    if len(removed) != len(added) or not all(_VERSION_LINE.search(line[:500]) for line in (*removed, *added)):
        return False
    return all(_VERSION.sub("#", a[:500]) == _VERSION.sub("#", b[:500]) for a, b in zip(removed, added, strict=True))


def _no_source(candidate: Candidate, settings: FilterSettings) -> str:
    del settings
    roles = [file_role(file) for file in candidate.files]
    return "" if paths.SOURCE in roles else f"{len(roles)} files: {', '.join(sorted(set(roles)))}"


def _no_issue(candidate: Candidate, settings: FilterSettings) -> str:
    change = candidate.change
    if settings.needs_issue and not change.issues and not change.meta.get("message_as_issue"):
        named = ", ".join(f"{link} {status}" for link, status in change.meta.get("links", {}).items())
        return f"no issue is linked ({named or 'none is named'})"
    return "" if issue_text(change).strip() else "its issues have no text"


def _short_issue(candidate: Candidate, settings: FilterSettings) -> str:
    count = len(issue_text(candidate.change).split(None, settings.min_issue_words))
    return f"{count} words" if count < settings.min_issue_words else ""


def _language(candidate: Candidate, settings: FilterSettings) -> str:
    main = paths.main_language(file.path for file in candidate.files if file_role(file) == paths.SOURCE)
    return (main or "none") if settings.languages and main not in settings.languages else ""


def _licence(candidate: Candidate, settings: FilterSettings) -> str:
    if not settings.licences or licences.normal(candidate.change.licence) in licences.allowed(settings.licences):
        return ""
    return candidate.change.licence or "unknown"


def _has_kind(candidate: Candidate, settings: FilterSettings, kind: str) -> str:
    files = [file.path for file in candidate.files if file.kind == kind and file_role(file) in settings.oracle_roles]
    return ", ".join(files[:10])


def _fix_in_issue(candidate: Candidate, settings: FilterSettings) -> str:
    """New lines of code that the issue spells out, white space aside.

    A line counts if it is new in its file and long enough to mean something; a short one must be a whole line of the
    issue, or a piece of code in it.
    """
    text = issue_text(candidate.change)
    squeezed = _squeeze(text)
    whole = {_squeeze(piece) for piece in re.split(r"[\n`]", text)}
    new: dict[str, bool] = {}  # line → whether the issue says it
    for file in oracle_files(candidate, (paths.SOURCE,)):
        _, added = changed_lines(file.before or "", file.after or "")
        lines = {line: _is_said(line, squeezed, whole) for line in map(_squeeze, added) if _is_telling(line)}
        if any(lines.values()):  # else it does not matter which of them are only moved or indented
            known = {_squeeze(line) for line in (file.before or "").split("\n")}
            lines = {line: is_said for line, is_said in lines.items() if line not in known}
        new |= lines
    total = sum(map(len, new))
    share = sum(len(line) for line, is_said in new.items() if is_said) / total if total else 0.0
    return f"{share:.0%} of the new code" if share > settings.max_fix_share else ""


def _is_telling(line: str) -> bool:
    return len(line) >= _MIN_LINE_CHARS and _IDENTIFIER.search(line) is not None


def _is_said(line: str, squeezed: str, whole: set[str]) -> bool:
    return line in squeezed if len(line) >= _MIN_PIECE_CHARS else line in whole


_MIN_LINE_CHARS = 6
_MIN_PIECE_CHARS = 14
_IDENTIFIER = re.compile(r"[^\W\d]{2}")
_SPACE = re.compile(r"\s+")


def _squeeze(text: str) -> str:
    """Without white space, and without the sign of a quoted line or of a line of a diff."""
    return _SPACE.sub("", "\n".join(line.lstrip(" \t>").removeprefix("+") for line in text.split("\n")))


def _secret_in_code(candidate: Candidate, settings: FilterSettings) -> str:
    for file in oracle_files(candidate, settings.oracle_roles):
        if kind := scrub.find_secret(file.before or ""):
            return f"{file.path}: {kind}"
        if kind := scrub.find_secret(file.after or ""):
            return f"{file.path}: {kind}, which the change adds"
    return ""


_TABLE: dict[str, Callable[..., str]] = {
    "empty": _empty, "unwritten_only": _unwritten_only, "version_only": _version_only, "no_source": _no_source,
    "no_issue": _no_issue, "short_issue": _short_issue, "language": _language, "licence": _licence,
    **{f"kind_{kind}": functools.partial(_has_kind, kind=kind) for kind in _INEXPRESSIBLE},
    "huge": _huge, "fix_in_issue": _fix_in_issue, "secret_in_code": _secret_in_code,
}  # fmt: skip
REASONS = {
    "bot": "a program proposed it, or it only moves a version",
    "empty": "no text differs, or only line endings do",
    # Early: of a partial clone the licence is missing too, and is not the cause.
    f"kind_{MISSING}": "a file of the oracle is missing from the clone, which is partial or damaged: clone it whole",
    "unwritten_only": "only lock files, generated or vendored ones",
    "version_only": "only version numbers",
    "no_source": "no source file in a programming language, besides tests",
    "no_issue": "no linked issue, or one without text",
    "short_issue": "the issue says next to nothing",
    "language": "not one of the languages asked for",
    "licence": "not one of the licences asked for, or unknown",
    **{f"kind_{kind}": f"of the oracle's files one is {what}, which edits cannot say"
       for kind, what in _INEXPRESSIBLE.items() if kind != MISSING},
    "huge": "too many files or lines, or too large a file",
    "not_a_bug_fix": "its words tell of something else",
    "fix_in_issue": "the issue spells out the fix",
    "secret_in_code": "code to be shown or learnt holds what looks like a secret",
}


def _any(candidate: Candidate) -> str:
    del candidate
    return ""


def _bug_fix_filter(spec: str) -> Filter:
    if spec in ("words", "any"):
        return bug_fix.reason if spec == "words" else _any
    module, _, name = spec.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"bug_fix is {spec!r} ({error}); needed is words, any, or the module:function to import") from error
    if not callable(function):
        raise ValueError(f"bug_fix {spec!r} is {type(function).__name__}; needed is a function of a Candidate")
    return function
