"""How many went in, how many came out, and why the others did not: counts that add up and can be added up.

Every stage reports what became of each thing it was given; the funnels of many work items are merged into one. As a table
for people, as JSON for programs; `funnel_plot` draws it.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from swerl_jax.curate.change import Reject

FORMAT = 1
_NUMBERS = (2, 3, 4)  # columns of the table


@dataclasses.dataclass(frozen=True)
class Funnel:
    """Counts of one run, or of a part of it.

    Attributes:
      entered: things that went in.
      kept: that came out.
      dropped: (stage, reason) → count; with `kept` they make up `entered`.
      notes: other counts worth reporting, which drop nothing (kinds of files seen, torn archives …).
    """

    entered: int = 0
    kept: int = 0
    dropped: Mapping[tuple[str, str], int] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.entered != self.kept + sum(self.dropped.values()):
            raise ValueError(f"a funnel with {self.entered} in, {self.kept} out and {sum(self.dropped.values())} dropped does "
                             "not add up; needed is in = out + dropped")


def tally(outcomes: Iterable[Any], notes: Mapping[str, int] | None = None) -> Funnel:
    """Counts outcomes: each Reject under its stage and reason, everything else as kept."""
    kept = 0
    dropped: collections.Counter[tuple[str, str]] = collections.Counter()
    for outcome in outcomes:
        if isinstance(outcome, Reject):
            dropped[outcome.stage, outcome.reason] += 1
        else:
            kept += 1
    return Funnel(kept + dropped.total(), kept, dict(dropped), dict(notes or {}))


def merge(funnels: Iterable[Funnel]) -> Funnel:
    """Adds up funnels of different things, such as those of all work items; in any order."""
    entered = kept = 0
    dropped: collections.Counter[tuple[str, str]] = collections.Counter()
    notes: collections.Counter[str] = collections.Counter()
    for funnel in funnels:
        entered += funnel.entered
        kept += funnel.kept
        dropped.update(funnel.dropped)
        notes.update(funnel.notes)
    return Funnel(entered, kept, dict(dropped), dict(notes))


def then(funnel: Funnel, stage: str, reasons: Mapping[str, int]) -> Funnel:
    """Drops more of what a funnel kept, at a later stage.

    Raises:
      ValueError: more than it kept.
    """
    count = sum(reasons.values())
    if count > funnel.kept:
        raise ValueError(f"stage {stage} drops {count} of {funnel.kept}; needed are at most as many as came to it")
    dropped = collections.Counter(funnel.dropped) + collections.Counter({(stage, key): n for key, n in reasons.items()})
    return dataclasses.replace(funnel, kept=funnel.kept - count, dropped=dict(dropped))


def to_json(funnel: Funnel) -> dict[str, Any]:
    """The funnel as JSON values; the same counts give the same text, in whatever order they were added up."""
    stages: dict[str, dict[str, int]] = {}
    for (stage, reason), count in sorted(funnel.dropped.items()):
        stages.setdefault(stage, {})[reason] = count
    notes = dict(sorted(funnel.notes.items()))
    return {"format": FORMAT, "in": funnel.entered, "out": funnel.kept, "dropped": stages, "notes": notes}


def from_json(value: Mapping[str, Any]) -> Funnel:
    """Reads what `to_json` made.

    Raises:
      ValueError: it is of another format, or does not add up.
    """
    if value.get("format") != FORMAT:
        raise ValueError(f"a funnel of format {value.get('format')!r}; needed is {FORMAT}")
    dropped = {(stage, reason): count for stage, reasons in value["dropped"].items() for reason, count in reasons.items()}
    return Funnel(value["in"], value["out"], dropped, dict(value["notes"]))


def rows(funnel: Funnel, order: Sequence[tuple[str, str]] = ()) -> list[tuple[str, str, int, int]]:
    """(stage, reason, dropped, left after it) of every reason that dropped something.

    Args:
      funnel: the counts.
      order: (stage, reason) in the order of the pipeline; what is not in it comes last, stage by stage in the order of
        their names.
    """
    position = {pair: number for number, pair in enumerate(order)}
    stages = list(dict.fromkeys(stage for stage, _ in order))
    place = {stage: number for number, stage in enumerate(stages)}

    def key(pair: tuple[str, str]) -> tuple[int, str, int, str]:
        return place.get(pair[0], len(stages)), pair[0], position.get(pair, len(position)), pair[1]

    left, found = funnel.entered, []
    for pair in sorted((pair for pair, count in funnel.dropped.items() if count), key=key):
        left -= funnel.dropped[pair]
        found.append((*pair, funnel.dropped[pair], left))
    return found


def table(
    funnel: Funnel, order: Sequence[tuple[str, str]] = (), meanings: Mapping[tuple[str, str], str] | None = None, *,
    markdown: bool = False
) -> str:
    """The funnel as a table, one reason a line.

    Args:
      funnel, order: as in `rows`.
      meanings: (stage, reason) → what it means, as a last column.
      markdown: True: a Markdown table; False: aligned text.
    """
    header = ["stage", "reason", "dropped", "% of all", "left", *(["meaning"] if meanings else [])]
    lines = [["", "in", "", "", str(funnel.entered)]]
    lines += [
        [stage, reason, str(count), f"{100 * count / funnel.entered:.1f}", str(left)]
        for stage, reason, count, left in rows(funnel, order)
    ]
    share = f"{100 * funnel.kept / funnel.entered:.1f}" if funnel.entered else ""
    lines.append(["", "out", "", share, str(funnel.kept)])
    if meanings:
        lines = [[*line, meanings.get((line[0], line[1]), "")] for line in lines]
    return _laid_out(header, lines, markdown) + _notes(funnel)


def _laid_out(header: Sequence[str], lines: Sequence[Sequence[str]], markdown: bool) -> str:
    widths = [max(len(line[column]) for line in [header, *lines]) for column in range(len(header))]
    padded = [
        [cell.rjust(width) if column in _NUMBERS else cell.ljust(width) for column, (cell, width) in enumerate(zip(line, widths))]
        for line in [header, *lines]
    ]
    if markdown:
        rule = ["-" * (width - 1) + ":" if column in _NUMBERS else "-" * width for column, width in enumerate(widths)]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in [padded[0], rule, *padded[1:]]) + "\n"
    body = ["  ".join(cells).rstrip() for cells in padded]
    return "\n".join([body[0], "-" * len("  ".join(padded[0])), *body[1:]]) + "\n"


def _notes(funnel: Funnel) -> str:
    seen = [f"{name} {count}" for name, count in sorted(funnel.notes.items()) if count]
    return f"\nalso seen: {', '.join(seen)}\n" if seen else ""


def dumps(funnel: Funnel) -> str:
    """`to_json` as text."""
    return json.dumps(to_json(funnel), indent=1, ensure_ascii=False) + "\n"
