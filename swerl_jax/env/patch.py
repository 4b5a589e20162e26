"""What a policy wrote → thought, answer, edits → file contents → diff texts.

On the path: ids → text → **edits → contents → diffs** → similarity → reward. The format is SWE-RL's search/replace
block. Reading and applying are linear in the text, whatever the policy writes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from swerl_jax.env.matching import LineMatcher, Work

TAGS = ("<think>", "</think>", "<solution>", "</solution>")

_FENCE = "```"
_SEARCH = "<<<<<<< SEARCH\n"
_DIVIDER = "\n=======\n"
_CLOSE = "\n>>>>>>> REPLACE\n```"
_PATH = "### "
_SCAN_PAIRS = 3  # price of finding, counting and replacing per character of content, in pairs
_FILE_PAIRS = 10_000  # price of handling one more file, in pairs


class FormatFault(Exception):
    """The policy's text cannot be used: `reason` is one of records.FORMAT_REASONS, `detail` is for a person."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclasses.dataclass(frozen=True)
class Edit:
    """One block: in the file at `path`, the lines beginning with `search` become `replace`."""

    path: str
    search: str
    replace: str


def split_output(output: str) -> tuple[str, str]:
    """Returns thought and answer, both stripped, of a text in which each of the four tags occurs exactly once.

    Each runs from its opening tag to the next closing tag behind it, or to the end where the closing tag comes first;
    order and nesting are free. The thought may be empty here, see `check_thought`.

    Raises:
      FormatFault: tag_count.
    """
    for tag in TAGS:
        count = output.count(tag)
        if count != 1:
            raise FormatFault("tag_count", f"{tag} occurs {count} times, not once")
    thought = output.partition("<think>")[2].partition("</think>")[0].strip()
    answer = output.partition("<solution>")[2].partition("</solution>")[0].strip()
    return thought, answer


def check_thought(thought: str) -> None:
    """Raises FormatFault (empty_thought) where nothing was thought."""
    if not thought:
        raise FormatFault("empty_thought", "there is nothing between <think> and </think>")


def parse(answer: str) -> list[Edit]:
    """Returns the edits of an answer in the order written; text that is no block is passed over.

    A block is: a line with three backticks anywhere in it; the line "### " + path, which is not stripped; the SEARCH
    line; a body up to the first divider line; a body up to the first REPLACE line directly followed by three backticks.
    A body has at least one line, so an empty one is a blank line. What is behind those closing backticks may open the
    next block.

    Equals `findall` of that pattern with lazy bodies, in linear time: with the first divider and the first close the
    later ones need no trial, since whatever follows a later one follows the first one too.
    """
    edits = []
    start = 0  # nothing before it may be used again
    marker = answer.find("\n" + _SEARCH)
    while marker >= 0:
        body = marker + 1 + len(_SEARCH)
        path = _path_above(answer, start, marker)
        if path is not None:
            divider = answer.find(_DIVIDER, body)
            close = answer.find(_CLOSE, divider + len(_DIVIDER)) if divider >= 0 else -1
            if close < 0:
                break  # no later block can be closed either
            edits.append(Edit(path, answer[body:divider], answer[divider + len(_DIVIDER) : close]))
            start = body = close + len(_CLOSE)
        marker = answer.find("\n" + _SEARCH, body - 1)
    return edits


def _path_above(answer: str, start: int, marker: int) -> str | None:
    """The path in the line that ends at `marker`, if it is one and the line above it, from `start` on, has a fence."""
    path_start = answer.rfind("\n", start, marker) + 1
    if path_start <= start or not answer.startswith(_PATH, path_start, marker):
        return None
    fence_line = max(start, answer.rfind("\n", start, path_start - 1) + 1)
    if answer.find(_FENCE, fence_line, path_start - 1) < 0:
        return None
    return answer[path_start + len(_PATH) : marker]


def render(edits: Iterable[Edit]) -> str:
    """Returns the blocks that `parse` reads back as the same edits, a blank line between two of them.

    A text that holds a marker line of its own does not survive the way there and back; the caller compares.
    """
    return "\n\n".join(map(_block, edits))


def _block(edit: Edit) -> str:
    language = "python" if edit.path.endswith(".py") else ""
    return f"{_FENCE}{language}\n{_PATH}{edit.path}\n{_SEARCH}{edit.search}{_DIVIDER}{edit.replace}{_CLOSE}"


def apply_edits(
    edits: Sequence[Edit], files: Mapping[str, str], work: Work, max_growth_chars: int
) -> dict[str, str | None]:
    """Returns path → content after the edits, of the edited files only.

    Files are taken in the order in which they are first named, their edits in order. A missing file is empty. A match
    starts at the start of a line and may end anywhere; all matches are replaced.

    A file that would grow by more than `max_growth_chars` has no content: None. An edit with an empty SEARCH pastes
    its text before every line, and a few of them in a row grow a file without bound.

    Raises:
      FormatFault: no_change where an edit's two sides are the same; search_not_found where its search text is not
        there, where its file has grown past the limit before, or where `work` runs dry before the last edit.
    """
    by_path: dict[str, list[Edit]] = {}
    for edit in edits:
        by_path.setdefault(edit.path, []).append(edit)
    return {
        path: _apply_to_file(path, of_file, files.get(path, ""), work, max_growth_chars)
        for path, of_file in by_path.items()
    }


def _apply_to_file(path: str, edits: Sequence[Edit], before: str, work: Work, max_growth_chars: int) -> str | None:
    content: str | None = "\n" + before
    for edit in edits:
        if edit.search == edit.replace:
            raise FormatFault("no_change", f"{path}: search and replacement are the same: {_shown(edit.search)}")
        if content is None:
            raise FormatFault("search_not_found", f"{path}: an edit follows one that grew the file past the limit")
        if not work.pay(_SCAN_PAIRS * (len(content) + len(edit.search) + len(edit.replace))):
            raise FormatFault("search_not_found", f"{path}: the edits take more matching than the work limit allows")
        search, replace = "\n" + edit.search, "\n" + edit.replace
        matches = content.count(search)
        if not matches:
            raise FormatFault("search_not_found", f"{path}: no such lines: {_shown(edit.search)}")
        growth = len(content) - 1 + matches * (len(replace) - len(search)) - len(before)
        content = None if growth > max_growth_chars else content.replace(search, replace)
    return None if content is None else content[1:]


def _shown(text: str) -> str:
    return repr(text if len(text) <= 200 else text[:200] + "…")


def file_diff(before: str, after: str, line_autojunk: bool, work: Work) -> str:
    """Returns the unified diff of two contents: hunks with `@@` headers, 3 lines of context, no file names.

    Lines are as `str.splitlines` has them, so a difference in the final line break alone is no difference. The text is
    difflib's with `autojunk=line_autojunk`, unless `work.is_exhausted` afterwards.
    """
    if before == after or not work.pay(_FILE_PAIRS):
        return ""
    a, b = before.splitlines(), after.splitlines()
    if a == b:
        return ""
    matcher = LineMatcher(a, b, line_autojunk, work)
    lines: list[str] = []
    for group in matcher.get_grouped_opcodes(3):
        _, a_start, _, b_start, _ = group[0]
        _, _, a_end, _, b_end = group[-1]
        lines.append(f"@@ -{_span(a_start, a_end)} +{_span(b_start, b_end)} @@")
        for kind, a1, a2, b1, b2 in group:
            if kind == "equal":
                lines += (" " + line for line in a[a1:a2])
                continue
            lines += ("-" + line for line in a[a1:a2])
            lines += ("+" + line for line in b[b1:b2])
    return "\n".join(lines)


def _span(start: int, end: int) -> str:
    """A hunk's range in unified format: lines count from 1, an empty range names the line before it."""
    length = end - start
    if length == 1:
        return str(start + 1)
    return f"{start + 1 if length else start},{length}"
