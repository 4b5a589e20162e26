"""Examples survive every file form unchanged, and a bad row is named by file, row and fault."""

import gzip
import json

import fsspec
import pytest
from hypothesis import given, settings, strategies

from swerl_jax.data import shards
from swerl_jax.data.records import Example

ROW = {"id": "a", "repo": "o/n", "commit": "c0", "issue": "broken", "files": {"m.py": "x\n"}, "oracle": {"m.py": "y\n"}}


def example(name: str, **changes) -> Example:
    return Example(**{**ROW, "id": name, **changes})


@pytest.mark.parametrize("suffix", shards.SUFFIXES)
def test_every_form_gives_back_what_was_written(tmp_path, suffix):
    full = example(
        "é\u2028\x00",
        files={"dir/a b.py": "tab\t\r\nno newline", "gone.py": "1\n"},
        oracle={"gone.py": "", "new.py": "\U0001f40d"},
        tests={"FAIL_TO_PASS": ["t::a"]}, image="img", flags=("partial_context",), meta={"n": [1, None, 2.5]},
    )
    written = [full, *(example(str(number)) for number in range(50))]
    path = tmp_path / "deep" / f"x{suffix}"
    assert shards.write_examples(path, iter(written)) == 51
    opened = shards.open_examples(path)
    assert [opened[index] for index in (50, 0, 17)] == [written[50], full, written[17]]
    assert list(opened) == written
    with pytest.raises(IndexError):
        opened[51]
    again = tmp_path / f"again{suffix}"
    shards.write_examples(again, written)
    assert again.read_bytes() == path.read_bytes()


def test_remote_files_are_copied_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SWERL_JAX_CACHE", str(tmp_path / "cache"))
    for number in range(2):
        shards.write_examples(tmp_path / f"{number}.array_record", [example(f"{number}{letter}") for letter in "ab"])
        fsspec.filesystem("memory").put_file(str(tmp_path / f"{number}.array_record"), f"/bucket/{number}.array_record")
    for url in ("memory://bucket", "memory://bucket/*.array_record", "memory://bucket/1.array_record"):
        ids = [row.id for row in shards.open_examples(url)]
        assert ids == (["0a", "0b"] if "1" not in url else []) + ["1a", "1b"]
    assert capsys.readouterr().out.count("copying ") == 2
    for url in ("memory://bucket/none", "memory://none/*"):
        with pytest.raises(ValueError, match="found no examples"):
            shards.open_examples(url)
    with pytest.raises(ValueError, match="nowhere://x/a.jsonl cannot be reached"):
        shards.open_examples("nowhere://x/a.jsonl")


@settings(max_examples=60, deadline=None)
@given(strategies.text(), strategies.dictionaries(strategies.sampled_from(["a.py", "b/c.py"]), strategies.text(),
                                                  min_size=1))
def test_any_text_passes_through_json(issue, files):
    try:
        made = example("a", issue="i" + issue, files=files, oracle={"new.py": "print()\n"})
        assert shards.example_from_json(json.loads(json.dumps(shards.example_to_json(made)))) == made
    except ValueError as error:
        assert "surrogate" in str(error) and any(0xD800 <= ord(c) < 0xE000 for c in issue + "".join(files.values()))


def test_directories_and_patterns_join_files_by_name(tmp_path):
    for name, ids in (("b.jsonl.gz", "cd"), ("a.array_record", "ab"), ("c.jsonl", "e")):
        shards.write_examples(tmp_path / name, map(example, ids))
    (tmp_path / "notes.txt").write_text("not an example")
    assert "".join(row.id for row in shards.open_examples(tmp_path)) == "abcde"
    assert "".join(row.id for row in shards.open_examples(tmp_path / "[bc].*")) == "cde"
    for nothing in ("missing.jsonl", "*.zip", "notes.txt"):
        with pytest.raises(ValueError, match="needed is a file"):
            shards.open_examples(tmp_path / nothing)


BAD_ROWS = {
    "not json": ("{", "Expecting"),
    "list": ([], "the row is list"),
    "missing": ({key: ROW[key] for key in ROW if key != "oracle"}, r"missing \['oracle'\]"),
    "unknown": ({**ROW, "orcale": 1}, r"unknown keys \['orcale'\]"),
    "number for text": ({**ROW, "repo": 3}, "repo is int 3; needed is a string"),
    "empty issue": ({**ROW, "issue": " "}, "issue is empty"),
    "files list": ({**ROW, "files": ["a"]}, "files is list"),
    "text null": ({**ROW, "files": {"m.py": None}}, "NoneType None; needed is a string"),
    "absolute path": ({**ROW, "files": {"/m.py": ""}}, "relative path"),
    "climbing path": ({**ROW, "oracle": {"../m.py": "y"}}, "relative path"),
    "path with newline": ({**ROW, "oracle": {"m\n.py": "y"}}, "relative path"),
    "no files": ({**ROW, "files": {}}, "files is empty"),
    "no oracle": ({**ROW, "oracle": {}}, "oracle is empty"),
    "nothing to fix": ({**ROW, "oracle": {"m.py": "x\n"}}, "nothing to fix"),
    "flag": ({**ROW, "flags": [1]}, "a flag is int"),
    "nan": ('{"id": NaN}', "NaN"),
    "twice": ('{"id": "a", "id": "b"}', "given twice"),
    "surrogate": (json.dumps({**ROW, "issue": "\ud800"}), "lone surrogate"),
    "deep": ("[" * 100_000, "recursion"),
    "bytes": (b"\xff", "utf-8"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_malformed_row_is_named(tmp_path, name):
    bad, fault = BAD_ROWS[name]
    line = bad if isinstance(bad, bytes) else (bad if isinstance(bad, str) else json.dumps(bad)).encode()
    path = tmp_path / "rows.jsonl.gz"
    # Line 2 is empty: it is no row, and the lines after it keep their numbers.
    path.write_bytes(gzip.compress(json.dumps(ROW).encode() + b"\n\n" + line + b"\n" + json.dumps(ROW).encode()))
    opened = shards.open_examples(path)
    assert len(opened) == 3 and opened[0] == opened[2] == example("a")
    with pytest.raises(shards.MalformedRow, match=fault) as caught:
        opened[1]
    assert (caught.value.path, caught.value.row) == (str(path), 3)
    assert str(caught.value).startswith(f"{path}, row 3: ")


def test_a_bad_example_is_not_written(tmp_path):
    path = tmp_path / "x.jsonl"
    with pytest.raises(shards.MalformedRow, match="x.jsonl, row 2: .*nothing to fix"):
        shards.write_examples(path, [example("a"), example("b", oracle={"m.py": "x\n"})])
    with pytest.raises(shards.MalformedRow, match="JSON"):
        shards.write_examples(path, [example("a", meta={"n": float("nan")})])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x.array_record", "x.jsonl.gz"])
def test_a_damaged_file_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"hello")
    with pytest.raises(ValueError, match=f"{name} is no"):
        shards.open_examples(tmp_path / name)


def test_a_large_compressed_file_is_refused(tmp_path, monkeypatch):
    shards.write_examples(tmp_path / "x.jsonl.gz", [example("a")])
    monkeypatch.setattr(shards, "GZIP_LIMIT_BYTES", 20)
    with pytest.raises(ValueError, match="write it as .jsonl or .array_record"):
        shards.open_examples(tmp_path / "x.jsonl.gz")
