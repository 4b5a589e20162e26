"""Which issues a text says it closes: closing keywords in titles, descriptions and commit messages.

On the path: a pull request's (or commit's) text → **links** → the issues that it is joined with.

Source: GitHub's documentation of linking a pull request to an issue by keyword: nine keywords in any letter case, perhaps
a colon, then a reference; a keyword for every issue ("Fixes #1, #2" closes only #1). Where we differ: GitHub acts on
the description and on commit messages, not on the title, and only where the base is the default branch; it makes no
references of what it renders as code or hides in HTML comments, but does of quotations. We read titles too, and leave
out quoted lines, because they repeat what somebody else said.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping

_NUMBER = r"(?P<{0}>[1-9]\d{{0,9}})(?!\w)"
_NAME = r"(?P<{0}>[A-Za-z0-9][\w-]{{0,99}}/[\w.-]{{1,100}}?)"
_CLOSES = re.compile(
    r"(?<![\w/#@.-])(?:close[sd]?|fix(?:e[sd])?|resolve[sd]?)(?::[ \t]*|[ \t]+)(?:"
    + r"https?://(?:www\.)?github\.com/" + _NAME.format("url_name") + r"/issues/" + _NUMBER.format("url_number")
    + r"|" + _NAME.format("name") + r"?#" + _NUMBER.format("number")
    + r"|GH-" + _NUMBER.format("gh_number") + r")",
    re.IGNORECASE | re.ASCII,
)
# What may open a stretch that is no prose: a fence, a quoted line, an HTML comment, a run of backticks.
_OPENING = re.compile(r"^[ \t]*(?P<fence>`{3,}(?=[^`\n]*$)|~{3,})|^ {0,3}(?P<quote>>)|(?P<comment><!--)|(?P<ticks>`+)",
                      re.MULTILINE)
_TICKS = re.compile("`+")
_BLANK_LINE = re.compile(r"\n[ \t]*(?:\n|\Z)")
_CODE = "`"  # stands where code was, so that the words around it do not become neighbours


@dataclasses.dataclass(frozen=True)
class Link:
    """An issue that a text says it closes.

    Attributes:
      repo: "owner/name" as written, "" for the repository in which the text was written.
      number: the issue's there.
    """

    repo: str
    number: int


def closing_links(text: str, *, is_markdown: bool = True) -> tuple[Link, ...]:
    """Returns the issues that `text` says it closes, each once, in order.

    Args:
      text: a title, description or commit message.
      is_markdown: leave out code, quoted lines and HTML comments; False for commit messages, which are plain text.

    Returns:
      Links of the forms `#12`, `GH-12`, `owner/name#12` and `https://github.com/owner/name/issues/12`.
    """
    prose_text = prose(text) if is_markdown else text
    return tuple(dict.fromkeys(_link(match) for match in _CLOSES.finditer(prose_text)))


def prose(markdown: str) -> str:
    """Returns the text without code blocks in fences, code within lines, quoted lines and HTML comments.

    Code that is only indented stays: inside lists it is mostly no code.
    """
    return "".join(_prose_pieces(markdown.replace("\r\n", "\n")))


def _link(match: re.Match[str]) -> Link:
    return Link(
        match["url_name"] or match["name"] or "",
        int(match["url_number"] or match["number"] or match["gh_number"]),
    )


def _prose_pieces(text: str) -> Iterator[str]:
    position = 0
    runs = _runs(text)
    while match := _OPENING.search(text, position):
        yield text[position:match.start()]
        if match["fence"]:
            yield _CODE
            position = _fence_end(text, match.end(), match["fence"])
        elif match["quote"]:
            position = _find(text, "\n", match.end())
        elif match["comment"]:
            yield " "
            position = _find(text, "-->", match.end()) + len("-->")
        else:
            position = _code_end(text, match.end(), len(match["ticks"]), runs)
            yield _CODE
    yield text[position:]


def _find(text: str, part: str, start: int) -> int:
    found = text.find(part, start)
    return len(text) if found < 0 else found


def _fence_end(text: str, start: int, fence: str) -> int:
    """Returns where the line after the closing fence begins; a block without one reaches to the end."""
    closing = re.compile(rf"^[ \t]*{re.escape(fence)}{re.escape(fence[0])}*[ \t]*$", re.MULTILINE)
    match = closing.search(text, start)
    return match.end() if match else len(text)


def _code_end(text: str, start: int, length: int, runs: Mapping[int, list[int]]) -> int:
    """Returns where the code behind a run of backticks ends: `start` where no equal run closes it in its paragraph."""
    starts = runs[length]
    index = bisect.bisect_left(starts, start)
    if index == len(starts) or _BLANK_LINE.search(text, start, starts[index]):
        return start
    return starts[index] + length


def _runs(text: str) -> Mapping[int, list[int]]:
    """Returns length → where each run of so many backticks begins."""
    runs = collections.defaultdict(list)
    for match in _TICKS.finditer(text):
        runs[len(match[0])].append(match.start())
    return runs
