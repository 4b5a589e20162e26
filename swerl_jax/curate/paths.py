"""What a path is: its language, and whether a person wrote it as the code that a fix is about.

Names decide, and for generated files the first lines too: a table of languages, and one role for each file. The rules
are those that most projects of a language follow; where two disagree the remark at the rule says which way it errs.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

SOURCE = "source"
TEST = "test"
DOCUMENTATION = "documentation"
DATA = "data"  # configuration, markup, style sheets, assets: part of a program, but no program
LOCK_FILE = "lock_file"
GENERATED = "generated"
VENDORED = "vendored"
ROLES = (SOURCE, TEST, DOCUMENTATION, DATA, LOCK_FILE, GENERATED, VENDORED)
UNWRITTEN = (LOCK_FILE, GENERATED, VENDORED)  # no person of this project wrote them

_EXTENSIONS = {
    "Ada": "adb ads", "Assembly": "asm s", "C": "c h", "C#": "cs csx", "C++": "cc cpp cxx c++ hh hpp hxx h++ ipp tpp inl",
    "Clojure": "clj cljs cljc", "CMake": "cmake", "CoffeeScript": "coffee", "Common Lisp": "lisp lsp cl", "Crystal": "cr",
    "CUDA": "cu cuh", "Cython": "pyx pxd pxi", "D": "d", "Dart": "dart", "Elixir": "ex exs", "Elm": "elm",
    "Emacs Lisp": "el", "Erlang": "erl hrl", "F#": "fs fsi fsx", "Fortran": "f f90 f95 f03 f08 for", "GDScript": "gd",
    "GLSL": "glsl vert frag", "Go": "go", "Groovy": "groovy gradle", "Haskell": "hs lhs", "HCL": "tf hcl",
    "Java": "java", "JavaScript": "js jsx mjs cjs", "Julia": "jl", "Kotlin": "kt kts", "Lua": "lua", "Nim": "nim",
    "Nix": "nix", "Objective-C": "m mm", "OCaml": "ml mli", "Pascal": "pas", "Perl": "pl pm t", "PHP": "php phtml",
    "PowerShell": "ps1 psm1 psd1", "Prolog": "pro", "Protocol Buffers": "proto", "Python": "py pyi pyw", "R": "r",
    "Racket": "rkt", "ReScript": "res", "Ruby": "rb rake gemspec", "Rust": "rs", "Scala": "scala sc", "Scheme": "scm ss",
    "Shell": "sh bash zsh fish bats", "Solidity": "sol", "SQL": "sql", "Svelte": "svelte", "Swift": "swift",
    "SystemVerilog": "sv svh", "Tcl": "tcl", "TypeScript": "ts tsx mts cts", "Verilog": "v vh", "VHDL": "vhd vhdl",
    "Vim script": "vim", "Visual Basic": "vb", "Vue": "vue", "Zig": "zig",
}  # fmt: skip
_LANGUAGES = {extension: language for language, extensions in _EXTENSIONS.items() for extension in extensions.split()}
_LANGUAGE_NAMES = {
    "cmakelists.txt": "CMake", "dockerfile": "Dockerfile", "makefile": "Makefile", "gnumakefile": "Makefile",
    "rakefile": "Ruby", "gemfile": "Ruby", "vagrantfile": "Ruby", "podfile": "Ruby", "jenkinsfile": "Groovy",
    "build": "Starlark", "build.bazel": "Starlark", "workspace": "Starlark", "meson.build": "Meson",
}  # fmt: skip
LANGUAGES = frozenset(_LANGUAGES.values()) | frozenset(_LANGUAGE_NAMES.values())

_MARKUP_EXTENSIONS = frozenset(
    "html htm xhtml css scss sass less styl hbs handlebars ejs erb haml slim pug jade jinja jinja2 j2 mustache twig liquid tmpl "
    "tpl ftl jsp cshtml razor aspx graphql gql".split()
)
_LOCK_NAMES = frozenset(
    "package-lock.json npm-shrinkwrap.json pnpm-lock.yaml bun.lockb go.sum go.work.sum packages.lock.json package.resolved "
    "cartfile.resolved gradle.lockfile buildscript-gradle.lockfile .terraform.lock.hcl cabal.project.freeze conda-lock.yml "
    "project.assets.json .pnp.cjs .pnp.js".split()
)
# "external" and "deps" are left out: as often as not a project's own code lies there.
_VENDOR_PARTS = frozenset(
    "vendor vendored _vendor _vendored third_party third-party thirdparty 3rdparty node_modules bower_components "
    "jspm_packages godeps pods carthage site-packages extern".split()
)
_DOCUMENT_PARTS = frozenset("doc docs documentation man website".split())
# A change log in pieces, one for each change.
_CHANGELOG_PARTS = frozenset("changelog.d newsfragments .changes .changeset changelogs/fragments releasenotes/notes".split())
_DOCUMENT_EXTENSIONS = frozenset("md markdown mdx rst txt adoc asciidoc tex texi org rdoc pod textile".split())
_DOCUMENT_NAMES = frozenset(
    "readme changelog changes history news authors contributors copying license licence notice maintainers codeowners "
    "thanks todo install security".split()
)
_GENERATED_ENDINGS = (
    ".min.js", ".min.css", ".bundle.js", ".js.map", ".css.map", "_pb2.py", "_pb2.pyi", "_pb2_grpc.py", ".pb.go", ".pb.gw.go",
    ".pb.cc", ".pb.h", ".pb.rb", "_pb.js", "_pb.d.ts", ".g.dart", ".freezed.dart", ".g.cs", ".designer.cs", "_generated.go",
    ".generated.go", ".generated.ts", ".generated.js", ".generated.cs", "parsetab.py", ".snap",
)  # fmt: skip
_BUILT_PARTS = frozenset(("dist", "bower_dist"))  # only of what browsers load: elsewhere "dist" is a word like others
_BUILT_LANGUAGES = frozenset(("JavaScript", "TypeScript"))

# A library that offers test helpers keeps them in "testing" (numpy.testing): that is source. One that keeps them in
# "test" (django.test) is taken for tests, as SWE-bench does.
_TEST_PARTS = frozenset(
    "test tests __tests__ __mocks__ __snapshots__ __fixtures__ testdata test_data test-data "
    "fixtures test-fixtures testfixtures cassettes testsuite testsuites testcases "
    "test_cases unittest unittests unit_tests unit-tests integration_tests integration-tests integrationtest "
    "functional_tests e2e e2e-tests androidtest commontest jvmtest jstest nativetest cypress testthat regress".split()
)
_DOTTED_TEST_PARTS = frozenset("test tests unittest unittests integrationtests functionaltests acceptancetests".split())
_SPEC_PARTS = frozenset(("spec", "specs"))  # elsewhere a specification
_SPEC_LANGUAGES = frozenset(("Ruby", "JavaScript", "TypeScript", "CoffeeScript", "Crystal", "Lua", "Vue"))
_COMMAND_PARTS = frozenset("commands command cmd cli subcommands".split())  # "commands/test.py" is the command "test"
_LOWER_TEST_NAME = re.compile(r"(?:test|tests|conftest|runtests|test[_-].*|.*[_-](?:test|tests|spec|unittest|suite))\Z")
_DOTTED_TEST_NAME = re.compile(r".*\.(?:test|tests|spec|e2e|cy|stories)\Z")
_CAMEL_TEST_NAME = re.compile(r"(?:Test(?=[A-Z]).*|.*[a-z0-9](?:Test|Tests|TestCase|TestSuite|Spec|Specs|IT))\Z")
_CAMEL_LANGUAGES = frozenset(
    ("Java", "Kotlin", "Scala", "Groovy", "C#", "F#", "Visual Basic", "PHP", "Swift", "Objective-C", "C++", "Haskell", "Dart")
)

_MARKED_LINES = 12  # a marker stands in the header; further down it is a generator's own text
_MARKED_CHARS = 4000
_COMMENT = re.compile(r"""\s{0,20}(?:#|//|/\*|\*|--|;|<!--|%|"|'|!|REM\b|\(\*|\{-)""")
_GENERATED_MARKS = tuple(re.compile(pattern, re.IGNORECASE) for pattern in (
    r"@generated\b",
    r"\bcode generated\b.{0,200}\bdo not (?:edit|modify)",
    r"\b(?:this|the) (?:file|code|source|module) (?:is|was|has been|were) (?:auto|automatically|machine)?[ -]?"
    r"(?:generated|created automatically)\b",
    r"\b(?:auto|automatically|machine)[ -]?generated\b.{0,200}\b(?:do not|don't|never) (?:edit|modify|change|touch)",
    r"\b(?:do not|don't) (?:edit|modify)\b.{0,200}\b(?:auto|automatically|machine)?[ -]?generated\b",
    r"\bgenerated by the protocol buffer compiler\b",
    r"\bautogenerated by (?:thrift|antlr|swig|cython)\b",
    r"\bgenerated by (?:cython|swig|antlr|autoconf|flex|bison|gnu bison|wsdl2|openapi generator|swagger codegen)\b",
))  # fmt: skip
_MINIFIED_MEAN_CHARS = 400  # of a line, in a language that browsers load


def language(path: str) -> str:
    """The language of a file by its name, "" where it is no programming language (or has none that we know)."""
    name = path.rpartition("/")[2].lower()
    if name in _LANGUAGE_NAMES:
        return _LANGUAGE_NAMES[name]
    return _LANGUAGES.get(_extension(name), "")


def main_language(paths: Iterable[str]) -> str:
    """The language of most of the paths; of several the first in the alphabet, "" where none has one."""
    found = sorted(name for name in map(language, paths) if name)
    return max(dict.fromkeys(found), key=found.count, default="")


def role(path: str, text: str = "") -> str:
    """What a file is, one of ROLES.

    Args:
      path: relative to the repository.
      text: its content where at hand; a header that says so makes it GENERATED, whatever its name.
    """
    by_name = _role_by_name(path)
    if by_name in (SOURCE, TEST, DATA) and text and is_generated(path, text):
        return GENERATED
    return DATA if by_name == SOURCE and path.endswith(".ts") and text.lstrip()[:5] == "<?xml" else by_name  # Qt's texts


@functools.lru_cache(maxsize=65536)
def _role_by_name(path: str) -> str:
    if is_lock_file(path):
        return LOCK_FILE
    if is_vendored(path):
        return VENDORED
    if is_generated(path):
        return GENERATED
    if is_test(path):
        return TEST
    if is_documentation(path):
        return DOCUMENTATION
    return SOURCE if language(path) else DATA


def has_words(path: str) -> bool:
    """Whether the text says what the file is about, as code, markup and style sheets do; other data is known by its path."""
    return bool(language(path)) or _extension(path.rpartition("/")[2].lower()) in _MARKUP_EXTENSIONS


def is_lock_file(path: str) -> bool:
    """Whether a package manager wrote it to pin versions."""
    name = path.rpartition("/")[2].lower()
    return name in _LOCK_NAMES or (name.endswith(".lock") and len(name) > len(".lock"))


def is_vendored(path: str) -> bool:
    """Whether it lies among copies of other projects' code."""
    return not _VENDOR_PARTS.isdisjoint(_folders(path))


def is_generated(path: str, text: str = "") -> bool:
    """Whether a program wrote it: by its name, by a marker in a comment of its first lines, or being minified."""
    name = path.rpartition("/")[2].lower()
    kind = language(path)
    if name.endswith(_GENERATED_ENDINGS) or name.startswith("zz_generated"):
        return True
    is_for_browsers = kind in _BUILT_LANGUAGES or name.endswith(".css")
    if is_for_browsers and not _BUILT_PARTS.isdisjoint(_folders(path)):
        return True
    return bool(text) and (_is_marked(text) or (is_for_browsers and _is_minified(text)))


def is_documentation(path: str) -> bool:
    """Whether people read it: prose, and everything in a top-level folder of documentation (its `conf.py` too)."""
    name = path.rpartition("/")[2].lower()
    kind = language(path)
    if name in _LANGUAGE_NAMES or (name.endswith(".txt") and "require" in name):
        return False
    if _extension(name) in _DOCUMENT_EXTENSIONS or name.partition(".")[0] in _DOCUMENT_NAMES and not kind:
        return True
    folders = _folders(path)
    if not kind and folders[:1] == ("changes",) or not _CHANGELOG_PARTS.isdisjoint((*folders, "/".join(folders[-2:]))):
        return True
    return not _DOCUMENT_PARTS.isdisjoint(folders if not kind else folders[:1])


def is_test(path: str) -> bool:
    """Whether it is a test or serves tests only (helpers, fixtures, snapshots, expected output)."""
    folders = _folders(path)
    kind = language(path)
    if not _TEST_PARTS.isdisjoint(folders) or any(
        not _DOTTED_TEST_PARTS.isdisjoint(part.split(".")[1:]) for part in folders if "." in part
    ):
        return True
    if kind in _SPEC_LANGUAGES and not _SPEC_PARTS.isdisjoint(folders):
        return True
    if not kind or "/src/main/" in f"/{path}":  # Maven's and Gradle's folder of what is shipped
        return False
    return _is_test_name(path, kind, folders)


def _is_test_name(path: str, kind: str, folders: tuple[str, ...]) -> bool:
    stem = path.rpartition("/")[2].rpartition(".")[0]
    lower = stem.lower()
    if lower in ("test", "tests") and folders and folders[-1] in _COMMAND_PARTS:
        return False
    if kind == "Perl" and path.endswith(".t"):
        return True
    if path.endswith(".bats") or _LOWER_TEST_NAME.match(lower) or _DOTTED_TEST_NAME.match(lower):
        return True
    return kind in _CAMEL_LANGUAGES and _CAMEL_TEST_NAME.match(stem) is not None


def _folders(path: str) -> tuple[str, ...]:
    return tuple(path.lower().split("/")[:-1])


def _extension(name: str) -> str:
    return name.rpartition(".")[2] if "." in name else ""


def _is_marked(text: str) -> bool:
    header = text[:_MARKED_CHARS].split("\n")[:_MARKED_LINES]
    comments = "\n".join(line for line in header if _COMMENT.match(line))
    joined = re.sub(r"[\s*/#]+", " ", comments)  # a sentence may run over lines
    return bool(joined) and any(mark.search(joined) for mark in _GENERATED_MARKS)


def _is_minified(text: str) -> bool:
    return len(text) > 2 * _MINIFIED_MEAN_CHARS and len(text) > _MINIFIED_MEAN_CHARS * (text.count("\n") + 1)
