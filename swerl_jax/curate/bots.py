"""Whether a program proposed a change, by its author's name and by what it says of itself.

SWE-RL drops whatever says `[bot]`, dependabot, renovate, bump or automerge in author, title or body (arXiv 2502.18449,
appendix A). That is the rule "paper". It also drops people who "bump into" a bug, name a `bumpMap`, or let a bot format
their work; the rule "signed" keeps those and knows more bots.
"""

from __future__ import annotations

import re

from swerl_jax.curate.change import Candidate

_PAPER_WORDS = ("[bot]", "dependabot", "renovate", "bump", "automerge")
_MAX_TITLE_CHARS = 1_000
_MAX_BODY_CHARS = 50_000
_AUTHOR = re.compile(
    r"\[bot\]|(?:\A|[-_\s])bot(?:\Z|[-_\s\d])|dependabot|renovate|automerge|greenkeeper|(?:\A|-)bump|github[- ]actions|"
    r"pre-commit-ci|mergify|imgbot|scala-steward|codecov|allcontributors|weblate|transifex|\Apyup|snyk|crowdin"
)
_BRANCH = re.compile(  # behind the owner of a fork, where one is named
    r"(?:[^/]+/)?(?:(?:dependabot|renovate|greenkeeper|depfu|whitesource-remediate|all-contributors|crowdin|weblate)/|snyk-(?:fix|"
    r"upgrade)-|pyup-(?:update|scheduled|initial)|(?:pre-commit-ci-update-config|imgbot)\Z)"
)
_TITLE = re.compile(r"\[bot\]|\bdependabot\b|\brenovate(?:bot)?\b|\bauto-?merged?\b|\bgreenkeeper\b")
_BUMP = r"bump(?:s|ed|ing)?\b"
_BUMP_BEGINS = re.compile(  # "chore(deps): bump", "[Security] Bump"; not "Bump map is upside down"
    r"\W{0,8}(?:\w{1,20}(?:\([^)\n]{0,80}\))?!?:\s{0,4}|\[[^\]\n]{0,40}\]:?\s{0,4})?"
    + _BUMP
    + r"(?![ -]?(?:into|map|alloc|chart|arena))"
)
_BUMP_VERSION = re.compile(r"\b" + _BUMP + r"[^\n]{0,120}\b(?:versions?|deps|dependenc(?:y|ies)|releases?|to v?\d)")
_BODY = re.compile(
    r"\[bot\]|\bbumps \[|\bdependabot (?:will|commands|compatibility)|dependabot-automerge|\brenovate ?bot\b|mend renovate|"
    r"renovate-debug|this (?:pr|pull request) (?:was|has been) (?:automatically )?(?:generated|created|opened) "
    r"(?:automatically|by (?:a bot|dependabot|renovate|mend|snyk|pyup|greenkeeper))"
)
_TRAILER = re.compile(r"^[ \t]{0,8}(?:co-authored-by|signed-off-by|reviewed-by):[^\n]*", re.MULTILINE)


def signed(candidate: Candidate) -> str:
    """What shows that a program proposed the change, "" if nothing does."""
    change = candidate.change
    if change.meta.get("is_bot") or _AUTHOR.search(change.author.lower()):
        return f"by {change.author}"
    for branch in (change.meta.get("branch", ""), change.meta.get("head_ref", "")):
        if _BRANCH.match(branch.lower()):
            return f"from the branch {branch}"
    title = change.title.lower()[:_MAX_TITLE_CHARS]
    if found := _TITLE.search(title) or _BUMP_BEGINS.match(title) or _BUMP_VERSION.search(title):
        return f"its title says {found[0].strip()!r}"
    body = _TRAILER.sub("", change.body[:_MAX_BODY_CHARS].lower())  # a bot that formatted a person's work is no author
    found = _BODY.search(body)
    return f"its text says {found[0].strip()!r}" if found else ""


def paper(candidate: Candidate) -> str:
    """Which of SWE-RL's words the change says, "" for none."""
    change = candidate.change
    everything = f"{change.author}\n{change.title}\n{change.body}".lower()
    return next((f"says {word!r}" for word in _PAPER_WORDS if word in everything), "")


RULES = {"signed": signed, "paper": paper}
