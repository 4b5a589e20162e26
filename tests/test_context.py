"""Rows cut over devices along their tokens: the order of their parts, attention, and a learner's loss and gradients."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_llama as reference
from hand_rows import row

from swerl_jax.learn.batch import Branch, PackSettings, Prefixed, pack
from swerl_jax.learn.learner import Learner, OptimizerSettings
from swerl_jax.learn.loss import LossSettings
from swerl_jax.policy import attention, context
from swerl_jax.policy.arch import Arch
from swerl_jax.policy.attention import RowShape
from swerl_jax.policy.mesh import make_mesh
from swerl_jax.policy.rows import row_attention

ARCH = Arch(V=64, D=32, L=2, N=4, K=2, H=8, F=24)  # every cut axis divides among eight devices of fsdp and context, two of tensor
LONGEST = 12


def test_the_order_of_parts_by_hand():
    np.testing.assert_array_equal(context.order(8, 2), [[0, 1, 6, 7], [2, 3, 4, 5]])
    tokens = np.array([[*"abcd", *range(8)]], dtype=object)  # a prefix of four, eight tokens of branches
    assert context.dealt(tokens, 4, 2).tolist() == [["a", "d", 0, 1, 6, 7, "b", "c", 2, 3, 4, 5]]


@pytest.mark.parametrize("S", [0, 12])
def test_parts_are_put_back(S):
    x = np.arange(2 * (S + 24) * 3).reshape(2, S + 24, 3)
    stored = context.dealt(x, S, 3)
    np.testing.assert_array_equal(context.in_row_order(jnp.asarray(stored), S, 3), x)
    np.testing.assert_array_equal(context.branches(jnp.asarray(stored), S, 3), context.dealt(x[:, S:], 0, 3))


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "S", "scores"), [
    ({"context": 4}, 32, 1 << 26), ({"context": 2, "tensor": 2}, 16, 1), ({"context": 2}, 0, 1)])
def test_attention_over_parts_equals_that_over_whole_rows(sizes, S, scores, monkeypatch):
    """Of ragged rows, values and gradients; with few scores at once blocks are taken in turns."""
    parts, T, (K, G, H) = sizes["context"], 64, (2, 2, 8)
    whole, cut = RowShape(S, 4, 8), RowShape(S, 4, 8, parts)
    rows = [row(whole, T, real, lengths) for real, lengths in ((S, [12, 1, 9, 12, 4]), (S // 3, [3, 11]))]
    starts, is_valid = (np.stack(x) for x in zip(*rows))
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, S + T, K, *rest)).astype(np.float32) for rest in ((G, H), (H,), (H,)))
    weight = rng.normal(size=q.shape).astype(np.float32) * is_valid[:, :, None, None, None]

    def run(attend, *arrays):
        def both(q, k, v, weight):
            o, pull = jax.vjp(attend, q, k, v)
            return o * (weight != 0), *pull(weight)
        return jax.jit(both)(*arrays)

    expected = run(lambda *qkv: attention.attend_rows(*qkv, starts, is_valid, whole), q, k, v, weight)
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", scores)
    mesh = make_mesh(sizes, jax.devices()[:math.prod(sizes.values())])
    attend = row_attention("plain", mesh)(context.dealt(starts, 0, parts), context.dealt(is_valid, S, parts), cut)
    found = run(attend, *(context.dealt(x, S, parts) for x in (q, k, v, weight)))
    for got, wanted in zip(found, expected, strict=True):
        wanted = np.asarray(wanted)
        np.testing.assert_allclose(context.in_row_order(got, S, parts), wanted, atol=3e-6 * np.abs(wanted).max())


@functools.cache
def _answers():
    """Groups of ragged prompts with up to five ragged answers: (prompt, [(ids, what is sampled, log-probs, advantage)])."""
    rng = np.random.default_rng(1)
    return [(rng.integers(0, 64, prompt).astype(np.int32), [
        (rng.integers(0, 64, n).astype(np.int32), np.arange(n) % 5 != 3, rng.normal(-4, 0.3, n).astype(np.float32), rng.normal())
        for n in lengths]) for prompt, lengths in ((60, [12, 1, 7, 12, 3]), (5, [9]), (33, [12, 12]), (1, [2, 11, 5]), (64, [8] * 4))]


@functools.cache
def _gradient(**sizes):
    """(sums, {parameter: gradient}, how many programs were compiled) of two microbatches."""
    mesh = make_mesh(sizes, jax.devices()[:math.prod(sizes.values())])
    learner = Learner(ARCH, mesh, OptimizerSettings(0.1, "constant", 0, 1), LossSettings(), vocabulary_chunk=5)
    groups = [Prefixed(prompt, [Branch(*answer, 1 / 90) for answer in answers]) for prompt, answers in _answers()]
    packing = PackSettings((64,), (64,), 4, LONGEST, rows=8, parts=sizes.get("context", 1))
    batches = pack(groups * 2, packing)
    assert len(batches) == 2
    params = jax.device_put(reference.random_model(ARCH, spread=0.09), jax.tree.map(lambda x: x.sharding, learner.abstract.params))
    gradient, sums = learner.gradient(params, batches)
    cut = {x.addressable_shards[0].data.shape for x in jax.tree.leaves(gradient)} if len(sizes) > 1 else None
    return sums, reference.parameters(gradient), learner.compilations, cut


FSDP_TENSOR_CONTEXT = [(8, 1, 1), (4, 2, 1), (2, 2, 2), (1, 1, 8)]
MESHES = [dict(zip(("fsdp", "tensor", "context"), sizes)) for sizes in FSDP_TENSOR_CONTEXT] + [
    {"slice": 2, "fsdp": 2, "tensor": 1, "context": 2}, {"slice": 2, "fsdp": 2, "tensor": 2, "context": 1}]


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES, ids=lambda sizes: "_".join(f"{axis}{size}" for axis, size in sizes.items()))
def test_loss_and_gradients_are_those_of_one_device(sizes):
    expected, wanted, compiled, _ = _gradient(fsdp=1)
    sums, gradient, compilations, shapes = _gradient(**sizes)
    assert compilations == compiled == 1
    for name, value in expected.items():
        assert sums[name] == pytest.approx(value, rel=1e-5), name
    for name, x in wanted.items():
        assert np.abs(gradient[name] - x).max() <= 1e-5 * np.abs(x).max(), name
    heads, width = ARCH.K // sizes["tensor"], ARCH.D // (sizes["fsdp"] * sizes["context"])
    assert (ARCH.L, width, heads, 4, ARCH.H) in shapes, "a parameter is not cut over all of its axes"


def test_rows_of_other_parts_than_the_mesh_are_refused():
    attend = row_attention("auto", make_mesh({"context": 2}, jax.devices()[:2]))
    with pytest.raises(ValueError, match="have 1 parts and the mesh's context axis 2"):
        attend(np.zeros((1, 8), np.int32), np.ones((1, 8), bool), RowShape(0, 4, 0))


def test_sizes_that_cannot_be_cut_are_refused():
    with pytest.raises(ValueError, match=r"row buckets \[40, 24\] cannot be cut into 4 parts; needed are multiples of 32"):
        PackSettings((0, 40), (24, 64), 4, 12, 1, parts=4)


def test_a_mesh_that_does_not_divide_the_model_is_refused():
    mesh = make_mesh({"fsdp": 3, "context": 2}, jax.devices()[:6])
    with pytest.raises(ValueError, match=r"params/embed is \[64, 32\] and cannot be cut .*'fsdp': 3.*'context': 2"):
        Learner(ARCH, mesh, OptimizerSettings(0.1, "constant", 0, 1), LossSettings())
