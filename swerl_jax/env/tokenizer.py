"""Text ↔ ids. On the path: prompt → ids before sampling, and ids → text before scoring, never text → ids again.

Bytes, sentencepiece and the byte pairs of published models (`byte_pairs`) behind one protocol. Plain text never yields a
special id, so that no issue and no file can forge a turn.
"""

from __future__ import annotations

import os
import pathlib
import re
import string
from collections.abc import Iterable, Mapping, Sequence

import sentencepiece

from swerl_jax.env.byte_pairs import JsonTokenizer, TiktokenTokenizer
from swerl_jax.env.vocabulary import REPLACEMENT, SPECIAL_NAMES, Tokenizer, copy_into, decode, well_formed
from swerl_jax.models import shipped

# Ordinary text that a small model should spend one id on; see `train_sentencepiece`.
MARKERS = ("<think>", "</think>", "<solution>", "</solution>", "<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE",
           "```python", "```", "### ")

_SPACE = "\u2581"  # sentencepiece writes a space as this character inside its pieces
_DELIMITER = "\x01"
# What one id may stand for at most: an indentation, a word of a name, a digit, an operator, any other sign.
_PART = r"\n *|[ _]?[^\W\d_]+| ?\d| ?[<>=!+\-*/%&|^@:~]+| ?[^\w\s]|_+|."


class ByteTokenizer:
    """The 256 bytes of UTF-8 and, from 256 on, SPECIAL_NAMES in order."""

    def __init__(self) -> None:
        self.special = {name: 256 + i for i, name in enumerate(SPECIAL_NAMES)}
        self.vocab_size = 256 + len(SPECIAL_NAMES)
        self._bytes = [bytes([i]) for i in range(256)] + [b""] * len(SPECIAL_NAMES)

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return list(well_formed(text).encode())

    def decode(self, ids: Iterable[int], show_special: bool = False) -> str:
        """See `Tokenizer`."""
        return decode(ids, self._bytes, self.special if show_special else {})

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
        first, *others = well_formed(text).split(_SPACE)
        ids = self._model.encode(first)
        for other in others:
            ids += self._stand_in
            ids += self._model.encode(other)
        return ids

    def decode(self, ids: Iterable[int], show_special: bool = False) -> str:
        """See `Tokenizer`."""
        return decode(ids, self._bytes, self.special if show_special else {})

    def save(self, directory: str | os.PathLike[str]) -> str:
        """See `Tokenizer`."""
        return f"sentencepiece:{copy_into(self._path, directory, shipped.TOKENIZER_NAME)}"

    def _piece_bytes(self, index: int) -> bytes:
        piece = self._model.id_to_piece(index)
        if self._model.is_control(index):
            return b""
        if self._model.is_unknown(index):
            return REPLACEMENT
        if self._model.is_byte(index):
            return bytes([int(piece[3:5], 16)])  # "<0x0A>"
        return piece.replace(_SPACE, " ").encode()


_FILE_KINDS = {"sentencepiece": SentencePieceTokenizer, "tiktoken": TiktokenTokenizer, "json": JsonTokenizer}


def load_tokenizer(spec: str) -> Tokenizer:
    """Returns the tokenizer called "byte", "sentencepiece:PATH", "tiktoken:PATH", "json:PATH", or a model directory's.

    Args:
      spec: see `shipped.find` for the directories.

    Raises:
      ValueError: any other spec, no file there, or a file of another kind.
    """
    file = tokenizer_file(spec)
    if file is None:
        return ByteTokenizer()
    kind = spec.partition(":")[0]
    if kind in _FILE_KINDS:
        return _FILE_KINDS[kind](file)
    if file.name == shipped.JSON_TOKENIZER_NAME:
        return JsonTokenizer(file)
    # The one is a protocol buffer whose first field is the list of pieces, the other lines of base64.
    return _FILE_KINDS["sentencepiece" if file.read_bytes()[:1] == b"\n" else "tiktoken"](file)


def tokenizer_file(spec: str) -> pathlib.Path | None:
    """Returns the file that `load_tokenizer` reads, None for "byte", which needs none; raises as it does."""
    if spec == "byte":
        return None
    kind, _, path = spec.partition(":")
    model = shipped.find(spec)
    if model is not None:
        file, json_file = pathlib.Path(model, shipped.TOKENIZER_NAME), pathlib.Path(model, shipped.JSON_TOKENIZER_NAME)
        if not (file.is_file() or json_file.is_file()):
            raise ValueError(f"tokenizer spec {spec!r}: there is neither {json_file} nor {file}; one must be on this machine")
        return json_file if json_file.is_file() else file
    if kind not in _FILE_KINDS or not path:
        raise ValueError(f"tokenizer spec {spec!r}: needed is byte, sentencepiece:PATH, tiktoken:PATH, json:PATH, embedded:NAME or hf:DIR")
    if not pathlib.Path(path).is_file():
        raise ValueError(f"tokenizer spec {spec!r}: there is no file {path}")
    return pathlib.Path(path)


def train_sentencepiece(
    texts: Iterable[str], vocab_size: int, path: str | os.PathLike[str], symbols: Sequence[str] = MARKERS
) -> SentencePieceTokenizer:
    """Trains a byte-pair vocabulary for Python code, writes it to `path` and returns it; the same texts, the same file.

    A line break and the indentation behind it (up to 24 spaces, in fours) are one id; so is each of `symbols`. No other id
    joins a word, a number, an operator or a bracket to its neighbour, so that a change of one is a change of whole ids.

    Args:
      texts: what to learn from; a few MB take about a second.
      vocab_size: ids in all, at least about 400: 256 are bytes and 94 the visible ASCII characters.
      path: file to write.
      symbols: ordinary text given an id of its own whatever its frequency.

    Raises:
      ValueError: the texts are too few for `vocab_size`, or `vocab_size` has no room for what must be in it.
    """
    part = re.compile("|".join([*map(re.escape, symbols), _PART]), re.DOTALL)
    symbols = ["\n", *("\n" + " " * (4 * depth) for depth in range(1, 7)), "\t", *symbols]
    partial = pathlib.Path(f"{path}.partial")
    parted = (_DELIMITER.join(part.findall(well_formed(text).replace(_DELIMITER, ""))) for text in texts)
    try:
        with open(partial, "wb") as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=parted, model_writer=file, vocab_size=vocab_size, model_type="bpe", num_threads=1,
                control_symbols=list(SPECIAL_NAMES), unk_id=0, bos_id=-1, eos_id=-1, pad_id=-1,
                user_defined_symbols=[symbol.replace(" ", _SPACE) for symbol in symbols],
                byte_fallback=True, character_coverage=0.999,  # rarer characters are spelt in bytes,
                required_chars=_visible_ascii(),  # these never
                normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True, split_digits=True,
                split_by_unicode_script=False, pretokenization_delimiter=_DELIMITER,  # it is not learnt
                max_sentence_length=10_000_000, minloglevel=2,
            )
    except RuntimeError as error:
        partial.unlink()
        raise ValueError(f"no vocabulary of {vocab_size} can be made of these texts: {error}") from error
    os.replace(partial, path)  # a reader sees a whole file or none
    return SentencePieceTokenizer(path)


def _visible_ascii() -> str:
    return string.digits + string.ascii_letters + string.punctuation


def _require_special(special: Mapping[str, int], path: pathlib.Path) -> None:
    missing = [name for name in SPECIAL_NAMES if name not in special]
    if missing:
        raise ValueError(f"{path} has no control symbol {', '.join(missing)}; make it with train_sentencepiece")
