"""Rankings find what the issue is about, do not depend on what was ranked before, and contexts keep to their budget."""

import time

import pytest
from hypothesis import given, settings, strategies

from clones import History
from swerl_jax.curate import code_terms, context, ranking
from swerl_jax.curate.lru import Lru
from swerl_jax.curate.ranking import StaticRanker
from swerl_jax.curate.repository import Repository
from swerl_jax.curate.term_index import Snapshot, TermIndex, distinct

FILES = {
    "shop/basket.py": "from shop.prices import total_price\n\nclass Basket:\n    def add_item(self, item):\n        pass\n",
    "shop/prices.py": "import decimal\n\ndef total_price(items):\n    return sum(items)\n",
    "shop/__init__.py": "",
    "web/server.py": "from shop import basket\n\ndef serve(port):\n    listen(port)\n",
    "web/pages.py": "def render_page(name):\n    return templates[name]\n",
    "tools/release.py": "def publish(version):\n    upload(version)\n",
}


def snapshot(files):
    """A tree whose blobs are named by their texts."""
    return Snapshot({path: text or "-" for path, text in files.items()},
                    lambda ids: {id_: None if id_.startswith("\0") else "" if id_ == "-" else id_ for id_ in ids})


def rank(issue, files=FILES, seeds=()):
    return StaticRanker().rank(issue, snapshot(files), seeds)


@pytest.mark.parametrize(("issue", "first"), [
    ("add_item loses the last one", "shop/basket.py"),  # defines it
    ("The server does not listen on its port", "web/server.py"),  # words
    ("Crash\n\n  File \"/usr/lib/shop/prices.py\", line 3", "shop/prices.py"),  # names its path
    ("ImportError in web.pages", "web/pages.py"),  # names the module
    ("Cannot upload a release", "tools/release.py"),
])
def test_the_file_that_the_issue_is_about_comes_first(issue, first):
    found = rank(issue)
    assert found[0] == first and sorted(found) == sorted(FILES)


def test_imports_bring_neighbours_up():
    found = rank("add_item loses the last one")
    assert set(found[1:3]) == {"shop/prices.py", "web/server.py"}  # imported by the best, and importing it
    assert rank("zzz") == sorted(FILES)  # nothing known of: by name
    assert rank("zzz", seeds=["web/pages.py"])[:2] == ["web/pages.py", "web/server.py"]  # lies beside it
    assert rank("zzz", seeds=["shop/prices.py", "gone.py"])[:2] == ["shop/basket.py", "shop/__init__.py"]


def test_nothing_to_rank_and_nothing_to_rank_by():
    assert rank("an issue", {}) == []
    assert rank("", FILES) == sorted(FILES)
    assert rank("text", {"a.py": "\0", "b.py": "text"})[0] == "b.py"  # a file without a text has the words of its path


TREES = strategies.dictionaries(
    strategies.sampled_from([f"{folder}/{name}.py" for folder in "ab" for name in ("basket", "prices", "pages", "server")]),
    strategies.lists(strategies.sampled_from(["basket", "prices", "import b.pages\n", "def server():\n", "pages"]), max_size=5)
    .map(" ".join), max_size=8)


@settings(max_examples=25)
@given(strategies.lists(TREES, min_size=1, max_size=5), strategies.integers(0, 6))
def test_a_ranking_does_not_depend_on_what_was_ranked_before(trees, max_files):
    ranker, issue = StaticRanker(max_files=max_files), "server() of the basket\n\nprices in b.pages and a/basket.py"
    for tree in trees:
        last = snapshot(tree)
        for seeds in ((), sorted(tree)[:1]):
            assert ranker.rank(issue, last, seeds) == StaticRanker(max_files=max_files).rank(issue, last, seeds)


def test_the_index_counts_terms_where_they_are():
    index = TermIndex(max_files=2)
    word = distinct([code_terms.term(code_terms.WORD, b"basket")])
    for files, expected in (({"a.py": "basket basket", "b.py": "none"}, {"a.py": 2}), ({"b.py": "basket"}, {"b.py": 1}),
                            ({"a.py": "no", "b.py": "basket", "c/d.py": "basket"}, {"b.py": 1}), ({}, {})):
        index.update(snapshot(files))
        found = index.postings(word)
        counts = found.counts.tolist()
        assert {index.paths[slot]: count for slot, count in zip(found.slots.tolist(), counts, strict=True)} == expected
        assert (index.size, found.files.tolist()) == (len(files), [len(expected)])


def test_words_are_counted_whole_and_in_pieces():
    words = code_terms.words_of(b"parseHTTPRequest(x); snake_case snake_case _private ab")
    assert words == {b"parsehttprequest": 1, b"parse": 1, b"http": 1, b"request": 1, b"snake_case": 2, b"snake": 2, b"case": 2,
                     b"private": 1}
    assert code_terms.path_words("src/HttpServer/main_loop.py") == [b"http", b"httpserver", b"loop", b"main", b"main_loop",
                                                                    b"server", b"src"]


@pytest.mark.parametrize(("path", "names"), [
    ("pkg/sub/mod.py", ["sub/mod", "mod"]), ("pkg/sub/__init__.py", ["pkg/sub", "sub"]), ("mod.py", ["mod"]),
    ("src/index.ts", ["src"]), ("a/pkg/x.go", ["pkg/x", "x", "a/pkg"]),
])
def test_a_file_is_imported_by_its_names(path, names):
    assert code_terms.module_names(path) == [name.encode() for name in names]


@pytest.mark.parametrize(("path", "text", "names"), [
    ("a/b.py", "import x.y.z\nfrom p.q import (r, s as t)\n", ["y/z", "p/q", "q/r", "q/s"]),
    ("a/b/c.py", "from .d import e\nfrom ..f import g\nfrom . import h", ["b/d", "d/e", "a/f", "f/g", "a/b", "b/h"]),
    ("a/b.ts", "import {x} from './c'\nconst d = require('../e/f.js')\nimport '@/g/h'", ["a/c", "e/f", "g/h"]),
    ("a/b.c", '#include "d/e.h"\n#include <stdio.h>', ["d/e", "stdio"]),
    ("a/b.go", 'import (\n\t"fmt"\n\tx "github.com/o/n/pkg"\n)', ["n/pkg"]),
    ("a/b.rs", "use crate::c::D;\nmod e;\n", ["c/D", "e"]), ("A.java", "import static a.b.C;\n", ["b/C"]),
    ("a.php", "use A\\B\\C;\n", ["B/C"]), ("a.rb", "require_relative 'lib/x'\n", ["lib/x"]),
])
def test_imports_are_read_in_many_languages(path, text, names):
    assert [name.decode() for name in code_terms.imported_names(path, text.encode())] == names


def test_names_that_look_like_code():
    issue = "Calling render(page) in `widget` or a.field fails: ValueError, MAX_SIZE, myName, plain Words"
    assert ranking.code_names(issue) == {b"render", b"widget", b"field", b"ValueError", b"MAX_SIZE", b"myName"}


@given(strategies.text(), strategies.text(min_size=1, max_size=20))
def test_any_text_has_terms(text, path):
    made = code_terms.document(path, text)
    assert all(0 <= term < 2**32 for term in made.counts) and made.words >= 0
    ranking.code_names(text)


def test_long_lines_take_no_longer_than_their_length():
    start = time.process_time()
    for piece in ("a", "aB", "a/", '"a/', "a.", "import 'a", " ", "from", "_"):
        text = piece * (200_000 // len(piece))
        code_terms.document("a.py", text + "\n" + text)
        rank(text)
    assert time.process_time() - start < 10


def counter():
    return lambda path, text: len(f"### {path}\n{text}\n\n")  # 11 more than a text whose path has four characters


def test_a_context_fills_its_budget_with_the_best_that_fit():
    tree = snapshot({"c.py": "c" * 10, "big.py": "b" * 500, "x.py": "x" * 20, "no.py": "\0", "a.py": "a" * 30, "e.py": ""})
    order = ["gone.py", "big.py", "no.py", "x.py", "e.py", "c.py", "a.py"]
    changed = {"c.py": "c" * 10}
    shown = context.choose(changed, order, tree, context.Budget(tokens=21 + 31 + 41), counter())
    assert list(shown) == ["a.py", "c.py", "x.py"] and shown["x.py"] == "x" * 20
    assert list(context.choose(changed, order, tree, context.Budget(tokens=21 + 31 + 40), counter())) == ["c.py", "x.py"]
    assert context.choose(changed, order, tree, context.Budget(tokens=3), counter()) == changed  # whatever they take
    assert list(context.choose(changed, order, tree, context.Budget(999, added_files=1), counter())) == ["big.py", "c.py"]
    assert list(context.choose(changed, order, tree, context.Budget(999, tried_files=2), counter())) == ["big.py", "c.py"]
    assert context.choose({}, [], tree, context.Budget(999), counter()) == {}


def test_recall_is_the_share_found():
    assert [context.recall(["a", "b", "c"], ["c", "a", "z"], k) for k in (1, 2, 3, 10)] == [1 / 3, 1 / 3, 2 / 3, 2 / 3]


def test_a_snapshot_is_the_tree_before(tmp_path):
    history = History().commit("a", {"x.py": "one\n", "l.py": ("120000", "x.py"), "t.md": "t"}).commit("b", {"x.py": "two\n"})
    ids = history.write(tmp_path / "r")
    with Repository(tmp_path / "r") as repository:
        made = context.snapshot(repository, ids["a"], lambda path: path.endswith(".py"))
        assert list(made.files) == ["x.py"] and list(made.read(made.files.values()).values()) == ["one\n"]
        assert context.snapshot(repository, "f" * 40, bool) is None


def test_a_cache_keeps_what_was_used_last():
    cache = Lru(3)
    for key, weight in (("a", 1), ("b", 1), ("c", 1)):
        cache.put(key, key.upper(), weight)
    assert cache.get("a") == "A"
    cache.put("d", "D", 2)
    assert [cache.get(key) for key in "abcd"] == ["A", None, None, "D"]
    cache.put("e", "E", 4)  # heavier than everything
    cache.put("a", "A2", 1)
    assert [cache.get(key) for key in "ade"] == ["A2", "D", None]
