"""The draw of one id: its distribution, its log-probability, its edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from swerl_jax.policy import sampler

DRAWS = 20_000


def draw(logits, key, temperature):
    return sampler.draw(sampler.in_blocks(logits), key, temperature)


def _drawn(logits, temperature, count=DRAWS, seed=0):
    keys = jax.random.split(jax.random.key(seed), count)
    many = jax.jit(jax.vmap(draw, (None, 0, None)))
    ids, logp = many(jnp.asarray(logits, jnp.float32), keys, jnp.float32(temperature))
    return np.asarray(ids), np.asarray(logp)


def _log_probabilities(logits, temperature):
    scaled = np.asarray(logits, np.float64) / temperature
    return scaled - scaled.max() - np.log(np.exp(scaled - scaled.max()).sum())


@pytest.mark.parametrize(("V", "temperature"), [(2, 1.0), (5, 0.7), (17, 1.0), (50, 1.5), (97, 1.0)])
def test_ids_follow_the_distribution(V, temperature):
    logits = np.random.default_rng(V).normal(size=V) * 1.2
    expected = _log_probabilities(logits, temperature)
    ids, logp = _drawn(logits, temperature)
    counts = np.bincount(ids, minlength=V)
    assert scipy.stats.chisquare(counts, DRAWS * np.exp(expected)).pvalue > 1e-3
    np.testing.assert_allclose(logp, expected[ids], atol=2e-6)


@pytest.mark.parametrize(("V", "blocks"), [
    (1, (1, 1)), (61, (8, 8)), (96, (8, 12)), (1024, (32, 32)), (128_256, (256, 501)), (50_257, (197, 256))])
def test_blocks_hold_the_vocabulary_in_order(V, blocks):
    found = sampler.in_blocks(jnp.arange(V, dtype=jnp.float32))
    assert found.shape == blocks
    np.testing.assert_array_equal(found.reshape(-1)[:V], np.arange(V))
    assert np.all(found.reshape(-1)[V:] == -np.inf)


@pytest.mark.parametrize("V", [5, 53, 64, 97])
def test_ids_without_probability_are_never_drawn(V):
    rng = np.random.default_rng(V)
    logits = rng.normal(size=V)
    impossible = rng.random(V) < 0.5
    impossible[[0, -1]] = True  # also where a running sum begins and ends
    impossible[1] = False
    logits[impossible] = -np.inf
    ids, logp = _drawn(logits, 1.0)
    assert not impossible[ids].any()
    np.testing.assert_allclose(logp, _log_probabilities(logits, 1.0)[ids], atol=2e-6)


def test_the_edges_of_the_unit_interval_fall_on_possible_ids(monkeypatch):
    # Whatever the random numbers are, also 0 and the largest float below 1, an id without weight must not come out.
    V = 97
    edges = jnp.array([0.0, 2.0**-23, 0.5, 1 - 2.0**-23], jnp.float32)
    pairs = jnp.stack(jnp.meshgrid(edges, edges), -1).reshape(-1, 2)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        logits = np.where(rng.random(V) < 0.7, -np.inf, rng.normal(size=V) * 3)
        logits[rng.integers(V)] = 0.0
        monkeypatch.setattr(jax.random, "uniform", lambda pair, shape=(), *rest, **more: pair.reshape(shape))
        ids, logp = jax.vmap(draw, (None, 0, None))(jnp.asarray(logits, jnp.float32), pairs, jnp.float32(1.0))
        monkeypatch.undo()
        assert np.isfinite(logits[np.asarray(ids)]).all()


def test_rounded_running_sums_give_no_share_to_impossible_ids(monkeypatch):
    # A running sum over hundreds of float32 numbers, made in parallel, is not quite monotone: it may rise at a weight
    # of 0. Aim random numbers at just these places.
    V, width = 128_256, 512
    rng = np.random.default_rng(0)
    logits = np.where(rng.random(V) < 0.5, -np.inf, 3 * rng.normal(size=V)).astype(np.float32)
    blocks = np.exp(np.pad(logits - logits.max(), (0, -V % width), constant_values=-np.inf)).reshape(-1, width)
    running = np.asarray(jax.jit(jax.vmap(jnp.cumsum))(blocks))
    rises = [(b, i) for b, i in zip(*np.nonzero((np.diff(running) != 0) & (blocks[:, 1:] == 0)))][:40]
    middle = (np.cumsum(blocks.sum(1)) - blocks.sum(1) / 2) / blocks.sum()  # of each block's share
    pairs = [(middle[b], running[b, i] / running[b, -1] + shift * 2.0**-23) for b, i in rises for shift in (-1, 0, 1)]
    monkeypatch.setattr(jax.random, "uniform", lambda pair, shape=(), *rest, **more: pair.reshape(shape))
    run = jax.jit(lambda logits, pairs: jax.lax.map(lambda pair: draw(logits, pair, jnp.float32(1.0)), pairs))
    ids, logp = run(logits, jnp.array(pairs, jnp.float32))
    assert np.isfinite(logits[np.asarray(ids)]).all() and np.isfinite(logp).all()


def test_greedy_takes_the_largest_and_reports_temperature_one():
    logits = np.array([0.5, 3.0, -1.0, 2.9, 0.0])
    ids, logp = _drawn(logits, 0.0, count=50)
    assert set(ids.tolist()) == {1}
    np.testing.assert_allclose(logp, _log_probabilities(logits, 1.0)[1], atol=1e-6)


def test_far_logits_neither_overflow_nor_vanish():
    ids, logp = _drawn([1e4, 1e4, -1e4], 0.5, count=500)
    assert set(ids.tolist()) == {0, 1}
    np.testing.assert_allclose(logp, -np.log(2), atol=1e-6)


def test_a_key_gives_one_id_and_other_keys_give_others():
    logits = np.zeros(1000)
    a, b = _drawn(logits, 1.0, 200, seed=1)[0], _drawn(logits, 1.0, 200, seed=1)[0]
    np.testing.assert_array_equal(a, b)
    assert len(set(a.tolist())) > 150
