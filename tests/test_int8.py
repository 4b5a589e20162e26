"""Products of eight-bit integers, and engines whose weights or caches are such."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_llama as reference

from swerl_jax.policy import engine_weights, int8, sampler
from swerl_jax.policy.engine import Engine
from swerl_jax.policy.engine_steps import EngineSettings, EngineSteps
from swerl_jax.policy.llama import MATRICES
from swerl_jax.policy.mesh import make_mesh

ARCH = dataclasses.replace(reference.SMALL, V=64)  # for two key heads of two queries
LONGEST = 16


def test_values_are_rounded_by_hand():
    values, largest = int8.quantise(jnp.array([[-2.54, 1.0, 0.009], [0.0, 0.0, 0.0]]), (1,))
    assert values.tolist() == [[-127, 50, 0], [0, 0, 0]]  # 2.54 / 127 = 0.02
    np.testing.assert_allclose(largest, [[2.54], [0.0]], rtol=1e-6, atol=1e-30)


def test_columns_are_rounded_by_hand():
    """Keys and values of three tokens: the largest of each becomes 127, a column of zeros stays one."""
    columns = jnp.array([[2.54, -1.0], [0.0, 0.0], [-0.0254, 0.127]])
    k, v, *scales = int8.quantise_columns(columns.T, columns)
    assert v.tolist() == [[127, -50], [0, 0], [-25, 127]] and k.tolist() == v.T.tolist()
    for scale in scales:
        np.testing.assert_allclose(scale, [0.02, 0.0, 0.001], rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize(("blocks", "axes"), [(1, 1), (3, 1), (1, 2), (3, 2)])
def test_products_of_whole_numbers_are_exact(blocks, axes):
    """Where the largest number of a row and of a column is 127 in every block, nothing is rounded."""
    rng = np.random.default_rng(0)
    x, w = rng.integers(-126, 127, (2, 5, 6, 4)), rng.integers(-126, 127, (6, 4, 3, 7))
    x[:, :, :: 6 // blocks, 0] = 127
    w[:: 6 // blocks, 0] = -127
    if axes == 1:
        x, w = x.reshape(2, 5, 24), w.reshape(24, 3, 7)
    values, scale = int8.quantise_matrix(jnp.array(w, jnp.float32), axes, blocks)
    assert values.dtype == jnp.int8 and scale.shape == (blocks, 3, 7)
    found = int8.product(jnp.array(x, jnp.float32), values, scale, axes, jnp.float32)
    np.testing.assert_allclose(found, np.tensordot(x, w, axes), rtol=1e-6)
    factor = 2.0 ** rng.integers(-3, 3, (2, 5))
    found = int8.product(jnp.array(x, jnp.float32), values, scale, axes, jnp.float32, jnp.array(factor, jnp.float32))
    np.testing.assert_allclose(found, np.tensordot(x, w, axes) * factor[..., None, None], rtol=1e-6)


@pytest.mark.parametrize("blocks", [1, 4])
def test_products_are_off_by_half_a_step_of_each_factor(blocks):
    """x w - x' w' = (x - x') w + x' (w - w'), and no value is off by more than half its scale, a 254th of the largest."""
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(8, 32)), rng.normal(size=(32, 16)) * np.geomspace(1e-3, 1e3, 16)
    found = int8.product(jnp.array(x, jnp.float32), *int8.quantise_matrix(jnp.array(w, jnp.float32), 1, blocks), 1, jnp.float32)
    parts, columns = x.reshape(8, blocks, -1), w.reshape(blocks, -1, 16)
    largest_x, largest_w = np.abs(parts).max(-1), np.abs(columns).max(1)
    bound = (np.einsum("tb,bio->to", largest_x / 254, np.abs(columns))
             + np.einsum("tbi,bo->to", np.abs(parts) + largest_x[..., None] / 254, largest_w / 254))
    error = np.abs(np.asarray(found, np.float64) - x @ w)
    assert np.all(error <= 1.001 * bound + 1e-4 * np.abs(x) @ np.abs(w)) and np.any(error > bound / 50)


def stored(caches):
    """What rounded caches stand for, keys and values alone."""
    def pair(layer):
        k, v, k_scale, v_scale = layer
        return k * k_scale[..., None, :], v * v_scale[..., None]

    is_unrolled = isinstance(caches.prefix[0], tuple)
    return sampler.Caches(*(tuple(map(pair, part)) if is_unrolled else pair(part) for part in (caches.prefix, caches.branch)))


def random_caches(shapes):
    """Rounded ones of these shapes, in which every column has a 127."""
    rng = np.random.default_rng(0)

    def fill(x):
        if x.dtype != jnp.int8:
            return jnp.array(rng.uniform(0.005, 0.02, x.shape), x.dtype)
        values = rng.integers(-127, 128, x.shape)
        values[..., 0, :] = values[..., 0] = 127
        return jnp.array(values, jnp.int8)

    return jax.tree.map(fill, shapes)


@pytest.mark.parametrize("is_unrolled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_is_rounded_is_attended_to_and_kept(is_unrolled):
    """Each function as on caches of floats that hold what the rounded ones stand for, but that new columns are rounded."""
    settings = EngineSettings(groups=2, samples=2, prefix_buckets=(8,), branch_buckets=(16,), stop_ids=(), ticks=4, extend_tokens=4,
                              is_unrolled=is_unrolled)
    engines = [EngineSteps(ARCH, dataclasses.replace(settings, cache=name), reference.one_device()) for name in ("int8", "model")]
    model = engines[0].load(reference.random_model(ARCH))
    ints = {"prefix_length": [8, 5], "length": [[3, 0], [8, 5]], "next_id": [[1, 2], [3, 4]], "budget": [[4, 2], [4, 4]]}
    slots = sampler.Slots(**{name: jnp.array(x, jnp.int32) for name, x in ints.items()}, drawn=jnp.zeros((2, 2), jnp.int32),
                          key=jnp.arange(8, dtype=jnp.uint32).reshape(2, 2, 2), temperature=jnp.ones((2, 2)))
    one = jnp.int32(1)
    calls = {"decode": {"slots": slots, "columns": 8},
             "extend": {"slot": one, "lane": one, "prefix_length": jnp.int32(5), "start": jnp.int32(6), "ids": jnp.arange(4)},
             "prefill": {"slot": one, "ids": jnp.arange(8)[None], "is_new": jnp.ones(1, bool)}}
    for name, arguments in calls.items():
        begun = random_caches(engines[0].caches(8, 16))
        floats = getattr(engines[1], name)(model=model, caches=stored(begun), **arguments)
        rounded = getattr(engines[0], name)(model=model, caches=begun, **arguments)
        if name == "decode":
            (rounded, ours), (floats, theirs) = rounded, floats
            np.testing.assert_array_equal(ours["ids"], theirs["ids"])
            np.testing.assert_allclose(ours["logp"], theirs["logp"], atol=1e-5)
        for ours, exact, axis in zip(jax.tree.leaves(stored(rounded)), jax.tree.leaves(floats), (-2, -1) * 2 * ARCH.L):
            half = np.abs(exact).max(axis, keepdims=True) / 254
            assert np.all(np.abs(ours - exact) <= 1.001 * half + 1e-6), name


def turns(engine, model):
    """Of three answers to one prompt."""
    engine.load(jax.device_put(model, jax.sharding.NamedSharding(engine.mesh, jax.sharding.PartitionSpec())), 0)
    engine.open(0, np.arange(9, dtype=np.int32), 3, max_branch_tokens=LONGEST)
    for sample in range(3):
        engine.draw(0, sample, LONGEST)
    ended = []
    while len(ended) < 3:
        ended.extend(turn for _, _, turn in engine.tick())
    return ended


@pytest.mark.parametrize(("tensor", "is_unrolled"), [(1, True), pytest.param(4, False, marks=pytest.mark.slow)])
def test_rounded_caches_draw_nearly_as_the_model_does(tensor, is_unrolled):
    """The columns of a chunk are rounded behind it. No number is then off by more than 1/254 of its column's largest.

    Measured: log-probabilities differ by 0.0044 on average, by 0.013 at most; twice as much is the bound.
    """
    mesh, model = make_mesh({"fsdp": 1, "tensor": tensor}, jax.devices()[:tensor]), reference.random_model(ARCH)
    engine = Engine(ARCH, EngineSettings(groups=1, samples=3, prefix_buckets=(8,), branch_buckets=(LONGEST,), stop_ids=(), ticks=4,
                                         is_unrolled=is_unrolled, cache="int8"), mesh)
    p, drawn = reference.parameters(model), turns(engine, model)
    errors = np.array([np.abs(turn.logp - reference.answer_logp(p, ARCH, np.arange(9), turn.ids, 1.0)) for turn in drawn])
    assert errors.shape == (3, LONGEST) and 1e-4 < errors.mean() < 0.009 and errors.max() < 0.027


@pytest.mark.parametrize(("tensor", "is_unrolled"), [(1, True), (4, False)])
def test_an_engine_of_eight_bits_draws_nearly_as_the_model_does(tensor, is_unrolled):
    mesh = make_mesh({"fsdp": 1, "tensor": tensor}, jax.devices()[:tensor])
    model = reference.random_model(ARCH)
    settings = {name: EngineSettings(groups=1, samples=3, prefix_buckets=(8,), branch_buckets=(LONGEST,), stop_ids=(), ticks=LONGEST,
                                     is_unrolled=is_unrolled, weights=name) for name in engine_weights.WEIGHTS}
    engine, plain = Engine(ARCH, settings["int8"], mesh), Engine(ARCH, settings["model"], mesh)
    p, errors = reference.parameters(model), []
    for turn in turns(engine, model):
        errors.extend(np.abs(turn.logp - reference.answer_logp(p, ARCH, np.arange(9), turn.ids, 1.0)))
    assert len(errors) == 3 * LONGEST and 1e-4 < np.mean(errors) < 0.02 and np.max(errors) < 0.1
    turns(plain, model)
    small = sum(getattr(model.layers, name)[...].size for name in MATRICES) * 3  # bytes that a float32 model has more
    if tensor <= ARCH.K:
        scales = sum(4 * ARCH.L * n for n in (ARCH.K * (ARCH.G + 2) * ARCH.H, ARCH.D, 2 * ARCH.F, ARCH.D))
        assert plain.weight_bytes - engine.weight_bytes == small - scales


def test_rounded_weights_stay_as_they_are():
    """As when they come to a team of processes, rounded before they were sent."""
    mesh = make_mesh({"fsdp": 2, "tensor": 4}, jax.devices()[:8])
    convert = jax.jit(lambda model: engine_weights.convert(model, 4, jnp.bfloat16, "int8", mesh))
    model = jax.device_put(reference.random_model(ARCH), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    once = convert(model)
    again = convert(once)
    assert once.layers.down.dtype == jnp.int8 and once.layers.down_scale.shape == (ARCH.L, 4, ARCH.D)
    jax.tree.map(np.testing.assert_array_equal, once, again)
