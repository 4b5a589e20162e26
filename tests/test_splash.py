"""The TPU's attention over whole rows, interpreted on the CPU, against the plain path: values, gradients, visits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_rows import row
from hypothesis import given, settings
from hypothesis import strategies as st

from swerl_jax.learn import flop_count
from swerl_jax.policy import attention, context, splash
from swerl_jax.policy.attention import RowShape
from swerl_jax.policy.mesh import make_mesh
from swerl_jax.policy.rows import row_attention

# name → (shape, T − S, head size, per row (real prefix tokens, lengths of the branches)).
CASES = {
    "head_128": (RowShape(S=256, block=128, window=128), 640, 128, [(256, [200, 1, 128]), (130, [256, 129])]),
    "head_64": (RowShape(S=128, block=128, window=128), 512, 64, [(128, [256, 1, 100]), (0, [5])]),
    "no_prefix": (RowShape(S=0, block=128, window=256), 384, 64, [(0, [300]), (0, [128, 129])]),
    "odd_sizes": (RowShape(S=100, block=8, window=96), 312, 64, [(99, [104, 3, 50]), (7, [90, 91, 92])]),
    "one_branch": (RowShape(S=60, block=250, window=0), 250, 64, [(60, [250]), (31, [17])]),
    "to_be_cut": (RowShape(S=512, block=128, window=256), 1024, 64, [(512, [300, 128, 384]), (200, [130, 5, 90, 128, 1])]),
    "to_be_cut_no_prefix": (RowShape(S=0, block=128, window=384), 512, 64, [(0, [500]), (0, [128, 129])]),
}
WIDE = {name: (256, 128, 128) for name in splash.BLOCKS}  # blocks of two sizes, so that none is taken for the other


def _case(name, K=2, G=2):
    shape, T, H, rows = CASES[name]
    starts, is_valid = (np.stack(x) for x in zip(*(row(shape, T, *one) for one in rows)))
    rng = np.random.default_rng(0)
    sizes = [(len(rows), shape.S + T, K, G, H)] + [(len(rows), shape.S + T, K, H)] * 2
    q, k, v = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in sizes)
    weight = rng.normal(size=q.shape).astype(np.float32) * is_valid[:, :, None, None, None]
    return shape, starts, is_valid, (q, k, v), weight


def _run(attend, arrays, weight):
    def run(*arrays):
        o, pull = jax.vjp(attend, *arrays)
        return o * (weight != 0), *pull(weight)
    return jax.jit(run)(*arrays)


def _compare(name, mesh):
    shape, starts, is_valid, arrays, weight = _case(name)
    expected = _run(lambda *qkv: attention.attend_rows(*qkv, starts, is_valid, shape), arrays, weight)
    S, parts = shape.S, mesh.shape["context"]
    arguments = context.dealt(starts, 0, parts), context.dealt(is_valid, S, parts), dataclasses.replace(shape, parts=parts)
    *arrays, weight = (context.dealt(x, S, parts) for x in (*arrays, weight))
    ours = _run(row_attention("splash", mesh)(*arguments), arrays, weight)
    for got, wanted in zip(ours, expected, strict=True):
        got, wanted = np.asarray(context.in_row_order(got, S, parts)), np.asarray(wanted)
        assert np.isfinite(got).all()
        assert np.abs(got - wanted).max() <= 3e-6 * np.abs(wanted).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_the_plain_path(name):
    _compare(name, make_mesh({"fsdp": 1}, jax.devices()[:1]))


@pytest.mark.slow
def test_blocks_of_two_sizes(monkeypatch):
    monkeypatch.setattr(splash, "BLOCKS", WIDE)
    _compare("head_64", make_mesh({"fsdp": 1}, jax.devices()[:1]))


@pytest.mark.slow
def test_rows_and_heads_are_dealt_over_devices():
    _compare("head_64", make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4]))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sizes"), [("to_be_cut", {"context": 2, "tensor": 2}), ("to_be_cut_no_prefix", {"context": 2})])
def test_tokens_are_dealt_over_devices(name, sizes):
    _compare(name, make_mesh(sizes, jax.devices()[:int(np.prod(list(sizes.values())))]))


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_together_visit_what_whole_rows_do(parts):
    """In every pass, with blocks of the same sizes; and a part is not visited for queries of others."""
    S, T = 1024, 2048
    starts, is_valid = row(RowShape(S, 128, 512), T, 700, [600, 130, 640, 40])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splash, "BLOCKS", {name: (128, 128, 128) for name in splash.BLOCKS})
        whole, cut = (splash.plan(jnp.asarray(context.dealt(starts[None], 0, n)), jnp.asarray(context.dealt(is_valid[None], S, n)),
                                  RowShape(S, 128, 512, n)) for n in (1, parts))
        for name in splash.BLOCKS:
            over_keys, found = name == "gradient_of_keys", np.zeros((S + T, S + T), int)
            for part in range(parts):
                info = jax.tree.map(lambda x: np.split(x[0], parts, axis=1 if x.ndim == 4 else 0)[part], getattr(cut, name))
                seen = _visited(info, cut.layout.blocks(name), (S + T) // parts, S * (cut.layout.copies - 1), over_keys, S + T)
                rows = np.concatenate([context.order(S, parts)[part], S + context.order(T, parts)[part]])
                found[rows] += _once(seen, cut.layout)
            info = jax.tree.map(lambda x: x[0], getattr(whole, name))
            seen = _visited(info, whole.layout.blocks(name), S + T, S * (whole.layout.copies - 1), over_keys, S + T)
            np.testing.assert_array_equal(found, _once(seen, whole.layout))


def _once(seen, layout):
    """[T, T] of what `_visited` gives: the visits to all copies of the prefix together."""
    if not layout.S:
        return seen
    split = layout.copies * layout.S
    return np.concatenate([seen[:, :split].reshape(len(seen), -1, layout.S).sum(1), seen[:, split:]], axis=1)


def _visited(info, blocks, queries_held, copies_shift, is_over_keys, T):
    """int [queries_held, T'] of one row: how often a pass computes each score, T' being T keys and the prefix's copies."""
    index, is_live = np.asarray(info.data_next[0]), np.asarray(info.block_mask[0])
    queries, keys, _ = blocks
    seen = np.zeros((queries_held, T + copies_shift), int)
    for a, b in zip(*np.nonzero(is_live)):
        i, j = (index[a, b], b) if is_over_keys else (a, index[a, b])
        seen[i * queries:(i + 1) * queries, j * keys:(j + 1) * keys] += 1
    return seen


def test_only_live_blocks_are_visited():
    """Two branches of 3 and 2 blocks after a prefix of 4, of which 2 are real, counted by hand."""
    shape = RowShape(S=512, block=128, window=256)
    starts, is_valid = row(shape, 1024, 200, [384, 130])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splash, "BLOCKS", {name: (128, 128, 128) for name in splash.BLOCKS})
        made = splash.plan(jnp.asarray(starts[None]), jnp.asarray(is_valid[None]), shape)
        prefix = 1 + 2 + 1 + 1  # the first real block, the second sees both, blocks of padding see themselves
        branches = (3 + 4 + 5) + (3 + 4) + 3  # two blocks of prefix and the branch's own; padding sees itself
        for info in (made.forward, made.gradient_of_queries, made.gradient_of_keys):
            assert int(info.block_mask.sum()) == prefix + branches
        # Of 12 blocks of queries 4 prefix keys and 1 to 4 of a branch; of keys, 4 queries at a time.
        assert made.forward.block_mask.shape == (1, 1, 12, 4 + 5)
        assert made.layout.height == 5 and made.layout.copies == 3


def test_rows_without_branches_are_causal():
    """What an engine prefills: two prefixes of other sizes than the blocks."""
    S, K, G, H = 200, 1, 2, 64
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, S, K, *rest)), jnp.float32) for rest in ((G, H), (H,), (H,)))
    visits = splash.plan(jnp.zeros((2, 0), jnp.int32), jnp.ones((2, S), bool), RowShape(S, splash.LANES, 0))
    mesh = make_mesh({"fsdp": 1}, jax.devices()[:1])
    ours = splash.attend_rows(q, k, v, visits, mesh=mesh, is_interpreted=True)
    scores = np.einsum("btkgh,bskh->bkgts", *(np.asarray(x, np.float64) for x in (q, k))) * H**-0.5
    weight = np.exp(np.where(np.tri(S, dtype=bool), scores, -np.inf))
    expected = np.einsum("bkgts,bskh->btkgh", weight / weight.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(ours, expected, atol=3e-6)


def test_products_of_live_blocks_by_hand():
    """The row of test_only_live_blocks_are_visited: 27 live blocks of 128 × 128 for each of 4 heads."""
    shape, T, K, G, H = RowShape(S=512, block=128, window=256), 1024, 2, 2, 64
    starts, is_valid = (jnp.asarray(x[None]) for x in row(shape, T, 200, [384, 130]))
    q, k = (jax.ShapeDtypeStruct((1, shape.S + T, K, *rest), jnp.float32) for rest in ((G, H), (H,)))
    mesh = make_mesh({"fsdp": 1}, jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splash, "BLOCKS", {name: (128, 128, 128) for name in splash.BLOCKS})
        attend = row_attention("splash", mesh)(starts, is_valid, shape)
        jaxpr = jax.make_jaxpr(lambda q, k, v: jax.vjp(attend, q, k, v)[1](q))(q, k, k)
        visits = splash.plan(starts, is_valid, shape)
        found = flop_count.count(jaxpr, lambda name: splash.live_share(visits, name)).kernels
    block = 2 * 128 * 128 * H
    # Scores and values; scores, weights' gradient, queries' gradient; scores, gradients of weights, values and keys.
    products = {"fwd": 2, "dq": 3, "dkv": 4}
    counted = {part: one.flops for name, one in found.items() for part in products if f"_{part}_" in name}
    assert counted == {part: pytest.approx(27 * K * G * n * block) for part, n in products.items()}


@st.composite
def _rows(draw):
    """(shape, T − S, real prefix tokens, lengths of branches) that a learner could be given."""
    block = draw(st.sampled_from([32, 128, 256]))
    longest = draw(st.integers(1, 600))
    window = -(-longest // block) * block - block
    lengths = draw(st.lists(st.integers(1, longest), max_size=6))
    used = max(sum(-(-n // block) * block for n in lengths), block)
    T = used + block * draw(st.integers(0, 5))
    S = draw(st.sampled_from([0, 100, 128, 512]))
    return RowShape(S, block, max(0, min(window, T - block))), T, draw(st.integers(0, S)), lengths


@pytest.mark.slow  # every shape is compiled
@settings(max_examples=60)
@given(_rows(), st.sampled_from([splash.BLOCKS, WIDE]))
def test_every_score_that_counts_is_visited_once(case, table):
    shape, T, real, lengths = case
    starts, is_valid = row(shape, T, real, lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splash, "BLOCKS", table)
        made = splash.plan(jnp.asarray(starts[None]), jnp.asarray(is_valid[None]), shape)
        layout = made.layout
        total, shift = layout.S + layout.branch, (layout.copies - 1) * layout.S
        pad = np.concatenate([np.arange(shape.S), layout.S + np.arange(T)])  # where a row's tokens stand when padded
        start = np.concatenate([np.zeros(shape.S, int), starts + shape.S])
        query, key = np.arange(shape.S + T)[:, None], np.arange(shape.S + T)
        rule = (key <= query) & ((key < shape.S) | (key >= start[:, None])) & is_valid & is_valid[:, None]
        for name in splash.BLOCKS:
            info = jax.tree.map(lambda x: x[0], getattr(made, name))
            over_keys = name == "gradient_of_keys"
            seen = _visited(info, layout.blocks(name), total, shift, over_keys, total)
            once = _once(seen, layout)
            assert once.max() <= 1
            assert once[np.ix_(pad, pad)][rule].all()
            queries, keys, _ = layout.blocks(name)
            blocks = once.reshape(total // queries, queries, total // keys, keys)[:, 0, :, 0]
            padded = np.zeros((total, total), bool)
            padded[np.ix_(pad, pad)] = rule
            padded |= np.eye(total, dtype=bool)
            needed = padded.reshape(total // queries, queries, total // keys, keys).any((1, 3))
            assert (blocks <= needed).all() or layout.row.block % keys, "a dead block is visited"
