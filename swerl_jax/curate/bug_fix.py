"""Whether a change fixes a bug, judged by its words. A heuristic: it may be replaced by a function of one's own.

The words are looked for in this order, and the first that says something decides:

1. labels of the linked issues: "bug", "regression", "crash" … for; "enhancement", "feature", "documentation",
   "question" … against;
2. how the title begins: "fix:", "bugfix", "hotfix" for; "feat:", "docs:", "chore:", "refactor:", "ci:", "style:",
   "test:", "perf:", "build:", "release", "merge", "revert" against; so does a fix of typos, lint, style, documentation
   or tests;
3. words of title, body and issues that report a fault ("fix", "crash", "traceback", "expected", "wrong", "fails" …).

Nothing found: it is none. Tuned for recall: a feature request that says "fails" passes.
"""

from __future__ import annotations

import re

from swerl_jax.curate.change import Candidate

_FOR_LABEL = re.compile(r"\b(?:bugs?|bugfix|defects?|regression|crash(?:es)?|fault|broken|incorrect|error)\b|🐛")
_AGAINST_LABEL = re.compile(
    r"\b(?:enhancement|feature|feature[- ]request|documentation|docs|question|discussion|proposal|refactor(?:ing)?|cleanup|"
    r"chore|dependencies|support|rfc|wishlist|performance)\b"
)
_TITLE_SCOPE = r"(?:\([^)\n]{0,80}\))?!?\s{0,4}:"
_FOR_TITLE = re.compile(r"\W{0,8}(?:fix(?:e[sd]|ing)?|bug(?:fix)?|hotfix|regression)" + _TITLE_SCOPE)
_AGAINST_TITLE = re.compile(
    r"\W{0,8}(?:(?:feat(?:ure)?|docs?|documentation|chore|refactor|ci|style|tests?|perf|build|deps|release|bench|i18n|typo)"
    + _TITLE_SCOPE
    + r"|(?:release|merge (?:branch|pull|tag|remote)|prepare (?:for )?(?:release|version)|version \d|v\d+\.\d|revert)\b)"
)
_COSMETIC_TITLE = re.compile(
    r"\bfix(?:e[sd]|ing)?:? (?:\w{1,20} ){0,3}(?:typos?|spelling|grammar|wording|lint(?:er|ing)?|flake8|pep8|pylint|mypy|black|"
    r"isort|eslint|prettier|rubocop|formatting|whitespace|indentation|docs?|docstrings?|documentation|comments?|readme|"
    r"changelog|tests?|ci|travis|build|coverage|links?|copyright|licen[sc]e)\b"
    r"(?![^\n]{0,30}\b(?:crash(?:es)?|exception|traceback|bug)\b)"
)
_FAULT_WORDS = re.compile(
    r"\b(?:fix(?:e[sd]|ing)?|bug(?:s|gy|fix)?|defect|crash(?:e[sd]|ing)?|traceback|exception|segfault|stack ?trace|"
    r"panic(?:s|ked)?|errors?|fail(?:s|ed|ing|ure)?|broken?|breaks|regress(?:ion|ed)?|wrong(?:ly)?|incorrect(?:ly)?|"
    r"invalid(?:ly)?|unexpected(?:ly)?|undefined|inconsisten(?:t|tly|cy|cies)|ignor(?:es|ed|ing)|mismatch(?:es|ed)?|"
    r"mislead(?:s|ing)|expected (?:behaviou?r|result|output)|actual (?:behaviou?r|result|output)|steps to reproduce|"
    r"(?:do|is|are|did|was|can)(?: no|n['’]?)t (?:work|return|handle|respect|raise|match|set|support|show|update|call|change|"
    r"use|correct(?:ly)?)|does(?: no|n['’]?)t|cannot|should (?:not|n['’]?t)|leak(?:s|ed|ing|age)?|deadlock|race condition|"
    r"hang(?:s|ing)?|infinite (?:loop|recursion)|overflow|corrupt(?:s|ed|ion)?|misbehav\w{1,10}|nullpointerexception|"
    r"typeerror|valueerror|keyerror|attributeerror)\b"
)
_MAX_CHARS = 50_000


def reason(candidate: Candidate) -> str:
    """Why a change is taken for something else than the fix of a bug, "" if it is one."""
    change = candidate.change
    labels = " | ".join(label for issue in change.issues for label in issue.labels).lower().replace("_", " ").replace(":", " ")
    if _FOR_LABEL.search(labels):
        return ""
    if found := _AGAINST_LABEL.search(labels):
        return f"labelled {found[0]}"
    title = change.title.lower()[:_MAX_CHARS]
    if found := _AGAINST_TITLE.match(title) or _COSMETIC_TITLE.search(title):
        return f"its title says {found[0].strip()!r}"
    if _FOR_TITLE.match(title):
        return ""
    texts = [title, change.body, *(f"{issue.title}\n{issue.body}" for issue in change.issues)]
    if any(_FAULT_WORDS.search(text[:_MAX_CHARS].lower()) for text in texts):
        return ""
    return "no label, title or word tells of a fault"
