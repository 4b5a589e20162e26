"""What a user would report about an injected bug: where it shows and how; the repair is either hidden or told whole.

On the path: mutation → here → the issue of an Example.
"""

from __future__ import annotations

import difflib
import random
import re
from collections.abc import Sequence

_Texts = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]

# Per operator: sentences about a piece of code that the bug leaves in place (or has put there), then sentences
# without one. {name} is the function, {subject} the piece.
_MAINTAINER: _Texts = {
    "comparison_flipped": (
        ("`{name}` takes the wrong branch: the check of `{subject}` has the opposite outcome.",
         "In `{name}` a comparison with `{subject}` is the wrong way round, so good input is treated as bad."),
        ("`{name}` takes the wrong branch: one of its comparisons has the opposite outcome.",),
    ),
    "boundary": (
        ("`{name}` is wrong exactly at the limit: when `{subject}` equals the bound, the wrong branch is taken.",
         "Edge case in `{name}`: it misbehaves only if `{subject}` is equal to what it is compared with."),
        ("`{name}` is wrong exactly at a limit: two equal values are put on the wrong side of a comparison.",),
    ),
    "wrong_operator": (
        ("`{name}` computes a wrong value: the arithmetic on `{subject}` uses the wrong operation.",
         "Wrong result from `{name}`: `{subject}` is combined with the other operand by the wrong operator."),
        ("`{name}` computes a wrong value: one arithmetic operation is not the right one.",),
    ),
    "off_by_one": (
        ("`{name}` is off by one in `{subject}`.",
         "Off-by-one error in `{name}`: `{subject}` is one away from the right place."),
        ("`{name}` is off by one: an index or a count is one too high or too low.",
         "Off-by-one error in `{name}`: it looks one position away from the right one."),
    ),
    "wrong_bound": (
        ("`{name}` covers the wrong range: the bounds used with `{subject}` include too much or too little.",
         "`{name}` handles too many or too few elements; the limits around `{subject}` look wrong."),
        ("`{name}` covers the wrong range: a bound includes too much or too little.",),
    ),
    "wrong_constant": (
        ("`{name}` behaves as if a setting were wrong: the constant `{subject}` in it cannot be right.",
         "Wrong behaviour of `{name}`: it uses the value `{subject}` where another constant is expected."),
        ("`{name}` uses a wrong constant.",),
    ),
    "wrong_string": (
        ("`{name}` uses the text `{subject}` in a place where a different one is expected.",
         "In `{name}` the string `{subject}` shows up where it does not belong."),
        ("`{name}` uses a wrong string.",),
    ),
    "negated_condition": (
        ("`{name}` does the opposite of what it should when `{subject}` holds.",
         "The condition on `{subject}` in `{name}` is inverted: the two cases are exchanged."),
        ("A condition in `{name}` is inverted: it does the opposite of what it should.",),
    ),
    "missing_not": (
        ("`{name}` does the opposite of what it should, depending on `{subject}`.",
         "In `{name}` the case where `{subject}` is false is treated like the case where it is true."),
        ("A condition in `{name}` is inverted: it holds when it should fail.",),
    ),
    "and_or": (
        ("`{name}` combines two conditions wrongly: the outcome with `{subject}` is right only if both agree.",
         "When only one of two conditions holds, among them `{subject}`, `{name}` goes wrong."),
        ("`{name}` combines two conditions wrongly: it goes wrong when only one of them holds.",),
    ),
    "swapped_arguments": (
        ("`{name}` passes values to `{subject}` in the wrong order.",
         "The call of `{subject}` in `{name}` mixes up its arguments."),
        ("`{name}` passes the arguments of a call in the wrong order.",),
    ),
    "swapped_operands": (
        (),
        ("`{name}` computes a wrong value: the two sides of an arithmetic operation are exchanged.",
         "Wrong result from `{name}`, with the wrong sign or inverted: two operands stand in the wrong order."),
    ),
    "dropped_statement": (
        ("`{name}` leaves out a step: something that should happen with `{subject}` never does.",
         "A step of `{name}` is missing; it concerns `{subject}`."),
        ("`{name}` leaves out a step: control goes on where it should not.",
         "A statement of `{name}` is missing, so it does not stop or jump where it should."),
    ),
    "wrong_variable": (
        ("`{name}` mixes up its variables: `{subject}` is used where another one is meant.",
         "In `{name}` one use of `{subject}` is a mistake; the value of a different variable is needed there."),
        ("`{name}` mixes up its variables.",),
    ),
    "wrong_return": (
        ("`{name}` returns `{subject}` where the caller expects something else.",
         "One of the results of `{name}` is wrong: it gives `{subject}`."),
        ("`{name}` returns a wrong value.",),
    ),
    "early_return": (
        (),
        ("`{name}` stops after the first round of its loop and returns too early.",
         "`{name}` only looks at the first element: it returns before the loop has finished."),
    ),
    "loop_control": (
        (),
        ("The loop in `{name}` does not end, or goes on, at the wrong moment.",
         "`{name}` handles its loop wrongly: it leaves it where it should go on, or the reverse."),
    ),
    "wrong_exception": (
        ("`{name}` deals with the wrong kind of error: `{subject}` is not the exception that fits.",
         "Error handling in `{name}` names `{subject}`, but a different exception occurs."),
        ("`{name}` deals with the wrong kind of error.",),
    ),
    "wrong_function": (
        ("`{name}` calls `{subject}` where a related function is needed.",
         "Wrong result from `{name}`: the call of `{subject}` does the wrong thing."),
        ("`{name}` calls the wrong one of two related functions.",),
    ),
}

# The same bugs as someone meets them who has not read the code.
_USER: _Texts = {
    "comparison_flipped": (
        ("With a perfectly good `{subject}`, `{name}` treats me as if I had passed rubbish.",
         "`{name}` accepts every `{subject}` except the ones that I am supposed to pass."),
        ("`{name}` rejects what it should accept, and the other way round.",),
    ),
    "boundary": (
        ("`{name}` is fine for a small and for a large `{subject}`, just not at the threshold itself.",
         "All values of `{subject}` work with `{name}`, save for the very first or last one allowed."),
        ("`{name}` is fine on both sides of the threshold, just not at the threshold itself.",),
    ),
    "wrong_operator": (
        ("The numbers that come out of `{name}` make no sense to me; something is up with how `{subject}` goes into them.",
         "I checked by hand what `{name}` makes of `{subject}`, and my calculator says otherwise."),
        ("The numbers that come out of `{name}` make no sense to me.",),
    ),
    "off_by_one": (
        ("I asked `{name}` for one thing and got its neighbour; `{subject}` seems to be shifted.",
         "Since the last release `{name}` is shifted by a single position around `{subject}`."),
        ("I asked `{name}` for one thing and got its neighbour.",
         "Since the last release the output of `{name}` is shifted by a single position."),
    ),
    "wrong_bound": (
        ("Some of my items never make it through `{name}`, or strangers do; look at what it takes of `{subject}`.",),
        ("Some of my items never make it through `{name}`, or strangers do.",),
    ),
    "wrong_constant": (
        ("Who chose `{subject}` in `{name}`? The manual promises something else.",),
        ("`{name}` does not do what the manual promises; some setting in it must be another one.",),
    ),
    "wrong_string": (
        ("The output of `{name}` has `{subject}` in it, which makes no sense to me.",),
        ("The output of `{name}` reads strangely.",),
    ),
    "negated_condition": (
        ("`{name}` does the work only if I leave out `{subject}`.",
         "As soon as there is a `{subject}`, `{name}` acts as though there were none."),
        ("`{name}` does its work exactly when it should leave it, and leaves it when I want it.",),
    ),
    "missing_not": (
        ("Without any `{subject}`, `{name}` carries on as though I had given one.",
         "`{name}` ignores `{subject}` if there is one, and trips over it if there is none."),
        ("`{name}` carries on as though it had been given everything, when something is lacking.",),
    ),
    "and_or": (
        ("`{name}` is too easy or too hard to please: I thought that `{subject}` was only half of the story.",
         "Setting only one of the two, say `{subject}`, confuses `{name}`."),
        ("`{name}` is too easy or too hard to please: setting only one of the two things confuses it.",),
    ),
    "swapped_arguments": (
        ("`{subject}` seems to get things from `{name}` back to front.",),
        ("`{name}` hands things on back to front.",),
    ),
    "swapped_operands": (
        (),
        ("The result of `{name}` comes out upside down.",),
    ),
    "dropped_statement": (
        ("After `{name}` nothing has happened to `{subject}`; it used to.",),
        ("`{name}` forgets something that it used to do.",),
    ),
    "wrong_variable": (
        ("What `{name}` does with `{subject}` looks like it was meant for something else.",),
        ("`{name}` seems to have confused two of its values.",),
    ),
    "wrong_return": (
        ("I get `{subject}` from `{name}`, which is of no use to me.",),
        ("What I get from `{name}` is of no use to me.",),
    ),
    "early_return": (
        (),
        ("My list has many entries, yet `{name}` seems to have seen a single one.",
         "`{name}` forgets all of my entries but one."),
    ),
    "loop_control": (
        (),
        ("`{name}` gives up halfway through my list, or never comes back.",
         "On long lists `{name}` hangs or misses the rest."),
    ),
    "wrong_exception": (
        ("My program dies in `{name}`; I had expected something else than `{subject}` there.",
         "The documentation of `{name}` does not speak of `{subject}` at all."),
        ("My program dies in `{name}` although I catch what its documentation lists.",),
    ),
    "wrong_function": (
        ("`{name}` used to work before somebody touched the line with `{subject}`.",
         "Is `{subject}` in `{name}` a slip? It has a sister that would make more sense here."),
        ("`{name}` used to work before somebody touched one of its calls.",),
    ),
}

VOICES: dict[str, _Texts] = {"maintainer": _MAINTAINER, "user": _USER}

_REPLACED = ("It says `{old}` where it must say `{new}`.", "Write `{new}` instead of `{old}`.")
_INSERTED = ("`{new}` is missing after `{old}`.", "Add `{new}` after `{old}`.")
_DELETED = ("`{old}` must not be there.", "Remove `{old}`.")


def describe(rng: random.Random, voice: str, operator: str, name: str, subject: str, removed: str) -> str:
    """Words an issue.

    Args:
      rng: picks the wording.
      voice: who speaks, a name in VOICES.
      operator: the kind of bug.
      name: the function that misbehaves.
      subject: code to mention, or "" for none.
      removed: the text that the repair brings back, which is never mentioned.
    """
    about, plain = VOICES[voice][operator]
    quoted = re.escape(removed.strip())
    leaks = bool(quoted) and re.search(rf"(?<!\w){quoted}(?!\w)", subject) is not None
    texts = about if about and subject and not leaks else plain
    return rng.choice(texts).format(name=name, subject=subject)


def babble(rng: random.Random, name: str, words: Sequence[str]) -> str:
    """Words an issue that says nothing but which function it is about: words by chance around its name.

    Args:
      rng: draws them.
      name: the function.
      words: to draw from.
    """
    before, after = (rng.choices(words, k=rng.randint(0, 7)) for _ in range(2))
    return " ".join([*before, f"`{name}`", *after]) + "."


def tell(rng: random.Random, before: str, after: str) -> str:
    """Words an issue that gives the whole repair away: the lines that change, without indentation.

    Args:
      rng: picks the wording.
      before, after: two texts that differ; the first line of all stays.
    """
    old, new = before.splitlines(), after.splitlines()
    told = []
    for kind, start, end, new_start, new_end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        texts = {"replace": _REPLACED, "insert": _INSERTED, "delete": _DELETED}[kind]
        shown = old[start - 1:start] if kind == "insert" else old[start:end]
        told.append(rng.choice(texts).format(old=_joined(shown), new=_joined(new[new_start:new_end])))
    return " ".join(told)


def _joined(lines: list[str]) -> str:
    return "\n".join(line.strip() for line in lines)
