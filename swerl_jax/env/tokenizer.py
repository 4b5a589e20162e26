"""Text ↔ ids. On the path: prompt → ids before sampling, and ids → text before scoring, never text → ids again.

Three vocabularies behind one protocol. Special ids carry the names of Llama 3.1 in all of them; plain text never
yields one, so that no issue and no file can forge a turn.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import os
import pathlib
import re
import shutil
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import sentencepiece
import tiktoken

from swerl_jax.models import shipped

BEGIN_OF_TEXT = "<|begin_of_text|>"
END_OF_TEXT = "<|end_of_text|>"
PAD = "<|finetune_right_pad_id|>"
START_HEADER = "<|start_header_id|>"
END_HEADER = "<|end_header_id|>"
EOT = "<|eot_id|>"  # end of turn
SPECIAL_NAMES = (BEGIN_OF_TEXT, END_OF_TEXT, PAD, START_HEADER, END_HEADER, EOT)

# Ordinary text that a small model should spend one id on; see `train_sentencepiece`.
MARKERS = ("<think>", "</think>", "<solution>", "</solution>", "<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE",
           "```python", "```", "### ")

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()
_SPACE = "\u2581"  # sentencepiece writes a space as this character inside its pieces


class Tokenizer(Protocol):
    """Text ↔ ids.

    Attributes:
      vocab_size: ids are 0 … vocab_size − 1, special ones included.
      special: name → id, with at least SPECIAL_NAMES.
    """

    vocab_size: int
    special: Mapping[str, int]

    def encode(self, text: str) -> list[int]:
        """Returns ids of plain text, never a special one; unpaired surrogates become U+FFFD."""

    def decode(self, ids: Iterable[int], show_special: bool = False) -> str:
        """Returns the text of any ids: `encode`'s exactly, special ones as names or nothing, wrong bytes as U+FFFD."""

    def save(self, directory: str | os.PathLike[str]) -> str:
        """Puts what is needed under `directory` and returns the `load_tokenizer` spec that reads it."""


class ByteTokenizer:
    """The 256 bytes of UTF-8 and, from 256 on, SPECIAL_NAMES in order."""

    def __init__(self) -> None:
        self.special = {name: 256 + i for i, name in enumerate(SPECIAL_NAMES)}
        self.vocab_size = 256 + len(SPECIAL_NAMES)
        self._bytes = [bytes([i]) for i in range(256)] + [b""] * len(SPECIAL_NAMES)

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return list(_well_formed(text).encode())

    def decode(self, ids: Iterable[int], show_special: bool = False) -> str:
        """See `Tokenizer`."""
        return _decode(ids, self._bytes, self.special if show_special else {})

    def save(self, directory: str | os.PathLike[str]) -> str:
        """See `Tokenizer`; nothing needs to be written."""
        del directory
        return "byte"


class SentencePieceTokenizer:
    """A sentencepiece model whose special ids are control symbols and which loses no character.

    Raises:
      ValueError: the file is not such a model.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = pathlib.Path(path)
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=self._path.read_bytes())
        except RuntimeError as error:
            raise ValueError(f"{path} is not a sentencepiece model: {error}") from error
        self.vocab_size = self._model.vocab_size()
        self.special = {self._model.id_to_piece(i): i for i in range(self.vocab_size) if self._model.is_control(i)}
        _require_special(self.special, self._path)
        self._bytes = [self._piece_bytes(i) for i in range(self.vocab_size)]
        # The model takes its own stand-in for a space to be a space: that one character is spelt in bytes instead.
        self._stand_in = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]
        probe = f"  a {_SPACE}\t\r\n\n  é\u2028\0 "
        if self.decode(self.encode(probe)) != probe:
            raise ValueError(
                f"{path} changes the text it encodes; needed is a model with byte_fallback, identity normalisation, "
                "no dummy prefix and no removal of spaces, such as train_sentencepiece makes"
            )

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        first, *others = _well_formed(text).split(_SPACE)
        ids = self._model.encode(first)
        for other in others:
            ids += self._stand_in
            ids += self._model.encode(other)
        return ids

    def decode(self, ids: Iterable[int], show_special: bool = False) -> str:
        """See `Tokenizer`."""
        return _decode(ids, self._bytes, self.special if show_special else {})

    def save(self, directory: str | os.PathLike[str]) -> str:
        """See `Tokenizer`."""
        return f"sentencepiece:{_copy_into(self._path, directory)}"

    def _piece_bytes(self, index: int) -> bytes:
        piece = self._model.id_to_piece(index)
        if self._model.is_control(index):
            return b""
        if self._model.is_unknown(index):
            return _REPLACEMENT
        if self._model.is_byte(index):
            return bytes([int(piece[3:5], 16)])  # "<0x0A>"
        return piece.replace(_SPACE, " ").encode()


# Llama 3's split of text into words, within which byte pairs are merged (a fact of the published vocabulary).
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_LLAMA3_SPECIAL_COUNT = 256
# The split backtracks over white space and overflows its stack on about a million; as Llama 3 does, cut runs before.
_LONGEST_BLANK = 25_000
_BLANKS = re.compile(rf"\s{{1,{_LONGEST_BLANK}}}")


class TiktokenTokenizer:
    """Llama 3's `tokenizer.model`: lines of base64 bytes and rank, then 256 special ids as Llama 3.1 names them.

    Raises:
      ValueError: a line cannot be read, or the ranks are not 0, 1, 2, …, naming the line.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = pathlib.Path(path)
        ranks = _read_ranks(self._path)
        self.special = {name: len(ranks) + i for i, name in enumerate(_llama3_special_names())}
        self.vocab_size = len(ranks) + _LLAMA3_SPECIAL_COUNT
        self._bytes = [*ranks, *([b""] * _LLAMA3_SPECIAL_COUNT)]
        self._model = tiktoken.Encoding(
            name=self._path.name, pat_str=_LLAMA3_SPLIT, mergeable_ranks=ranks, special_tokens=self.special
        )

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        text = _well_formed(text)
        long_blanks = (run.end() for run in _BLANKS.finditer(text) if run.end() - run.start() == _LONGEST_BLANK)
        cuts = [0, *long_blanks, len(text)]
        return [i for start, end in itertools.pairwise(cuts) for i in self._model.encode_ordinary(text[start:end])]

    def decode(self, ids: Iterable[int], show_special: bool = False) -> str:
        """See `Tokenizer`."""
        return _decode(ids, self._bytes, self.special if show_special else {})

    def save(self, directory: str | os.PathLike[str]) -> str:
        """See `Tokenizer`."""
        return f"tiktoken:{_copy_into(self._path, directory)}"


_FILE_KINDS = {"sentencepiece": SentencePieceTokenizer, "tiktoken": TiktokenTokenizer}


def load_tokenizer(spec: str) -> Tokenizer:
    """Returns the tokenizer called "byte", "sentencepiece:PATH", "tiktoken:PATH", or that of a model's directory.

    Args:
      spec: see `shipped.find` for the directories.

    Raises:
      ValueError: any other spec, no file there, or a file of another kind.
    """
    if spec == "byte":
        return ByteTokenizer()
    kind, _, path = spec.partition(":")
    model = shipped.find(spec)
    if model is not None:
        file = pathlib.Path(model, shipped.TOKENIZER_NAME)
        if not file.is_file():
            raise ValueError(f"tokenizer spec {spec!r}: there is no file {file}; it must be on this machine")
        # The one is a protocol buffer whose first field is the list of pieces, the other lines of base64.
        return _FILE_KINDS["sentencepiece" if file.read_bytes()[:1] == b"\n" else "tiktoken"](file)
    if kind not in _FILE_KINDS or not path:
        raise ValueError(f"tokenizer spec {spec!r}: needed is byte, sentencepiece:PATH, tiktoken:PATH, embedded:NAME or hf:DIR")
    if not pathlib.Path(path).is_file():
        raise ValueError(f"tokenizer spec {spec!r}: there is no file {path}")
    return _FILE_KINDS[kind](path)


def train_sentencepiece(
    texts: Iterable[str], vocab_size: int, path: str | os.PathLike[str], symbols: Sequence[str] = MARKERS
) -> SentencePieceTokenizer:
    """Trains a byte-pair vocabulary for Python code, writes it to `path` and returns it; the same texts, the same file.

    A line break and the indentation behind it (up to 24 spaces, in fours) are one id; so is each of `symbols`.

    Args:
      texts: what to learn from; a few MB take about a second.
      vocab_size: ids in all, at least about 400: 256 are bytes and 94 the visible ASCII characters.
      path: file to write.
      symbols: ordinary text given an id of its own whatever its frequency.

    Raises:
      ValueError: the texts are too few for `vocab_size`, or `vocab_size` has no room for what must be in it.
    """
    symbols = ["\n", *("\n" + " " * (4 * depth) for depth in range(1, 7)), "\t", *symbols]
    partial = pathlib.Path(f"{path}.partial")
    lines = (line for text in texts for line in _well_formed(text).splitlines(keepends=True))
    try:
        with open(partial, "wb") as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=lines, model_writer=file, vocab_size=vocab_size, model_type="bpe", num_threads=1,
                control_symbols=list(SPECIAL_NAMES), unk_id=0, bos_id=-1, eos_id=-1, pad_id=-1,
                user_defined_symbols=[symbol.replace(" ", _SPACE) for symbol in symbols],
                byte_fallback=True, character_coverage=0.999,  # rarer characters are spelt in bytes,
                required_chars=_visible_ascii(),  # these never
                normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True, split_digits=True,
                split_by_unicode_script=False,  # lets "self." and "):" be one piece
                max_sentence_length=10_000_000, minloglevel=2,
            )
    except RuntimeError as error:
        partial.unlink()
        raise ValueError(f"no vocabulary of {vocab_size} can be made of these texts: {error}") from error
    os.replace(partial, path)  # a reader sees a whole file or none
    return SentencePieceTokenizer(path)


def _visible_ascii() -> str:
    return string.digits + string.ascii_letters + string.punctuation


def _well_formed(text: str) -> str:
    """Returns `text` with surrogate pairs joined and lone surrogates replaced, so that it can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _decode(ids: Iterable[int], vocabulary: Sequence[bytes], shown: Mapping[str, int]) -> str:
    """Joins the bytes of `ids`; those past the vocabulary (a model may be padded) become U+FFFD."""
    names = {index: name.encode() for name, index in shown.items()}
    size = len(vocabulary)
    joined = b"".join((names.get(i) or vocabulary[i]) if 0 <= i < size else _REPLACEMENT for i in map(int, ids))
    return joined.decode("utf-8", "replace")


def _read_ranks(path: pathlib.Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"{path}:{number}: needed is base64 bytes and a rank, got {line[:60]!r}") from error
        if int(rank) != number - 1 or len(ranks) != number:
            raise ValueError(f"{path}:{number}: ranks must be 0, 1, 2, … of different tokens, got {line[:60]!r}")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ValueError(f"{path}: {len(missing)} single bytes have no rank, first {missing[0]:#04x}")
    return ranks


def _llama3_special_names() -> list[str]:
    reserved = (f"<|reserved_special_token_{i}|>" for i in range(_LLAMA3_SPECIAL_COUNT))
    names = [BEGIN_OF_TEXT, END_OF_TEXT, next(reserved), next(reserved), PAD, next(reserved), START_HEADER, END_HEADER]
    names += ["<|eom_id|>", EOT, "<|python_tag|>"]
    return names + [next(reserved) for _ in range(_LLAMA3_SPECIAL_COUNT - len(names))]


def _require_special(special: Mapping[str, int], path: pathlib.Path) -> None:
    missing = [name for name in SPECIAL_NAMES if name not in special]
    if missing:
        raise ValueError(f"{path} has no control symbol {', '.join(missing)}; make it with train_sentencepiece")


def _copy_into(path: pathlib.Path, directory: str | os.PathLike[str]) -> pathlib.Path:
    target = pathlib.Path(directory) / shipped.TOKENIZER_NAME
    if not (target.exists() and target.samefile(path)):
        shutil.copyfile(path, target)
    return target
