"""The model against a plain one in numpy, and its sizes against published ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_llama as reference

from swerl_jax.policy import llama
from swerl_jax.policy.arch import ARCHS, Arch, Llama3Scaling, YarnScaling

MULTI_HEAD = dataclasses.replace(reference.SMALL, K=4, is_tied=True, rope_scaling=None)
QWEN25 = dataclasses.replace(reference.SMALL, has_qkv_bias=True, norm_epsilon=1e-6,
                             rope_scaling=YarnScaling(factor=4.0, fast=8.0, slow=1.0, original_context=64))
QWEN3 = dataclasses.replace(reference.SMALL, has_qk_norm=True, is_tied=True, H=24, rope_scaling=None)
ONE_KEY = dataclasses.replace(reference.SMALL, K=1, L=3, V=50)


def _dense(q, k, v, cache):
    """Causal attention on [B T ..], written for the test."""
    scores = jnp.einsum("btkgh,bskh->bkgts", q, k) * q.shape[-1] ** -0.5
    scores = jnp.where(jnp.tri(q.shape[1], dtype=bool), scores, -jnp.inf)
    return jnp.einsum("bkgts,bskh->btkgh", jax.nn.softmax(scores, -1), v), cache


@pytest.mark.parametrize("arch", [reference.SMALL, MULTI_HEAD, ONE_KEY, QWEN25, QWEN3],
                         ids=["gqa", "mha_tied", "mqa", "qwen2.5_yarn", "qwen3"])
def test_logits_equal_a_plain_model(arch):
    model = reference.random_model(arch)
    ids = np.random.default_rng(0).integers(0, arch.V, (2, 70)).astype(np.int32)
    run = jax.jit(llama.trunk, static_argnames=("arch", "attend"))
    hidden, _ = run(model, arch, ids, jnp.broadcast_to(jnp.arange(70), ids.shape), _dense)
    ours = np.asarray(hidden @ model.unembed.T)
    p = reference.parameters(model)
    expected = np.stack([reference.logits(p, arch, row) for row in ids])
    assert expected.std() > 1, "flat logits would prove little"
    assert np.abs(ours - expected).max() <= 2e-5


def test_a_loop_over_layers_and_every_remat_give_the_scans_numbers():
    arch = reference.SMALL
    model = reference.random_model(arch)
    ids, position = jnp.arange(9)[None], jnp.arange(9)[None]
    run = jax.jit(llama.trunk, static_argnames=("arch", "attend", "remat"))
    expected, _ = run(model, arch, ids, position, _dense, remat="layer")
    layers = model.layers
    model.layers = llama.nnx.data(tuple(jax.tree.map(lambda x: x[i], layers) for i in range(arch.L)))
    for remat in ("none", "dots"):
        unrolled, _ = run(model, arch, ids, position, _dense, remat=remat)
        np.testing.assert_allclose(unrolled, expected, atol=2e-6)


@pytest.mark.parametrize("remat", ["layer", *(
    pytest.param(name, marks=pytest.mark.slow) for name in sorted(llama.REMAT.keys() - {"none", "layer"}))])
def test_what_the_backward_pass_keeps_changes_no_gradient(remat):
    arch, ids = reference.SMALL, jnp.arange(9)[None]
    model = reference.random_model(arch)

    def gradient(remat):
        def loss(model):
            return jnp.sum(llama.trunk(model, arch, ids, ids, _dense, remat=remat)[0] ** 3)
        return jax.tree.leaves(jax.jit(jax.grad(loss))(model))

    for ours, expected in zip(gradient(remat), gradient("none"), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


def test_frequencies_of_llama_31():
    got = np.asarray(llama.inverse_frequencies(128, 500_000.0, Llama3Scaling(8.0, 1.0, 4.0, 8192)))
    # Pair 0 turns once in 2π < 8192/4 positions: kept. Pair 63: 2π·500000^(126/128) ≈ 2.6e6 > 8192: divided by 8.
    assert got[0] == 1.0
    assert got[63] == pytest.approx(500_000 ** (-126 / 128) / 8, rel=1e-6)
    # Pair 32: frequency 1/707.10678, wavelength 4442.883, 8192/4442.883 = 1.8438478 turns, so the share that is kept
    # is 0.8438478/3 = 0.2812826, and the frequency 0.00141421356 × (0.2812826 + 0.7187174/8) = 5.248456e-4.
    assert got[32] == pytest.approx(5.248456e-4, rel=2e-6)
    plain = np.asarray(llama.inverse_frequencies(128, 500_000.0, None))
    assert plain[32] == pytest.approx(1 / 707.1067812, rel=1e-6)
    np.testing.assert_allclose(got, reference.frequencies(ARCHS["llama3.1-8b"]), rtol=2e-6)


def test_frequencies_of_yarn():
    scaling = YarnScaling(factor=4.0, original_context=32_768)
    got = np.asarray(llama.inverse_frequencies(128, 1e6, scaling))
    # Pair i turns 32 times in 32768 positions where 1e6^(-i/64) · 32768 = 64π: i = 23.6, so 23; once: i = 39.6, so 40.
    plain = 1e6 ** (-np.arange(64) / 64)
    np.testing.assert_allclose(got[:24], plain[:24], rtol=2e-6)
    np.testing.assert_allclose(got[40:], plain[40:] / 4, rtol=2e-6)
    assert got[30] == pytest.approx(plain[30] * (10 / 17 + 7 / 17 / 4), rel=2e-6)
    cos, sin = llama.rotary(jnp.int32(0), dataclasses.replace(ARCHS["qwen2.5-7b"], rope_scaling=scaling))
    np.testing.assert_allclose(cos, 1.138629, rtol=1e-6)  # 0.1 ln 4 + 1
    assert not sin.any()


def test_a_pair_is_an_element_and_the_one_half_a_head_further():
    arch = dataclasses.replace(reference.SMALL, H=4, rope_theta=1.0, rope_scaling=None)  # every pair: 1 radian a position
    turned = llama.rotate(jnp.array([1.0, 0.0, 0.0, 2.0]), *llama.rotary(jnp.int32(1), arch))
    cos, sin = 0.5403023, 0.8414710
    np.testing.assert_allclose(turned, [cos, -2 * sin, sin, 2 * cos], atol=1e-6)


def test_parameter_counts():
    # V·D 6, head 6, final norm 2; a layer: norms 4, q 2·2·2 = 8, k and v 4 each, out 8, three matrices of 2·5.
    by_hand = 6 + 6 + 2 + 3 * (4 + 8 + 4 + 4 + 8 + 30)
    assert Arch(V=3, D=2, L=3, N=2, K=1, H=2, F=5).parameters == by_hand
    published = {"llama3-8b": 8_030_261_248, "llama3-70b": 70_553_706_496, "llama3.2-1b": 1_235_814_400,
                 "llama3.2-3b": 3_212_749_824, "llama3.1-405b": 405_853_388_800, "qwen2.5-0.5b": 494_032_768,
                 "qwen2.5-1.5b": 1_543_714_304, "qwen2.5-7b": 7_615_616_512, "qwen2.5-32b": 32_763_876_352,
                 "qwen3-0.6b": 596_049_920, "qwen3-8b": 8_190_735_360, "qwen3-32b": 32_762_123_264}
    assert {name: ARCHS[name].parameters for name in published} == published


@pytest.mark.parametrize("changes", [{}, {"is_tied": True}, {"has_qkv_bias": True}, {"has_qk_norm": True}])
def test_the_model_has_the_parameters_that_its_arch_counts(changes):
    arch = dataclasses.replace(reference.SMALL, **changes)
    with jax.set_mesh(reference.one_device()):
        model = jax.eval_shape(lambda: llama.Llama(arch, jax.random.key(0)))
    assert sum(x.size for x in jax.tree.leaves(model)) == arch.parameters


def test_forward_flops_by_hand():
    # A layer's matrices hold 54 of its 58 parameters; attention multiplies 2 heads × 2 twice with each of 10 keys;
    # the head 3·2 is applied to 4 of 7 tokens; a multiply-add is two operations.
    arch = Arch(V=3, D=2, L=3, N=2, K=1, H=2, F=5)
    assert arch.forward_flops(7, keys=10, head_tokens=4) == 2 * (3 * 7 * (54 + 2 * 2 * 2 * 10) + 6 * 4)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiple of K"):
        dataclasses.replace(reference.SMALL, N=3)
    with pytest.raises(ValueError, match="even"):
        dataclasses.replace(reference.SMALL, H=7)
    with pytest.raises(ValueError, match="arch.F is 0"):
        dataclasses.replace(reference.SMALL, F=0)
