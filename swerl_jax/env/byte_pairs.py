"""The byte-pair vocabularies of published models, run by tiktoken: Llama 3's `tokenizer.model` and `tokenizer.json`."""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import os
import pathlib
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import tiktoken

from swerl_jax.env.vocabulary import (
    BEGIN_OF_TEXT,
    END_HEADER,
    END_OF_TEXT,
    EOT,
    PAD,
    START_HEADER,
    copy_into,
    decode,
    well_formed,
)
from swerl_jax.models import shipped

# Llama 3's split of text into words, within which byte pairs are merged (a fact of the published vocabulary).
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_LLAMA3_SPECIAL_COUNT = 256
# The split backtracks over white space and overflows its stack on about a million; as Llama 3 does, cut runs before.
_LONGEST_BLANK = 25_000
_BLANKS = re.compile(rf"\s{{1,{_LONGEST_BLANK}}}")


class BytePairTokenizer:
    """Byte pairs merged by tiktoken.

    Args:
      name: for tiktoken's own messages.
      split: the regular expression of the words within which bytes are merged.
      ranks: bytes → id; of two neighbours that can be merged, those that give the lowest id are merged first.
      special: name → id.
      is_normalized: text is brought to Unicode's form NFC first (Qwen).
      verbatim, words: text → id of what is one id wherever it stands, the longest first: before normalisation, and after it.
    """

    def __init__(self, name: str, split: str, ranks: Mapping[bytes, int], special: Mapping[str, int],
                 is_normalized: bool, verbatim: Mapping[str, int], words: Mapping[str, int]) -> None:
        self.special = dict(special)
        self._whole = {**verbatim, **words}
        self._verbatim, self._words = _any_of(verbatim), _any_of(words)
        self.vocab_size = 1 + max(*ranks.values(), *self.special.values(), *self._whole.values())
        self._bytes = [b""] * self.vocab_size
        for piece, index in [*ranks.items(), *((text.encode(), index) for text, index in self._whole.items())]:
            self._bytes[index] = piece
        self._is_normalized = is_normalized
        self._model = tiktoken.Encoding(name, pat_str=split, mergeable_ranks=dict(ranks), special_tokens=self.special)

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        ids: list[int] = []
        for i, part in enumerate(self._verbatim.split(well_formed(text))):  # every other one is whole
            ids += [self._whole[part]] if i % 2 else self._normal_ids(part)
        return ids

    def _normal_ids(self, text: str) -> list[int]:
        ids: list[int] = []
        for i, part in enumerate(self._words.split(unicodedata.normalize("NFC", text) if self._is_normalized else text)):
            ids += [self._whole[part]] if i % 2 else self._merged_ids(part)
        return ids

    def _merged_ids(self, text: str) -> list[int]:
        long_blanks = (run.end() for run in _BLANKS.finditer(text) if run.end() - run.start() == _LONGEST_BLANK)
        cuts = [0, *long_blanks, len(text)]
        return [i for start, end in itertools.pairwise(cuts) for i in self._model.encode_ordinary(text[start:end])]

    def decode(self, ids: Iterable[int], show_special: bool = False) -> str:
        """See `Tokenizer`."""
        return decode(ids, self._bytes, self.special if show_special else {})


def _any_of(texts: Collection[str]) -> re.Pattern[str]:
    """Finds the first of the texts, and of those that begin there the longest; of no texts nothing."""
    longest_first = "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))
    return re.compile(f"({longest_first})" if texts else "(?!)")


class TiktokenTokenizer(BytePairTokenizer):
    """Llama 3's `tokenizer.model`: lines of base64 bytes and rank, then 256 special ids as Llama 3.1 names them.

    Raises:
      ValueError: a line cannot be read, or the ranks are not 0, 1, 2, …, naming the line.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = pathlib.Path(path)
        ranks = _read_ranks(self._path)
        super().__init__(self._path.name, _LLAMA3_SPLIT, ranks,
                         {name: len(ranks) + i for i, name in enumerate(_llama3_special_names())}, False, {}, {})

    def save(self, directory: str | os.PathLike[str]) -> str:
        """See `JsonTokenizer.save`."""
        _copy_companions(self._path.parent, directory)
        return f"tiktoken:{copy_into(self._path, directory, shipped.TOKENIZER_NAME)}"


class JsonTokenizer(BytePairTokenizer):
    """Hugging Face's `tokenizer.json` of a byte-level BPE, as Llama 3 and Qwen have it.

    Ids are those of the `tokenizers` library on text that spells no special token; plain text that spells one yields its
    bytes. Added tokens that the file does not call special (Qwen3's `<think>`) are text like any other, of one id.

    Raises:
      ValueError: the file cannot be read, or asks for something else than byte-level BPE, naming the key.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = pathlib.Path(path)
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            split, is_normalized = _split(found["pre_tokenizer"]), _is_normalized(found.get("normalizer"))
            special, verbatim, words = _added(found["added_tokens"])
            ranks = _ranks(found["model"], {*special.values(), *verbatim.values(), *words.values()})
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} cannot be read as a tokenizer.json of byte pairs: {error!r}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        super().__init__(self._path.name, split, ranks, special, is_normalized, verbatim, words)

    def save(self, directory: str | os.PathLike[str]) -> str:
        """See `Tokenizer`; files that belong to it (the template and the names of special ids) go with it."""
        _copy_companions(self._path.parent, directory)
        return f"json:{copy_into(self._path, directory, shipped.JSON_TOKENIZER_NAME)}"


_COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "merges.txt",
               "vocab.json")


def _copy_companions(source: pathlib.Path, directory: str | os.PathLike[str]) -> None:
    for name in _COMPANIONS:
        if (source / name).is_file():
            copy_into(source / name, directory, name)


def _ranks(model: Mapping[str, Any], added: Collection[int]) -> dict[bytes, int]:
    """Bytes → id of all but the added ones, where the order of the ids is that of the merges, as tiktoken needs it."""
    wrong = [f"model.{key} is {model[key]!r}; supported is {value!r}" for key, value in {
        "type": "BPE", "dropout": None, "byte_fallback": False, "fuse_unk": False}.items() if model.get(key, value) != value]
    if wrong or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise ValueError("; ".join(wrong) or "model has a prefix or suffix of subwords; supported is none")
    byte = {char: i for i, char in enumerate(_byte_characters())}
    vocabulary = model["vocab"]
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    last = -1
    for left, right in merges:
        merged = vocabulary[left + right]
        if merged < last:
            raise ValueError(f"the merge of {left!r} and {right!r} gives id {merged} behind one that gives {last}; supported "
                             "are vocabularies whose ids follow their merges")
        last = merged
    ranks = {piece: i for piece, i in vocabulary.items() if i not in added}
    unmade = ranks.keys() - {left + right for left, right in merges} - byte.keys()
    if unmade and not model.get("ignore_merges"):
        raise ValueError(f"no merge makes {len(unmade)} entries of the vocabulary, such as {min(unmade)!r}; supported is that "
                         "with model.ignore_merges true")
    return {bytes(byte[char] for char in piece): i for piece, i in ranks.items()}


def _added(tokens: Iterable[Mapping[str, Any]]) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """(special, found before normalisation, found after it): text → id of the added tokens."""
    special, verbatim, words = {}, {}, {}
    for token in tokens:
        kind = special if token["special"] else words if token["normalized"] else verbatim
        kind[token["content"]] = token["id"]
        wrong = [key for key in ("single_word", "lstrip", "rstrip") if token[key]]
        if wrong and kind is not special:
            raise ValueError(f"the added token {token['content']!r} has {', '.join(wrong)}; supported of those that are not "
                             "special is none of these")
    return special, verbatim, words


def _byte_characters() -> list[str]:
    """The character that byte-level BPE writes for each byte: itself where it is visible, else one from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(0x100)
    return [chr(i) if i in visible else chr(next(others)) for i in range(256)]


def _split(pre_tokenizer: Mapping[str, Any] | None) -> str:
    """The regular expression of a sequence of one Split and ByteLevel."""
    parts = pre_tokenizer.get("pretokenizers", [pre_tokenizer]) if pre_tokenizer else []
    if [part["type"] for part in parts] == ["Split", "ByteLevel"]:
        split, level = parts
        if (split["behavior"], split["invert"], level["add_prefix_space"], level["use_regex"]) == ("Isolated", False, False,
                                                                                                False):
            return split["pattern"]["Regex"]
    raise ValueError(f"pre_tokenizer is {pre_tokenizer!r}; supported is a Split by a Regex, isolated, then ByteLevel without "
                     "prefix space and regex")


def _is_normalized(normalizer: Mapping[str, Any] | None) -> bool:
    if normalizer is not None and normalizer["type"] != "NFC":
        raise ValueError(f"normalizer is {normalizer!r}; supported are none and NFC")
    return normalizer is not None


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
