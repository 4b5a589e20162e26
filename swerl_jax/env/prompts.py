"""Example → messages, and example → the answer one would like to see. On the path: the first arrow.

The format is SWE-RL's: thought and solution in tags, edits as fenced SEARCH/REPLACE blocks under `### path`.
Source: arXiv 2502.18449, appendix D, for the structure; the wording is ours.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable

from swerl_jax.data.records import Example
from swerl_jax.env import edits, patch

SYSTEM = "system"
USER = "user"
ASSISTANT = "assistant"


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is SYSTEM, USER, ASSISTANT or any name that the chat template passes on."""

    role: str
    text: str


_SYSTEM_TEXT = """\
You repair software. Work in two steps and write both down. First reason freely, for as long as the problem needs, \
between <think> and </think>; nobody grades this part. Then give the result between <solution> and </solution>. \
Write each of these four tags exactly once."""

_USER_TEXT = """\
Here is a report about a problem in a code base.

--- BEGIN ISSUE ---
{issue}
--- END ISSUE ---

Below are whole files of that code base. The cause lies in at least one of them; the others may be innocent.

--- BEGIN FILE ---
```
{files}
```
--- END FILE ---

Find the places that have to change, then repair them with *SEARCH/REPLACE* blocks. A block consists of

1. the file's path, alone on a line behind `### `, spelt as above
2. the line <<<<<<< SEARCH
3. the lines to be replaced, copied from the file character by character, enough of them to occur nowhere else
4. the line =======
5. the lines to put in their place
6. the line >>>>>>> REPLACE

and stands in a code fence. For instance:

```python
### shapes/circle.py
<<<<<<< SEARCH
    return 3 * radius ** 2
=======
    return math.pi * radius ** 2
>>>>>>> REPLACE
```

White space counts: a line indented by eight spaces in the file needs its eight spaces in the block too.
Give every block a code fence of its own, and put all of them into the solution."""


def messages(example: Example, style: str, order_seed: int | None = None) -> list[Message]:
    """Returns the conversation that asks for a fix of `example`.

    Args:
      example: what is asked.
      style: a key of STYLES.
      order_seed: shuffles the files; None keeps the example's order. The paper does not state its order.

    Raises:
      ValueError: there is no such style.
    """
    if style not in STYLES:
        raise ValueError(f"prompt style {style!r}: needed is one of {', '.join(STYLES)}")
    paths = list(example.files)
    if order_seed is not None:
        paths.sort()  # the shuffle depends on the seed alone, not on the order of a mapping
        random.Random(order_seed).shuffle(paths)
    return STYLES[style](example, paths)


def taught_answer(example: Example, thought: str, lines_around: int = 0) -> str:
    """`answer_text` with a thought in which {paths} and {change} stand for the changed files and `edits.change_text`."""
    change = edits.change_text(example) if "{change}" in thought else ""
    return answer_text(example, thought.format(paths=", ".join(sorted(example.oracle)), change=change), lines_around)


def answer_text(example: Example, thought: str, lines_around: int = 0) -> str:
    """Returns a well-formed output that fixes `example` exactly: `thought`, then the oracle as edits.

    Args:
      lines_around: unchanged lines that every edit takes along, see `edits.oracle_edits`.

    Raises:
      ValueError: naming the example, if the oracle cannot be expressed, or if the thought is empty or holds a tag.
    """
    if not thought.strip():
        raise ValueError(f"example {example.id!r}: the thought of an answer must not be empty")
    blocks = patch.render(edits.oracle_edits(example, lines_around))
    output = f"<think>\n{thought}\n</think>\n<solution>\n{blocks}\n</solution>"
    repeated = [tag for tag in patch.TAGS if output.count(tag) != 1]
    if repeated:
        raise ValueError(f"example {example.id!r}: its thought or code holds {repeated[0]}, which may occur only once")
    return output


def _swe_rl(example: Example, paths: Iterable[str]) -> list[Message]:
    files = "\n\n".join(f"### {path}\n{example.files[path]}" for path in paths)
    return [Message(SYSTEM, _SYSTEM_TEXT), Message(USER, _USER_TEXT.format(issue=example.issue, files=files))]


def _compact(example: Example, paths: Iterable[str]) -> list[Message]:
    files = [f"### {path}\n" + example.files[path].removesuffix("\n") for path in paths]
    return [Message(USER, "\n".join([example.issue, *files]))]


STYLES = {
    "swe_rl": _swe_rl,  # the paper's: a system turn, and a user turn that explains the format
    "compact": _compact,  # issue and files alone, for small models that learn the format from examples
}
