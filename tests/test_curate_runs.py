"""What is written comes back sorted and once, whatever the order, the segments and the number of runs."""

import pytest
from hypothesis import given, settings, strategies

from swerl_jax.curate import runs


def rows_of(urls, buckets):
    return [list(runs.read_bucket(urls, bucket)) for bucket in range(buckets)]


def row(a, text="", b=0):
    return [a, b, "t", 0, "kind", "o/n", text]


def test_rows_come_back_in_order_of_their_keys(tmp_path):
    url = str(tmp_path / "deep" / "a.run")
    assert runs.write_run(url, [(1, row(5, "é\n\x00\u2028")), (0, row(2)), (1, row(3, b=1)), (1, row(3))], 3,
                          lambda: {"fault": "x"}) == 4
    assert rows_of([url], 3) == [[row(2)], [row(3), row(3, b=1), row(5, "é\n\x00\u2028")], []]
    assert runs.read_meta(url) == {"fault": "x"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.run"]


def test_equal_keys_are_kept_once_whatever_the_order(tmp_path):
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    runs.write_run(a, [(0, row(1, "later")), (0, row(1, "later")), (0, row(2))], 1)
    runs.write_run(b, [(0, row(1, "early")), (0, row(0))], 1)
    expected = [[row(0), row(1, "early"), row(2)]]
    assert rows_of([a, b], 1) == rows_of([b, a], 1) == expected
    assert runs.merge_runs([a, b], str(tmp_path / "c")) == 3
    assert rows_of([str(tmp_path / "c")], 1) == expected


ROWS = strategies.lists(strategies.tuples(strategies.integers(0, 50), strategies.text(alphabet="ab\n\"é", max_size=300)),
                        max_size=40)


@settings(max_examples=40)
@given(strategies.lists(ROWS, min_size=1, max_size=4), strategies.integers(1, 4), strategies.integers(1, 5000))
def test_any_split_into_segments_and_runs_sorts_alike(tmp_path_factory, parts, buckets, segment_bytes):
    directory = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "SEGMENT_BYTES", segment_bytes)
        patch.setattr(runs, "_READ_BYTES", 17)
        patch.setattr(runs, "_PIECE_BYTES", 11)
        urls = []
        for number, part in enumerate(parts):
            urls.append(str(directory / str(number)))
            runs.write_run(urls[-1], ((runs.bucket_of(a, buckets), row(a, text)) for a, text in part), buckets)
        merged = str(directory / "merged")
        runs.merge_runs(urls, merged)
        found = rows_of(urls, buckets)
        assert found == rows_of([merged], buckets)
    everything = {}
    for a, text in sorted(pair for part in parts for pair in part):
        everything.setdefault(a, []).append(text)
    for bucket in range(buckets):
        assert [r[0] for r in found[bucket]] == [a for a in everything if a % buckets == bucket]
        assert all(r[6] in everything[r[0]] for r in found[bucket])


def test_the_same_rows_give_the_same_bytes(tmp_path):
    rows = [(number % 3, row(number, "x" * number)) for number in range(100)]
    for name, order in (("a", rows), ("b", rows[::-1])):
        runs.write_run(str(tmp_path / name), order, 3)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_other_places_than_a_disk(tmp_path):
    runs.write_run("memory://bucket/dir/a.run", [(0, row(1))], 1)
    assert rows_of(["memory://bucket/dir/a.run"], 1) == [[row(1)]]


def test_nothing_is_left_of_a_run_that_failed(tmp_path):
    def rows():
        yield 0, row(1)
        raise RuntimeError("the hour broke")

    with pytest.raises(RuntimeError, match="the hour broke"):
        runs.write_run(str(tmp_path / "a"), rows(), 1)
    with pytest.raises(ValueError, match="got bucket 3; needed is one of 0 … 2"):
        runs.write_run(str(tmp_path / "a"), [(3, row(1))], 3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-1], lambda data: data[:40],
                                    lambda data: b"\xff" * 60 + data[60:]])
def test_a_damaged_run_is_named(tmp_path, damage):
    path = tmp_path / "a.run"
    runs.write_run(str(path), [(0, row(1, "some text " * 50))], 1)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"a\.run is .*delete it and write it anew"):
        list(runs.read_bucket([str(path)], 0))


def test_what_cannot_be_merged_is_refused(tmp_path, monkeypatch):
    urls = [str(tmp_path / name) for name in "abc"]
    for buckets, url in enumerate(urls, start=1):
        runs.write_run(url, [(0, row(1))], buckets)
    with pytest.raises(ValueError, match=r"runs of \[1, 2, 3\] buckets"):
        list(runs.read_bucket(urls, 0))
    monkeypatch.setattr(runs, "FAN_IN", 2)
    with pytest.raises(ValueError, match="got 3 runs; needed are 1 to 2: merge some first"):
        list(runs.read_bucket(urls, 0))
    with pytest.raises(ValueError, match="got 0 runs"):
        list(runs.read_bucket([], 0))


def test_buckets_do_not_depend_on_the_process():
    check_value = 0xCBF43926  # CRC-32's own, of "123456789"
    assert [runs.bucket_of(key, 10) for key in (7, 316335970, "123456789")] == [7, 0, check_value % 10]
