"""The stream of examples: its order, its shares, its one integer, and what falls out of it."""

import collections

import pytest

from swerl_jax.data import shards
from swerl_jax.data.loader import SKIP, STOP, Loader, Source, readable
from swerl_jax.data.records import Example


def examples(name: str, count: int) -> list[Example]:
    return [Example(f"{name}{i}", "o/n", "c", "issue", {"m": "x"}, {"m": "y"}) for i in range(count)]


def draw(loader: Loader, count: int) -> list[tuple[int, str]]:
    drawn = [loader.next() for _ in range(count)]
    return [(index, example.id) for index, example in drawn]


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


def test_processes_partition_the_stream_and_restore_under_another_number():
    def make(index: int, count: int) -> Loader:
        return Loader([Source(examples("a", 31))], 3, process_index=index, process_count=count, accept=refuse_even)

    everything = draw(make(0, 1), 60)
    states = []
    for index in range(3):
        loader = make(index, 3)
        assert draw(loader, 10) == everything[index:30:3]
        states.append(loader.state())
    assert states[0] == states[1] == states[2]
    for index in range(2):
        loader = make(index, 2)
        loader.restore(states[0])
        assert draw(loader, 15) == everything[30 + index:60:2]


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
        loader.next()
    assert loader.counters["dropped/over_budget"] >= 4 and loader.counters["dropped/too_old"] >= 2


def test_an_epoch_of_refusals_is_an_error():
    loader = Loader([Source(examples("a", 5))], seed=0, accept=lambda example: "over_budget")
    with pytest.raises(ValueError, match="over_budget.*raise the limit"):
        loader.next()
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
        ([Source(examples("a", 1))], {"process_index": 2, "process_count": 2}),
        ([Source(examples("a", 1))], {"on_malformed": "ignore"}),
        ([Source(tmp_path / "absent.jsonl")], {}),
    ):
        with pytest.raises(ValueError, match="needed is"):
            Loader(sources, 0, **options)
