"""Operations of traced functions against counts by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec

from swerl_jax.learn.flop_count import Flops, Kernel, count
from swerl_jax.policy.mesh import make_mesh

A, B, C = 3, 5, 7
PRODUCT = 2 * A * B * C


def ones(*shape):
    return jnp.ones(shape, jnp.float32)


def counted(function, *arguments, **options):
    return count(jax.make_jaxpr(function)(*arguments), **options)


def test_one_product_and_a_batch_of_them():
    assert counted(lambda x, y: x @ y, ones(A, B), ones(B, C)).products == PRODUCT
    assert counted(lambda x, y: jnp.einsum("kab,kbc->kac", x, y), ones(4, A, B), ones(4, B, C)).products == 4 * PRODUCT


def test_sums_and_exponentials_are_no_products():
    assert counted(lambda x: jnp.exp(x).sum() + x * 2, ones(A, B)).total == 0


def test_a_scan_counts_its_length_and_a_nested_one_both():
    def layers(x, w):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

    def twice(x, w):
        return jax.lax.scan(lambda x, _: (layers(x, w), None), x, None, length=11)[0]

    assert counted(layers, ones(A, B), ones(4, B, B)).products == 4 * 2 * A * B * B
    assert counted(twice, ones(A, B), ones(4, B, B)).products == 11 * 4 * 2 * A * B * B


def test_loops_that_end_at_a_number():
    w = ones(B, B)
    assert counted(lambda x: jax.lax.fori_loop(0, 6, lambda i, x: x @ w, x), ones(A, B)).products == 6 * 2 * A * B * B

    def until(x):
        return jax.lax.while_loop(lambda c: (c[0] < 9) & jnp.any(c[1] > 0), lambda c: (c[0] + 1, c[1] @ w), (0, x))

    assert counted(until, ones(A, B)).products == 9 * 2 * A * B * B


def test_the_most_expensive_branch_counts():
    def either(p, x, y):
        return jax.lax.cond(p, lambda: x @ y, lambda: (x @ y) @ ones(C, C))

    assert counted(either, True, ones(A, B), ones(B, C)).products == PRODUCT + 2 * A * C * C


def test_jit_and_functions_with_their_own_derivative_count_once():
    @jax.custom_vjp
    def f(x, y):
        return x @ y

    f.defvjp(lambda x, y: (x @ y, (x, y)), lambda saved, d: (d @ saved[1].T, saved[0].T @ d))
    assert counted(jax.jit(f), ones(A, B), ones(B, C)).products == PRODUCT
    gradient = jax.grad(lambda x, y: f(x, y).sum(), argnums=(0, 1))
    assert counted(gradient, ones(A, B), ones(B, C)).products == 3 * PRODUCT


@pytest.mark.parametrize("wrap, times", [(lambda f: f, 3), (jax.checkpoint, 4)])
def test_remat_computes_forward_once_more(wrap, times):
    """A layer of which the product's output is needed again: 1 forward, 2 backward, and 1 more where nothing was kept."""
    def loss(x, w):
        # The square keeps the product alive in the backward pass.
        return jax.lax.scan(wrap(lambda x, w: (jnp.sin(x @ w), None)), x, w)[0].sum()

    gradient = jax.grad(loss, argnums=(0, 1))
    assert counted(gradient, ones(A, B), ones(4, B, B)).products == times * 4 * 2 * A * B * B


def test_a_shard_map_runs_on_every_shard():
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    f = jax.shard_map(lambda x, y: x @ y, mesh=mesh, in_specs=(PartitionSpec("fsdp"), PartitionSpec()),
                      out_specs=PartitionSpec("fsdp"), check_vma=False)
    # Every one of 8 devices multiplies 2 rows: the two of the tensor axis do the same twice.
    assert counted(f, ones(8, B), ones(B, C)).products == 8 * 2 * 2 * B * C


def test_a_kernel_counts_its_grid_and_only_its_live_blocks():
    def kernel(x_ref, y_ref, o_ref):
        @pl.when(pl.program_id(0) >= 0)
        def _():
            o_ref[...] = x_ref[...] @ y_ref[...]

    def call(x, y):
        return pl.pallas_call(kernel, grid=(4, 2), name="tile", out_shape=jax.ShapeDtypeStruct((32, 16), jnp.float32),
                              in_specs=[pl.BlockSpec((8, 8), lambda i, j: (i, 0)), pl.BlockSpec((8, 8), lambda i, j: (0, j))],
                              out_specs=pl.BlockSpec((8, 8), lambda i, j: (i, j)))(x, y)

    def scanned(x, y):
        return jax.lax.scan(lambda c, _: (c + call(x, y).sum(), None), 0.0, None, length=3)[0]

    x, y = ones(32, 8), ones(8, 16)
    block = 2 * 8 * 8 * 8
    # The left block changes with i alone, the others in each of 8 steps, of which a fourth is live.
    tile = 8 * 8 * 4
    assert counted(call, x, y) == Flops(0.0, {"tile": Kernel(1, 8 * block, (4 + 8 + 8) * tile)})
    assert counted(scanned, x, y, live={"tile": 0.25}.__getitem__) == Flops(
        0.0, {"tile": Kernel(3, 3 * 8 * block / 4, 3 * (4 + 2 + 2) * tile)})


def test_sums_of_counts():
    one, two, three = (Kernel(1, n, 10 * n) for n in (2, 4, 5))
    assert (Flops(1, {"a": one}) + Flops(3, {"a": two, "b": three})) * 2 == Flops(
        8, {"a": Kernel(4, 12, 120), "b": Kernel(2, 10, 100)})
    assert Flops(1, {"a": one, "b": two}).total == 7
