"""What a text is about, in terms that can be counted: words, names it defines, modules it imports.

On the path: issue and files → **terms** → ranking. Terms are 32-bit numbers, so that thousands of files fit in memory; that
two words share one is rare and costs nothing but a place in the ranking.
"""

from __future__ import annotations

import collections
import functools
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

_IDENTIFIER = re.compile(rb"[A-Za-z_][A-Za-z0-9_]{2,60}")
_PIECE = re.compile(rb"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[A-Z]+")
_MIN_PIECE_CHARS = 3
_DEFINED = re.compile(
    rb"^[^\S\n]*(?:(?:export|default|public|private|protected|static|async|abstract|final|pub|inline|virtual|open|override"
    rb"|const|let|var)(?:\([a-z]+\))?[^\S\n]+)*(?:def|class|func|function|fn|interface|struct|type|enum|trait|module|object"
    rb"|macro_rules!|define|const|let|var|sub)\b[^\S\n]*(?:\([^()\n]*\)[^\S\n]*)?([A-Za-z_]\w*)", re.MULTILINE)
_IMPORTED = re.compile(
    rb"^[^\S\n]*(?:from[^\S\n]+(?P<package>[.\w]+)[^\S\n]+import[^\S\n]+\(?(?P<names>[^\n#]*)"
    rb"|import[^\S\n]+(?:static[^\S\n]+)?(?P<module>[\w.]+)|(?:pub[^\S\n]+)?use[^\S\n]+(?P<used>[\w:\\]+)"
    rb"|using[^\S\n]+(?P<using>[\w.]+)|(?:pub[^\S\n]+)?mod[^\S\n]+(?P<mod>\w+);"
    rb"|\#[^\S\n]*include[^\S\n]*[\"<](?P<header>[^\">\n]+)|(?:\w+[^\S\n]+)?\"(?P<go>[\w./-]{1,150}/[\w./-]{1,150})\"[^\S\n]*$)"
    rb"|(?:\bfrom|\bimport|\brequire|\brequire_relative|\brequire_once|\bimport\(|\brequire\()[^\S\n]*\(?['\"]"
    rb"(?P<path>[^'\"\n]+)['\"]", re.MULTILINE)
_SEPARATORS = re.compile(rb"[./:\\]+")
_EXTENSION = re.compile(r"\.\w{1,5}$")
# What is known by its directory's name.
_INDEX_FILE = re.compile(r"(?:.*/)?(?:__(?:init|main)__\.pyi?|index\.[cm]?[jt]sx?|(?:mod|lib|main)\.rs)")
_MAX_IMPORTS = 200

# The kinds of terms; one is added to the number of a word.
WORD, DEFINES, IMPORTS, IS_MODULE, IN_PATH = (zlib.crc32(kind) for kind in (b"word", b"def", b"import", b"module", b"path"))


class Document(NamedTuple):
    """The terms of one file.

    Attributes:
      counts: term → how often it occurs.
      words: the number of words, each occurrence counted.
      modules: numbers of the names under which it is imported.
      imports: numbers of the names that it imports.
    """

    counts: Mapping[int, int]
    words: int
    modules: tuple[int, ...]
    imports: tuple[int, ...]


def document(path: str, text: str | None) -> Document:
    """Returns the terms of a file; without a text those of its path."""
    content = (text or "").encode("utf-8", "replace")
    counts = words_of(content)
    words = sum(counts.values())
    modules = module_names(path)
    imports = tuple(dict.fromkeys(imported_names(path, content)))[:_MAX_IMPORTS]
    terms = {term(WORD, word): count for word, count in counts.items()}
    terms |= {term(DEFINES, name): 1 for name in set(_DEFINED.findall(content))}
    terms |= {term(IMPORTS, name): 1 for name in imports}
    terms |= {term(IS_MODULE, name): 1 for name in modules}
    terms |= {term(IN_PATH, word): 1 for word in path_words(path)}
    return Document(terms, words, tuple(map(zlib.crc32, modules)), tuple(map(zlib.crc32, imports)))


def term(kind: int, name: bytes) -> int:
    """Returns the number of a name of one kind."""
    return of_kind(kind, zlib.crc32(name))


def of_kind(kind: int, number: int) -> int:
    """Returns the term of one kind for the number of a name."""
    return kind ^ number


def words_of(content: bytes) -> dict[bytes, int]:
    """Returns how often each word occurs: identifiers in lower case, and the pieces that they are made of."""
    words: dict[bytes, int] = collections.defaultdict(int)
    for identifier, count in collections.Counter(_IDENTIFIER.findall(content)).items():
        for word in _parts(identifier):
            words[word] += count
    return dict(words)


@functools.lru_cache(maxsize=1 << 17)
def _parts(identifier: bytes) -> tuple[bytes, ...]:
    pieces = [piece.lower() for piece in _PIECE.findall(identifier)]
    long = (piece for piece in pieces if len(piece) >= _MIN_PIECE_CHARS)
    return tuple(dict.fromkeys((identifier.lower().strip(b"_"), *long)))


def path_words(path: str) -> list[bytes]:
    """Returns the words of a path's directories and of its name without the extension, each once."""
    return sorted(words_of(_EXTENSION.sub("", path).replace("/", " ").encode("utf-8", "replace")))


def module_names(path: str) -> list[bytes]:
    """Returns the names under which others import a file: "pkg/sub/mod.py" is `sub/mod` and `mod`."""
    parts = _EXTENSION.sub("", path).encode("utf-8", "replace").split(b"/")
    names = [b"/".join(parts[-2:]), parts[-1]]
    if len(parts) > 1 and _INDEX_FILE.fullmatch(path):
        names = [b"/".join(parts[-3:-1]), parts[-2]]
    if path.endswith(".go") and len(parts) > 1:  # of a package, every file
        names.append(b"/".join(parts[-3:-1]))
    return list(dict.fromkeys(names))


def imported_names(path: str, content: bytes) -> Iterator[bytes]:
    """Yields the names of the modules that a file imports, in the form of `module_names`; some may be no module."""
    directory = path.encode("utf-8", "replace").split(b"/")[:-1]
    for match in _IMPORTED.finditer(content):
        fields = {key: value for key, value in match.groupdict().items() if value}
        package = fields.get("package", b"")
        if package:
            inner = re.findall(rb"\w+", re.sub(rb"\bas\s+\w+", b"", fields.get("names", b"")))
            parts = _resolved(directory, package)
            yield from _name(parts)
            for name in inner[:20]:
                yield from _name([*parts, name])
        else:
            for key, value in fields.items():
                is_path = key in ("path", "header", "go")
                yield from _name(_resolved_path(directory, value) if is_path else _SEPARATORS.split(value))


def _name(parts: Sequence[bytes]) -> Iterator[bytes]:
    kept = [part for part in parts if part][-2:]
    if kept:
        yield b"/".join(kept)


def _resolved(directory: Sequence[bytes], package: bytes) -> list[bytes]:
    """Returns the parts of a Python module's name, relative ones from the directory of the file."""
    dots = len(package) - len(package.lstrip(b"."))
    parts = package[dots:].split(b".")
    return [*directory[:len(directory) - (dots - 1)], *parts] if dots else parts


def _resolved_path(directory: Sequence[bytes], target: bytes) -> list[bytes]:
    """Returns the parts of a path without its extension, relative ones from the directory of the file."""
    parts = list(directory) if target.startswith(b".") else []
    for part in _EXTENSION.sub("", target.decode("utf-8", "replace")).encode("utf-8", "replace").split(b"/"):
        if part == b"..":
            parts = parts[:-1]
        elif part != b".":
            parts.append(part)
    return parts
