"""The stream of examples: its order, its shares, its one integer, and what falls out of it."""

import collections
import concurrent.futures
import threading

import pytest

from swerl_jax.data import shards
from swerl_jax.data.loader import SKIP, STOP, Loader, Source, readable
from swerl_jax.data.records import Example


def examples(name: str, count: int) -> list[Example]:
    return [Example(f"{name}{i}", "o/n", "c", "issue", {"m": "x"}, {"m": "y"}) for i in range(count)]


def draw(loader: Loader, count: int) -> list[tuple[int, str]]:
    return [(drawn.index, drawn.example.id) for drawn in loader.take(count)]


def refuse_even(example: Example) -> str | None:
    return "even" if int(example.id[1:]) % 2 == 0 else None


def test_each_epoch_holds_every_row_once_in_a_new_order():
    loader = Loader([Source(examples("a", 20))], seed=1)
    epochs = [draw(loader, 20) for _ in range(3)]
    assert [index for epoch in epochs for index, _ in epoch] == list(range(60))
    orders = [[name for _, name in epoch] for epoch in epochs]
    assert all(sorted(order) == sorted(orders[0]) for order in orders) and len(set(orders[0])) == 20
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert loader.epoch == 3
    other = [name for _, name in draw(Loader([Source(examples("a", 20))], seed=2), 20)]
    assert other not in orders


def test_without_shuffling_rows_keep_their_order():
    loader = Loader([Source(examples("a", 3))], seed=1, shuffle=False)
    assert draw(loader, 4) == [(0, "a0"), (1, "a1"), (2, "a2"), (3, "a0")]


def test_position_restores_exactly_whatever_was_dropped():
    def make() -> Loader:
        return Loader([Source(examples("a", 90)), Source(examples("b", 70), 2.0)], seed=5, accept=refuse_even)

    whole = make()
    everything = draw(whole, 100)
    for cut in (0, 1, 37, 99):
        first = make()
        assert draw(first, cut) == everything[:cut]
        second = make()
        second.restore(first.state())
        assert draw(second, 100 - cut) == everything[cut:]
        assert second.state() == whole.state() and second.epoch == whole.epoch
    with pytest.raises(ValueError, match="position"):
        make().restore({"place": 3})


class Reader:
    """One of several readers, each in a thread of its own; `board` is where they leave what they bring."""

    def __init__(self, index: int, board: list, barrier: threading.Barrier):
        self.index, self.count, self._board, self._barrier = index, len(board), board, barrier

    def exchange(self, name, work):
        self._board[self.index] = name, work()
        self._barrier.wait(10)
        found = list(self._board)
        self._barrier.wait(10)
        assert {one for one, _ in found} == {name}
        return [value for _, value in found]


def test_readers_share_the_reading_agree_and_restore_under_another_number():
    def taken(count, state, sizes):
        """What every one of so many readers takes, its state afterwards, and the examples that it judged and encoded."""
        board, barrier = [None] * count, threading.Barrier(count)

        def read(index):
            seen = []

            def accept(example):
                seen.append(example.id)
                return refuse_even(example)

            loader = Loader([Source(examples("a", 31))], 3, accept=accept, readers=Reader(index, board, barrier))
            loader.restore(state)
            drawn = [one for size in sizes for one in loader.take(size, lambda example: example.id + "!")]
            return [(one.index, one.example.id, one.encoded) for one in drawn], loader.state(), seen

        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            return list(pool.map(read, range(count)))

    [(everything, end, read)] = taken(1, {"position": 0}, [60])
    assert [encoded for *_, encoded in everything] == [name + "!" for _, name, _ in everything]
    first = taken(3, {"position": 0}, [4, 25, 1])
    assert all(drawn == everything[:30] and state == first[0][1] for drawn, state, _ in first)
    shares = [len(seen) for *_, seen in first]
    assert sum(shares) == first[0][1]["position"] and max(shares) - min(shares) <= 1  # nothing was read by two
    second = taken(2, first[0][1], [7, 23])
    assert all(drawn == everything[30:] and state == end for drawn, state, _ in second)
    assert sum(shares) + sum(len(seen) for *_, seen in second) == len(read)


def test_weights_are_the_shares_of_the_draws():
    loader = Loader([Source(examples("a", 100), 6.0), Source(examples("b", 500), 1.5)], seed=0)
    drawn = draw(loader, 1000)
    assert collections.Counter(name[0] for _, name in drawn) == {"a": 800, "b": 200}
    assert all(sum(name[0] == "b" for _, name in drawn[start:start + 10]) == 2 for start in range(0, 1000, 10))
    assert loader.epoch_draws == 2500  # until the 500 rows of b, one draw in five, are through


def test_refused_rows_are_counted_by_reason():
    def accept(example: Example) -> str | None:
        return {"a1": "over_budget", "a2": "too_old", "a3": "over_budget"}.get(example.id)

    loader = Loader([Source(examples("a", 5))], seed=0, accept=accept)
    assert collections.Counter(name for _, name in draw(loader, 4)) == {"a0": 2, "a4": 2}
    loader.restore({"position": 0})
    while loader.epoch < 2:
        loader.take(1)
    assert loader.counters["dropped/over_budget"] >= 4 and loader.counters["dropped/too_old"] >= 2


def test_an_epoch_of_refusals_is_an_error():
    loader = Loader([Source(examples("a", 5))], seed=0, accept=lambda example: "over_budget")
    with pytest.raises(ValueError, match="over_budget.*raise the limit"):
        loader.take(1)
    assert loader.state() == {"position": 0}


@pytest.fixture
def damaged(tmp_path):
    path = tmp_path / "x.jsonl"
    shards.write_examples(path, examples("a", 3))
    path.write_text(path.read_text() + '{"id": "a3"}\n')
    return path


def test_a_malformed_row_stops_the_run_by_name(damaged):
    loader = Loader([Source(damaged)], seed=0)
    with pytest.raises(shards.MalformedRow, match="x.jsonl, row 4: missing"):
        draw(loader, 4)


def test_a_malformed_row_is_skipped_counted_and_named_once(damaged, caplog):
    loader = Loader([Source(damaged)], seed=0, shuffle=False, on_malformed=SKIP)
    assert draw(loader, 7) == [(0, "a0"), (1, "a1"), (2, "a2"), (4, "a0"), (5, "a1"), (6, "a2"), (8, "a0")]
    assert loader.counters == {"dropped/malformed": 2}
    [said] = caplog.messages
    assert said.startswith(f"skipped {damaged}, row 4: missing")


def test_rows_are_read_as_on_malformed_says(damaged, caplog):
    rows = shards.open_examples(damaged)
    assert [example.id for example in readable(rows, (2, 3, 0), SKIP)] == ["a2", "a0"]
    assert "row 4: missing" in caplog.text
    with pytest.raises(shards.MalformedRow, match="row 4"):
        list(readable(rows, (2, 3, 0), STOP))


def test_wrong_set_up_is_refused(tmp_path):
    for sources, options in (
        ([], {}),
        ([Source([])], {}),
        ([Source(examples("a", 1), 0.0)], {}),
        ([Source(examples("a", 1))], {"on_malformed": "ignore"}),
        ([Source(tmp_path / "absent.jsonl")], {}),
    ):
        with pytest.raises(ValueError, match="needed is"):
            Loader(sources, 0, **options)
