"""Prefix/branch attention against a dense T × T computation of the mask rule in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swerl_jax.policy import attention
from swerl_jax.policy.attention import RowShape, Segment, attend, attend_rows

B, K, G, H = 2, 2, 3, 4

# shape → per row (real prefix tokens, lengths of the branches); a branch may be as long as window + block.
CASES = {
    "ragged": (RowShape(S=8, block=4, window=4), 24, [(8, [7, 8, 1]), (5, [3, 6, 4])]),
    "no_prefix": (RowShape(S=0, block=4, window=8), 16, [(0, [12, 3]), (0, [1, 4])]),
    "no_window": (RowShape(S=5, block=8, window=0), 16, [(5, [8, 2]), (1, [5])]),
    "alignment_1": (RowShape(S=3, block=1, window=6), 11, [(2, [7, 3, 1]), (0, [4, 4])]),
    "row_of_padding": (RowShape(S=4, block=2, window=2), 6, [(4, [4, 2]), (0, [])]),
    "long_prefix": (RowShape(S=300, block=8, window=8), 16, [(300, [16]), (290, [5, 8])]),
}


def _row(shape, T, real, lengths):
    """(branch_start [T−S], is_valid [T], rule [T T]) of one row, the rule written out pair by pair."""
    branch = np.full(shape.S + T, -2)  # −2: padding, −1: prefix, 0…: branch
    branch[:real] = -1
    start, branch_start = 0, np.arange(T)
    for i, length in enumerate(lengths):
        branch[shape.S + start:shape.S + start + length] = i
        branch_start[start:start + length] = start
        start += -(-length // shape.block) * shape.block
    assert start <= T
    rule = np.array([[key <= query and branch[key] != -2 and branch[key] in (-1, branch[query])
                      for key in range(shape.S + T)] for query in range(shape.S + T)])
    return branch_start, branch != -2, rule


def _case(name, seed=0):
    shape, T, rows = CASES[name]
    starts, is_valid, rule = (np.stack(x) for x in zip(*(_row(shape, T, *row) for row in rows)))
    rng = np.random.default_rng(seed)
    sizes = [(B, shape.S + T, K, G, H), (B, shape.S + T, K, H), (B, shape.S + T, K, H)]
    q, k, v = (rng.normal(size=size).astype(np.float32) for size in sizes)
    # Only real queries carry loss, as in a learner's batch.
    weight = rng.normal(size=q.shape).astype(np.float32) * is_valid[:, :, None, None, None]
    return shape, q, k, v, starts.astype(np.int32), is_valid, rule, weight


def _dense(q, k, v, rule, weight):
    """float64: the output of every query, and the gradients of sum(output · weight) by q, k and v."""
    scores = np.einsum("bqkgh,bskh->bkgqs", q, k) / np.sqrt(H)
    visible = np.exp(scores) * rule[:, None, None]
    p = visible / np.maximum(visible.sum(-1, keepdims=True), 1e-30)  # padding sees nothing
    o = np.einsum("bkgqs,bskh->bqkgh", p, v)
    by_p = np.einsum("bqkgh,bskh->bkgqs", weight, v)
    by_score = p * (by_p - (p * by_p).sum(-1, keepdims=True)) / np.sqrt(H)
    return (o, np.einsum("bkgqs,bskh->bqkgh", by_score, k), np.einsum("bkgqs,bqkgh->bskh", by_score, q),
            np.einsum("bkgqs,bqkgh->bskh", p, weight))


def _compare(name, dtype=jnp.float32):
    shape, q, k, v, starts, is_valid, rule, weight = _case(name)
    arrays = [jnp.asarray(x, dtype) for x in (q, k, v, weight)]
    expected = _dense(*(np.asarray(x, np.float64) for x in arrays[:3]), rule, np.asarray(arrays[3], np.float64))

    @jax.jit
    def run(q, k, v, weight):
        o, pull = jax.vjp(lambda q, k, v: attend_rows(q, k, v, starts, is_valid, shape), q, k, v)
        return o, *pull(weight)

    ours = [np.asarray(x, np.float64) for x in run(*arrays)]
    differences = []
    for got, wanted in zip(ours, expected, strict=True):
        got, wanted = got[is_valid], wanted[is_valid]
        differences.append(np.abs(got - wanted).max() / np.abs(wanted).max())
    return differences


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_the_dense_rule(name):
    assert max(_compare(name)) <= 2e-6


@pytest.mark.parametrize("name", ["ragged", "no_prefix"])
def test_blocks_in_turns_give_the_same(name, monkeypatch):
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", 1)
    assert max(_compare(name)) <= 2e-6


def test_bfloat16():
    # Eight bits of mantissa: rounding to nearest costs 2⁻⁹ = 0.002 an operation; the gradients pass through several.
    assert max(_compare("ragged", jnp.bfloat16)) <= 0.02


def test_what_the_rule_hides_changes_no_bit():
    shape, q, k, v, starts, is_valid, rule, _ = _case("ragged")
    query = shape.S + 9  # in the second branch of row 0
    hidden = ~rule[0, query]
    assert hidden[shape.S:query].sum() == 8 and hidden[:shape.S].sum() == 0  # all of the first branch, and its padding
    run = jax.jit(lambda k, v: attend_rows(q, k, v, starts, is_valid, shape)[0, query])
    k_changed, v_changed = k.copy(), v.copy()
    k_changed[0, hidden] += 100
    v_changed[0, hidden] -= 1000
    np.testing.assert_array_equal(run(k, v), run(k_changed, v_changed))


@pytest.mark.parametrize("is_rounded", [False, True])
def test_segments_are_one_softmax(is_rounded):
    rng = np.random.default_rng(1)
    P, R, T, S, C = 2, 3, 2, 5, 4
    q = rng.normal(size=(P, R, T, K, G, H)).astype(np.float32)
    shared_k, shared_v = (rng.normal(size=(P, S, K, H)).astype(np.float32) for _ in "kv")
    own_k, own_v = (rng.normal(size=(P, R, C, K, H)).astype(np.float32) for _ in "kv")
    sees_shared, sees_own = rng.random((P, R, T, S)) < 0.5, rng.random((P, R, T, C)) < 0.5
    sees_own[0, 0, 0] = False
    sees_shared[..., 0] = True
    arrays, scales = [shared_k, shared_v, own_k, own_v], [None] * 4
    if is_rounded:
        arrays = [np.round(40 * x).astype(np.int8) for x in arrays]
        steps = [rng.uniform(0.01, 0.04, x.shape[:-1]).astype(np.float32) for x in arrays]
        shared_k, shared_v, own_k, own_v = (x * step[..., None] for x, step in zip(arrays, steps))
        scales = [np.swapaxes(step, -1, -2) for step in steps]
    got = attend(jnp.asarray(q), [
        Segment(jnp.moveaxis(arrays[0], 1, 3), jnp.swapaxes(arrays[1], 1, 2), sees_shared, *scales[:2]),
        Segment(jnp.moveaxis(arrays[2], 2, 4), jnp.swapaxes(arrays[3], 2, 3), sees_own, *scales[2:])])
    for p, r, t, key_head, g in np.ndindex(P, R, T, K, G):
        keys = np.concatenate([shared_k[p, sees_shared[p, r, t], key_head], own_k[p, r, sees_own[p, r, t], key_head]])
        values = np.concatenate([shared_v[p, sees_shared[p, r, t], key_head], own_v[p, r, sees_own[p, r, t], key_head]])
        weight = np.exp(keys.astype(np.float64) @ q[p, r, t, key_head, g] / np.sqrt(H))
        np.testing.assert_allclose(got[p, r, t, key_head, g], weight @ values / weight.sum(), atol=2e-6)


def test_rounded_keys_have_no_gradient():
    k, v = jnp.ones((1, 1, 1, 3), jnp.int8), jnp.ones((1, 1, 3, 1), jnp.int8)
    rounded = Segment(k, v, jnp.ones((1, 1, 2, 3), bool), *[jnp.ones((1, 1, 3))] * 2)
    with pytest.raises(ValueError, match="rounded and have no gradient"):
        jax.grad(lambda q: attend(q, [rounded]).sum())(jnp.ones((1, 1, 2, 1, 1, 1)))


def test_huge_scores_do_not_overflow():
    k = jnp.array([1e4, -1e4, 0.0]).reshape(1, 1, 1, 3)  # [P K H S], one shared segment
    v = jnp.array([1.0, 2.0, 3.0]).reshape(1, 1, 3, 1)
    q = jnp.array([1e4, -1e4]).reshape(1, 1, 2, 1, 1, 1)
    o = attend(q, [Segment(k, v, jnp.ones((1, 1, 2, 3), bool))])
    np.testing.assert_array_equal(o.ravel(), [1.0, 2.0])
