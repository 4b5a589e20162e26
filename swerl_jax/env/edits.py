"""Contents → edits: the search/replace blocks that turn an example's files into its oracle, for supervised answers.

On the path: example → **oracle answer** → ids → branch. This is the inverse of `patch`, which has the last word:
every block is read back by its parser before it is used.

The rule to invert: "\\n" is put before content, search and replacement, then *all* occurrences are replaced and one
leading "\\n" is taken off. Contents are therefore handled as the pieces between line breaks ("a\\n" is "a" and ""):
any run of one or more pieces can be replaced by any other run of one or more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import cydifflib

from swerl_jax.data.records import Example
from swerl_jax.env import patch

_WORD = re.compile(r"\w+|\s+|[<>=!+\-*/%&|^@:]+|[^\w\s]")  # of code: operators of several characters are one
_FINE_GROWTH = 6  # neighbouring lines tried one by one before the search grows in doubling steps
_Hunk = tuple[int, int, int, int]  # lines [a, b) before become lines [c, d) after


def oracle_edits(example: Example, lines_around: int = 0) -> list[patch.Edit]:
    """Returns edits that turn `example.files` into `example.oracle` exactly, applied in order.

    Each replaces one run of lines that occurs once when its turn comes; it is grown by whole neighbouring lines until
    it does, and changes closer together than the markup of a second block is long share one.

    Args:
      lines_around: unchanged lines above a change, and below it, that its edit takes along in any case.

    Raises:
      ValueError: naming the example, if it changes nothing or its text cannot be written between the markers.
    """
    edits: list[patch.Edit] = []
    for path, after in example.oracle.items():
        before = example.files.get(path, "")
        if before != after:
            edits += _file_edits(example.id, path, before.split("\n"), after.split("\n"), lines_around)
    if not edits:
        raise ValueError(f"example {example.id!r} has no change to write an answer for: the oracle equals the files")
    return edits


def change_text(example: Example) -> str:
    """Returns in words what `oracle_edits` change: "`a < b` becomes `a <= b`.", "Add `c()`.", "Remove `c()`.", each once.

    Of every changed line the words between the first and the last that differ, and their neighbours: what changes and where.

    Raises:
      ValueError: as `oracle_edits`.
    """
    told: dict[str, None] = {}
    for edit in oracle_edits(example):
        old, new = edit.search.split("\n"), edit.replace.split("\n")
        if len(old) == len(new):
            told |= dict.fromkeys(_told(*_differing(*pair, neighbours=1)) for pair in zip(old, new) if pair[0] != pair[1])
        else:
            told[_told(*_differing(edit.search, edit.replace, neighbours=0))] = None
    return " ".join(told)


def _differing(old: str, new: str, neighbours: int) -> tuple[str, str]:
    """Both without the words that they share at either end, but for as many `neighbours` there."""
    a, b = _WORD.findall(old), _WORD.findall(new)
    shortest = min(len(a), len(b))
    head = next((i for i in range(shortest) if a[i] != b[i]), shortest)
    tail = next((i for i in range(shortest - head) if a[-1 - i] != b[-1 - i]), shortest - head)
    left = [i for i in range(head) if a[i].strip()][-neighbours:] if neighbours else []
    right = [i for i in range(tail) if a[-1 - i].strip()][-neighbours:] if neighbours else []
    head, tail = min(left, default=head), min(right, default=tail)
    return "".join(a[head:len(a) - tail]).strip(), "".join(b[head:len(b) - tail]).strip()


def _told(old: str, new: str) -> str:
    if not old:
        return f"Add `{new}`."
    if old == new:
        return f"Move `{old}`."
    return f"`{old}` becomes `{new}`." if new else f"Remove `{old}`."


def _file_edits(example_id: str, path: str, before: list[str], after: list[str], lines_around: int) -> list[patch.Edit]:
    hunks = _with_lines_around(_hunks(before, after), before, lines_around)
    for candidate in (_merge_close(hunks, before, path), hunks):  # apart, they may step round a line that is markup
        edits = [
            _unique_edit(path, after[:c] + before[a:], (c, c + b - a), after[c:d]) for a, b, c, d in candidate
        ]
        if None not in edits:
            return edits
    raise ValueError(
        f"example {example_id!r}: the change of {path!r} cannot be written as search/replace blocks, because every "
        "choice of lines contains text that the parser takes for a marker"
    )


def _hunks(before: Sequence[str], after: Sequence[str]) -> list[_Hunk]:
    """Returns the changed runs of lines; what both share at either end is set aside first, as matching is quadratic."""
    shortest = min(len(before), len(after))
    head = next((i for i in range(shortest) if before[i] != after[i]), shortest)
    tail = next((i for i in range(shortest - head) if before[-1 - i] != after[-1 - i]), shortest - head)
    a, b = before[head : len(before) - tail], after[head : len(after) - tail]
    matcher = cydifflib.SequenceMatcher(None, a, b, autojunk=False)
    return [
        (a1 + head, a2 + head, b1 + head, b2 + head)
        for kind, a1, a2, b1, b2 in matcher.get_opcodes()
        if kind != "equal"
    ]


def _with_lines_around(hunks: Sequence[_Hunk], before: Sequence[str], count: int) -> list[_Hunk]:
    """Moves the hunks' starts up and their ends down, not to the piece behind a last line break; those that touch are one."""
    length = len(before) - (before[-1:] == [""])
    widened: list[_Hunk] = []
    for a, b, c, d in hunks:
        above, below = min(count, a), max(0, min(count, length - b))
        if count and widened and widened[-1][1] >= a - above:
            start, _, new_start, _ = widened.pop()
            widened.append((start, b + below, new_start, d + below))
        else:
            widened.append((a - above, b + below, c - above, d + below))
    return widened


def _merge_close(hunks: Sequence[_Hunk], before: Sequence[str], path: str) -> list[_Hunk]:
    """Joins hunks where repeating the lines between them, in search and replacement, is shorter than a new block."""
    markup_chars = len(patch.render([patch.Edit(path, "", "")]))
    merged = [hunks[0]]
    for hunk in hunks[1:]:
        between_chars = sum(len(line) + 1 for line in before[merged[-1][1] : hunk[0]])
        if 2 * between_chars <= markup_chars:
            merged[-1] = (merged[-1][0], hunk[1], merged[-1][2], hunk[3])
        else:
            merged.append(hunk)
    return merged


def _unique_edit(path: str, lines: Sequence[str], span: tuple[int, int], new: Sequence[str]) -> patch.Edit | None:
    """Returns the shortest edit found that makes lines[start:end] `new`, or None if none can be parsed."""
    start, end = span
    content = "\n".join(["", *lines])
    for above, below in _growths(start, len(lines) - end):
        old = lines[start - above : end + below]
        replacement = [*lines[start - above : start], *new, *lines[end : end + below]]
        if not old or not replacement:
            continue  # an edit cannot search for nothing, nor leave nothing: it takes a neighbour along
        edit = patch.Edit(path, "\n".join(old), "\n".join(replacement))
        if _occurs_once(content, "\n" + edit.search) and patch.parse(patch.render([edit])) == [edit]:
            return edit
    return None


def _growths(room_above: int, room_below: int) -> Iterator[tuple[int, int]]:
    """Yields how many lines above and below to take along, fewest first, up to the whole file."""
    for total in range(_FINE_GROWTH + 1):
        for above in range(min(total, room_above), -1, -1):
            if total - above <= room_below:
                yield above, total - above
    size = 2 * _FINE_GROWTH
    while size < 2 * max(room_above, room_below):
        above, below = min(size, room_above), min(size, room_below)
        yield from ((above, 0), (0, below), (above, below))
        size *= 2
    yield room_above, room_below


def _occurs_once(content: str, search: str) -> bool:
    first = content.find(search)
    return first >= 0 and content.find(search, first + 1) < 0
