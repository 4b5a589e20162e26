"""What every tokenizer shares: the names of special ids, text that can be encoded, and bytes back into text."""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

BEGIN_OF_TEXT = "<|begin_of_text|>"
END_OF_TEXT = "<|end_of_text|>"
PAD = "<|finetune_right_pad_id|>"
START_HEADER = "<|start_header_id|>"
END_HEADER = "<|end_header_id|>"
EOT = "<|eot_id|>"  # end of turn
SPECIAL_NAMES = (BEGIN_OF_TEXT, END_OF_TEXT, PAD, START_HEADER, END_HEADER, EOT)

REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()


class Tokenizer(Protocol):
    """Text ↔ ids.

    Attributes:
      vocab_size: ids are 0 … vocab_size − 1, special ones included.
      special: name → id. Those of this project have SPECIAL_NAMES, others what their model was made with.
    """

    vocab_size: int
    special: Mapping[str, int]

    def encode(self, text: str) -> list[int]:
        """Returns ids of plain text, never a special one; unpaired surrogates become U+FFFD."""

    def decode(self, ids: Iterable[int], show_special: bool = False) -> str:
        """Returns the text of any ids: `encode`'s exactly, special ones as names or nothing, wrong bytes as U+FFFD."""

    def save(self, directory: str | os.PathLike[str]) -> str:
        """Puts what is needed under `directory` and returns the `load_tokenizer` spec that reads it."""


def well_formed(text: str) -> str:
    """Returns `text` with surrogate pairs joined and lone surrogates replaced, so that it can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def decode(ids: Iterable[int], vocabulary: Sequence[bytes], shown: Mapping[str, int]) -> str:
    """Joins the bytes of `ids`; those past the vocabulary (a model may be padded) become U+FFFD."""
    names = {index: name.encode() for name, index in shown.items()}
    size = len(vocabulary)
    joined = b"".join((names.get(i) or vocabulary[i]) if 0 <= i < size else REPLACEMENT for i in map(int, ids))
    return joined.decode("utf-8", "replace")


def copy_into(path: pathlib.Path, directory: str | os.PathLike[str], name: str) -> pathlib.Path:
    """Copies a file under another name, unless it is that file already."""
    target = pathlib.Path(directory) / name
    if not (target.exists() and target.samefile(path)):
        shutil.copyfile(path, target)
    return target
