"""Decoding's kernel, interpreted on the CPU, against the plain path."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_llama as reference

from swerl_jax.learn import flop_count
from swerl_jax.policy import decode_kernel, sampler
from swerl_jax.policy.mesh import make_mesh

ARCH = reference.SMALL
P, R, S, C, TICKS = 2, 3, 40, 300, 4


def _units(U, K, M, H, C, dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = (U, K, M, H), (2, U, K, H, C), (2, U, K, C, H)
    q, k, v = (rng.normal(size=shape) for shape in shapes)
    return tuple(jnp.asarray(x, dtype) for x in (q * H**-0.5, k, v))


def _rounded(k, v):
    """(keys and values rounded to 127 steps of a column's largest number, their scales; what these stand for)."""
    scales = jnp.abs(k).max(-2) / 127, jnp.abs(v).max(-1) / 127
    steps = scales[0][..., None, :], scales[1][..., None]
    values = [jnp.round(x / step).astype(jnp.int8) for x, step in zip((k, v), steps)]
    return (*values, *scales), [value * step for value, step in zip(values, steps)]


@pytest.mark.parametrize(("H", "C", "blocks", "is_rounded"), [
    (64, 300, (128, 1 << 20), False), (128, 300, (256, 1), False), (64, 300, (128, 1 << 20), True),
    pytest.param(128, 384, (256, 1 << 20), False, marks=pytest.mark.slow),
    pytest.param(128, 300, (256, 1), True, marks=pytest.mark.slow)])
def test_every_unit_sees_its_live_columns(H, C, blocks, is_rounded, monkeypatch):
    """Keys and values lie as a TPU keeps them: values turned; keys turned; neither."""
    monkeypatch.setattr(decode_kernel, "COLUMNS", blocks[0])
    monkeypatch.setattr(decode_kernel, "BLOCK_BYTES", blocks[1])
    q, k, v = _units(4, 2, 3, H, C)
    assert (decode_kernel._lies_turned(k), decode_kernel._lies_turned(v)) == (H == 128 and C == 300, H == 64)
    length = np.array([0, 1, 257, 300])
    cache, (k, v) = _rounded(k, v) if is_rounded else ((k, v), (k, v))
    for unit, n in enumerate(length):  # what is not live may be anything
        last = [jnp.moveaxis(x, axis, -1) for x, axis in zip(cache, sampler.COLUMN_AXES)]
        last = [x.at[:, unit, ..., n:].set(99 if x.dtype == jnp.int8 else jnp.nan) for x in last]
        cache = tuple(jnp.moveaxis(x, -1, axis) for x, axis in zip(last, sampler.COLUMN_AXES))
    run = jax.jit(partial(decode_kernel.attend_units, columns=300, is_interpreted=True))
    o, total = run(q, jnp.int32(1), cache, jnp.asarray(length, jnp.int32))
    assert (o[0] == 0).all() and (total[0, ..., 0] < -1e29).all()
    for unit, n in list(enumerate(length))[1:]:
        scores = np.einsum("kmh,khc->kmc", *(np.asarray(x, np.float64) for x in (q[unit], k[1, unit, :, :, :n])))
        weight = np.exp(scores)
        expected = np.einsum("kmc,kch->kmh", weight, np.asarray(v[1, unit, :, :n])) / weight.sum(-1, keepdims=True)
        np.testing.assert_allclose(o[unit], expected, atol=3e-6)
        np.testing.assert_allclose(total[unit, ..., 0], np.log(weight.sum(-1)), atol=3e-5)


def test_bytes_that_are_fetched_by_hand(monkeypatch):
    """Four units, one at a time, of 300 columns in blocks of 128: 3 blocks of keys and of values each."""
    monkeypatch.setattr(decode_kernel, "COLUMNS", 128)
    monkeypatch.setattr(decode_kernel, "BLOCK_BYTES", 1)
    U, K, M, H = 4, 2, 3, 64
    run = partial(decode_kernel.attend_units, columns=300, is_interpreted=True)
    q, k, v = _units(U, K, M, H, 300)
    queries = K * M * (H + H + decode_kernel.LANES)  # they, what they found, its log-sum-exp
    blocks = 3 * 2 * K * 128  # of keys and values
    for cache, column in (((k, v), 4 * H), (_rounded(k, v)[0], H + 4)):
        found = flop_count.count(jax.make_jaxpr(run)(q, jnp.int32(1), cache, jnp.zeros(U, jnp.int32))).kernels["decode_attention"]
        assert (found.calls, found.bytes) == (1, U * (blocks * column + 4 * queries))
        assert found.flops == U * 3 * 2 * (2 * K * M * H * 128)


def _state(is_rounded):
    rng = np.random.default_rng(1)
    L, K, H = ARCH.L, ARCH.K, ARCH.H
    prefix = [(L, P, K, H, S), (L, P, K, S, H)]
    branch = [(L, P, R, K, H, C), (L, P, R, K, C, H)]
    caches = sampler.Caches(*(tuple(jnp.asarray(rng.normal(size=size), jnp.float32) for size in pair)
                              for pair in (prefix, branch)))
    if is_rounded:
        caches = sampler.Caches(*(_rounded(*pair)[0] for pair in (caches.prefix, caches.branch)))
    ints = {"next_id": rng.integers(0, ARCH.V, (P, R)), "drawn": np.zeros((P, R)), "budget": [[9, 2, 0], [9, 9, 9]]}
    ints |= {"prefix_length": [S, 17], "length": [[7, 0, 200], [1, 128, 64]]}  # 200: draws nothing that counts, see columns
    slots = sampler.Slots(key=jnp.asarray(rng.integers(0, 1 << 32, (P, R, 2)), jnp.uint32),
                          temperature=jnp.ones((P, R), jnp.float32),
                          **{name: jnp.asarray(value, jnp.int32) for name, value in ints.items()})
    return caches, slots


@pytest.mark.slow
@pytest.mark.parametrize(("columns", "mesh", "is_rounded"), [
    (128, {"fsdp": 1}, False), (0, {"fsdp": 1}, False), (128, {"fsdp": 2, "tensor": 2}, False),
    (128, {"fsdp": 2, "tensor": 2}, True)])
def test_decoding_equals_the_plain_path(columns, mesh, is_rounded):
    mesh = make_mesh(mesh, jax.devices()[:int(np.prod(list(mesh.values())))])
    caches, slots = _state(is_rounded)
    if not columns:
        slots = dataclasses.replace(slots, length=jnp.zeros((P, R), jnp.int32))
    kernel = partial(decode_kernel.attend_cached, mesh=mesh, is_interpreted=True)
    model = jax.device_put(reference.random_model(ARCH), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    outs = []
    for one in (None, kernel):
        run = jax.jit(partial(sampler.decode, arch=ARCH, stop_ids=(), ticks=TICKS, columns=columns, dtype=jnp.float32,
                              kernel=one))
        outs.append(run(model, caches=caches, slots=slots))
    (plain_caches, plain), (our_caches, ours) = outs
    np.testing.assert_array_equal(ours["ids"], plain["ids"])
    np.testing.assert_allclose(ours["logp"], plain["logp"], atol=5e-6)
    for got, expected in zip(jax.tree.leaves(our_caches), jax.tree.leaves(plain_caches), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)
