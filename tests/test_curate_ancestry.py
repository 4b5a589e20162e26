"""Merge bases of any history equal those of the definition, whatever the clocks said."""

from hypothesis import given, strategies

from swerl_jax.curate import ancestry
from swerl_jax.curate.ancestry import Bases, Node


@strategies.composite
def histories(draw):
    """Commits "0", "1", …, each with parents among the earlier ones and any time."""
    count = draw(strategies.integers(2, 12))
    times = draw(strategies.sampled_from([list(range(count)), list(range(count, 0, -1)), [0] * count])
                 | strategies.lists(strategies.integers(0, 9), min_size=count, max_size=count))
    nodes = {}
    for index in range(count):
        earlier = strategies.integers(max(0, index - 4), index - 1) if index else strategies.nothing()
        parents = draw(strategies.lists(earlier, max_size=3, unique=True)) if index else []
        nodes[str(index)] = Node(tuple(map(str, parents)), times[index])
    return nodes


def ancestors(nodes, id_):
    """The commit and all that came before it."""
    return {id_}.union(*(ancestors(nodes, parent) for parent in nodes[id_].parents))


def reader(nodes):
    return lambda ids: {id_: nodes[id_] for id_ in ids if id_ in nodes}


@given(histories(), strategies.data())
def test_bases_are_the_best_common_ancestors(nodes, data):
    a, b = (data.draw(strategies.sampled_from(sorted(nodes))) for _ in "ab")
    common = ancestors(nodes, a) & ancestors(nodes, b)
    best = {id_ for id_ in common if not any(id_ in ancestors(nodes, other) for other in common - {id_})}
    found = ancestry.merge_bases(a, b, reader(nodes), max_commits=99)
    assert found.is_complete and best <= set(found.ids) <= common
    assert len(found.ids) > 1 or set(found.ids) == best


LINE = {str(i): Node((str(i - 1),) if i else (), i) for i in range(50)}
FORK = {**LINE, "side": Node(("10",), 60), "top": Node(("49", "side"), 61)}


def test_only_what_is_needed_is_read():
    asked = []

    def read(ids):
        asked.extend(ids)
        return {id_: FORK[id_] for id_ in ids}

    assert ancestry.merge_bases("49", "side", read, 99) == Bases(("10",), True)
    assert min(int(id_) for id_ in asked if id_.isdigit()) >= 9
    assert ancestry.merge_bases("49", "side", read, 20) is None


def test_a_missing_commit_leaves_the_answer_open():
    cut = {id_: node for id_, node in FORK.items() if id_ != "9"}
    assert ancestry.merge_bases("49", "side", reader(cut), 99) == Bases(("10",), True)  # it lies below the base
    cut = {id_: node for id_, node in FORK.items() if id_ != "30"}
    assert ancestry.merge_bases("49", "side", reader(cut), 99) == Bases((), False)
