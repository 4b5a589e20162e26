"""What a commit's message says: its title and text, the pull request it brought in, what it takes back.

On the path: commit → **message** → Change.
"""

from __future__ import annotations

import dataclasses
import re

# The first line that hosts write when they merge, and the pull request's number in it.
_MERGED = (
    re.compile(r"Merge pull request #(?P<number>\d+) (?:from|in) (?P<branch>\S+)"),  # GitHub, Bitbucket Server
    re.compile(r"Merged? (?:in )?(?P<branch>\S+) \(pull request #(?P<number>\d+)\)"),  # Bitbucket
    re.compile(r"Merge PR #(?P<number>\d+)\b"),
    re.compile(r"Auto merge of #(?P<number>\d+) - (?P<branch>\S+)"),  # bors
)
_MERGED_BRANCH = re.compile(r"Merge (?:remote-tracking )?(?:branch|commit|tag|branches) '(?P<branch>[^']*)'")
_INTO = re.compile(r"Merge (?:remote-tracking )?branch '(?P<branch>[^']+)'(?: of (?P<url>\S+))?(?: into '?(?P<into>[^' ]+))?")
_REMOTES = ("origin/", "upstream/")
_TRUNKS = ("main", "master", "trunk", "develop", "dev")
_RELEASES = re.compile(r"v\d+(?:\.\d+)*(?:\.x)?|\d+(?:\.\d+)*\.(?:\d+|x)|stable/.+"
                       r"|(?:release|releases|rel|stable|support|maint)(?:[/_-]v?\d.*)?")
_LINE_BEGINS = f"({'|'.join(_TRUNKS)}|v?[0-9]|rel|stable|support|maint)"
_GITLAB_NUMBER = re.compile(r"^See merge request \S*!(?P<number>\d+)\s*$", re.MULTILINE)
_SQUASHED = re.compile(r"\s*\((?:#|pull request #)(?P<number>\d+)\)\s*$")
_LISTED = re.compile(r"#?\s*Conflicts:|\* .*:$")

_TAKES_BACK = re.compile(r"^(?:Revert|Reverts|Reverted|Reapply|Back ?out|Backed out)\b", re.IGNORECASE)
_REVERTED_ID = re.compile(r"This reverts (?:merge )?commits? ([0-9a-f]{7,64})\b")
_REVERTED_NUMBER = re.compile(r"^Reverts (?:[\w.-]+/[\w.-]+)?#(\d+)\b", re.MULTILINE)
_REVERTED_BRANCH = re.compile(r"/revert-(\d+)-")
_REVERTED_TITLE = re.compile(r"^Revert(?:\([^()]*\))?(?::\s*|\s+(?=\"))(?P<quote>\"?)(?P<title>.+)(?P=quote)$", re.IGNORECASE)
REVERT_PATTERNS = (  # lines to look for in a whole history, as git's --grep takes them
    "^This reverts (merge )?commit", "^Reverts .*#[0-9]+", "^[Rr]evert[ :(]", "^Merge pull request #[0-9]+ from .*/revert-[0-9]+-",
)

_TRAILER = re.compile(
    r"(?:signed-off-by|co-authored-by|reviewed-by|acked-by|tested-by|reported-by|suggested-by|approved-by|cc|change-id"
    r"|reviewed-on|git-svn-id|differential revision|pull-request-url|pr-url|commit-queue|auto-submit"
    r"|cherry-picked-from):\s.*|bug:\s*(?:[a-z]+:)?\d+(?:,\s*\d+)*|\(cherry picked from commit [0-9a-f]+\)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Message:
    """A commit's message, taken apart.

    Attributes:
      title: of the pull request where it is a merge that tells it, else the first line; a number of a pull request at
        its end is taken off. "" where a merge tells nothing but that it is one.
      body: the rest.
      number: of the pull request, 0 where none is named.
      branch: that was merged, "" where it is not named.
      is_squash: one commit that brought in a whole pull request.
    """

    title: str
    body: str
    number: int = 0
    branch: str = ""
    is_squash: bool = False


@dataclasses.dataclass(frozen=True)
class Revert:
    """What a message takes back, in the words that were used: commits, pull requests, titles."""

    ids: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    titles: tuple[str, ...] = ()


def parse_message(text: str) -> Message:
    """Takes a commit's message apart."""
    subject, body = _split(text)
    for pattern in _MERGED:
        if match := pattern.match(subject):
            fields = match.groupdict("")
            return Message(*_untitled(*_split(body)), int(fields["number"][:18]), fields.get("branch", ""))
    if match := _MERGED_BRANCH.match(subject):
        number = _GITLAB_NUMBER.search(body)
        title, rest = _split(_GITLAB_NUMBER.sub("", body))
        return Message(*_untitled(title, rest), int(number["number"][:18]) if number else 0, match["branch"])
    if match := _SQUASHED.search(subject):
        return Message(subject[:match.start()], body, int(match["number"][:18]), is_squash=True)
    return Message(subject, body)


def brings_in_upstream(text: str, owner: str = "") -> bool:
    """Whether a merge's message says that a main or release line was merged, with many changes, and no branch with one.

    Args:
      text: the message.
      owner: of the repository: a pull request from its own `develop` is such a merge, one from a fork's is not.
    """
    if match := _MERGED[0].match(text):
        pulled_from, _, branch = match["branch"].partition("/")
        return bool(owner) and pulled_from.lower() == owner.lower() and _is_line(branch)
    match = _INTO.match(text)
    if not match:
        return False
    branch = match["branch"]
    for remote in _REMOTES:
        branch = branch.removeprefix(remote)
    return _is_line(branch) or branch == match["into"]


def upstream_patterns(owner: str) -> tuple[str, ...]:
    """Lines to look for in a whole history, as git's --grep takes them: what `brings_in_upstream` holds for, and little else."""
    pulled = (f"^Merge pull request #[0-9]+ (from|in) {re.sub('[^a-zA-Z0-9_-]', '.', owner)}/{_LINE_BEGINS}",) if owner else ()
    return (f"^Merge branch '{_LINE_BEGINS}", "^Merge branch '.*' of ", "^Merge remote-tracking branch '", *pulled)


def _is_line(branch: str) -> bool:
    return branch in _TRUNKS or _RELEASES.fullmatch(branch) is not None


def parse_revert(text: str) -> Revert | None:
    """Returns what a message takes back, None where it takes nothing back."""
    message = parse_message(text)
    ids = tuple(_REVERTED_ID.findall(text))
    branch_number = _REVERTED_BRANCH.search("/" + message.branch.rpartition("/")[2])
    if not (ids or branch_number or _TAKES_BACK.match(message.title)):
        return None
    numbers = [int(number[:18]) for number in _REVERTED_NUMBER.findall(text)]
    numbers += [int(branch_number[1][:18])] if branch_number else []
    match = _REVERTED_TITLE.match(message.title)
    title = parse_message(match["title"]) if match else None
    numbers += [title.number] if title and title.is_squash else []
    return Revert(ids, tuple(dict.fromkeys(numbers)), (title.title,) if title else ())


def without_trailers(body: str) -> str:
    """Returns the text without the lines that tools and reviewers put below it."""
    lines = [line for line in body.splitlines() if not _TRAILER.fullmatch(line.strip())]
    return "\n".join(lines).strip()


def _split(text: str) -> tuple[str, str]:
    """Returns the first paragraph's first line, and what comes after it."""
    first, _, rest = text.strip().replace("\r\n", "\n").partition("\n")
    return first.strip(), rest.strip()


def _untitled(title: str, body: str) -> tuple[str, str]:
    """Takes off a number; what git itself puts below a merge's first line is no title."""
    if _LISTED.match(title):
        return "", ""
    match = _SQUASHED.search(title)
    return (title[:match.start()] if match else title), body
