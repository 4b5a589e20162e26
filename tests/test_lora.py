"""Low-rank changes: nothing at first, the plain computation with merged matrices afterwards, and a frozen base."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import reference_llama as reference

from swerl_jax.learn.batch import Branch, PackSettings, Prefixed, pack
from swerl_jax.learn.export import export
from swerl_jax.learn.learner import Learner, OptimizerSettings
from swerl_jax.learn.loss import LossSettings
from swerl_jax.policy import hf_weights
from swerl_jax.policy.engine import Engine, EngineSettings
from swerl_jax.policy.llama import LAYER_AXES, MATRICES, Lora, parameter_name

ARCH = dataclasses.replace(reference.SMALL, has_qkv_bias=True)
RANK, ALPHA = 3, 6.0
LORA = Lora(RANK, ALPHA)
PACKING = PackSettings((16,), (24,), 8, 24, rows=1)


@functools.cache
def _learner(lora=LORA, param_dtype=jnp.float32):
    return Learner(ARCH, reference.one_device(), OptimizerSettings(0.1, "constant", 0, 1), LossSettings("nll"), lora=lora,
                   param_dtype=param_dtype)


def _changed(learner, seed=5):
    """A model whose low-rank parts are all random, over the base that `reference.random_model` makes."""
    params = learner.begin(reference.random_model(ARCH)).params
    rng = np.random.default_rng(seed)

    def fill(path, x):
        return jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype) if path[-2].name[-2:] in ("_a", "_b") else x

    return jax.tree_util.tree_map_with_path(fill, params)


def _batches():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, ARCH.V, (2, 12)).astype(np.int32)
    return pack([Prefixed(ids[0], [Branch(ids[1], np.ones(12, bool), np.zeros(12, np.float32), 1.0, 1 / 12)])], PACKING)


def _by_hand(model):
    """The parameters of a plain model in float64, W + alpha / rank · A B."""
    p = reference.parameters(model)
    for name, axes in MATRICES.items():
        if getattr(model.layers, f"{name}_a") is None:
            continue
        a, b = (np.asarray(getattr(model.layers, f"{name}_{part}")[...], np.float64) for part in "ab")
        p[name] = p[name] + ALPHA / RANK * np.stack([np.tensordot(x, y, 1) for x, y in zip(a, b, strict=True)])
    return p


def _merged(model):
    """A plain model of the same numbers, in float32."""
    p = _by_hand(model)
    return jax.tree_util.tree_map_with_path(lambda path, _: jnp.asarray(p[parameter_name(path)], jnp.float32),
                                            reference.random_model(ARCH))


def test_nothing_changes_at_first():
    plain, lora = _learner(None), _learner()
    batch, = _batches()
    before = plain.logp(reference.random_model(ARCH), batch)
    np.testing.assert_array_equal(lora.logp(lora.begin(reference.random_model(ARCH)).params, batch), before)


@pytest.mark.parametrize("targets", [tuple(MATRICES), ("out", "down")])
def test_the_change_is_that_of_merged_matrices(targets):
    learner = _learner(Lora(RANK, ALPHA, targets))
    model = _changed(learner)
    assert {name for name in MATRICES if getattr(model.layers, f"{name}_a") is not None} == set(targets)
    batch, = _batches()
    found, plain = learner.logp(model, batch), _learner(None).logp(_merged(model), batch)
    is_sampled = np.asarray(batch.is_sampled)
    assert np.abs(found - plain)[is_sampled].max() <= 1e-5
    assert np.abs(plain - _learner(None).logp(reference.random_model(ARCH), batch))[is_sampled].max() > 0.1


@pytest.mark.slow
def test_gradients_by_the_chain_rule():
    learner = _learner()
    model = _changed(learner)
    gradient, _ = learner.gradient(model, _batches())
    assert {path[-2].name for path, _ in jax.tree_util.tree_leaves_with_path(gradient)} == {
        f"{name}_{part}" for name in MATRICES for part in "ab"}
    # dL/dA = s dL/dW Bᵀ and dL/dB = s Aᵀ dL/dW, with dL/dW of the plain model that has the merged matrices.
    whole, _ = _learner(None).gradient(_merged(model), _batches())
    for name, axes in MATRICES.items():
        letters = LAYER_AXES[name].split()[1:]
        a, b = (np.asarray(getattr(model.layers, f"{name}_{part}")[...], np.float64) for part in "ab")
        w = np.asarray(getattr(whole.layers, name)[...], np.float64)
        for layer in range(ARCH.L):
            inputs, outputs = list(range(axes)), list(range(axes, len(letters)))
            expected_a = ALPHA / RANK * np.tensordot(w[layer], b[layer], (outputs, list(range(1, 1 + len(outputs)))))
            expected_b = ALPHA / RANK * np.tensordot(a[layer], w[layer], (inputs, inputs))
            for part, expected in (("a", expected_a), ("b", expected_b)):
                found = np.asarray(getattr(gradient.layers, f"{name}_{part}")[...])[layer]
                assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.slow
def test_only_the_change_learns_beside_a_bfloat16_base():
    learner = _learner(param_dtype=jnp.bfloat16)
    state = learner.begin(jax.tree.map(lambda x: x.astype(jnp.bfloat16), reference.random_model(ARCH)))
    before = reference.parameters(state.params, np.float32)
    low_rank = np.asarray(state.params.layers.qkv_b[...])
    kept = sum(x.size for x in jax.tree.leaves(state.opt))
    gradient, _ = learner.gradient(state.params, _batches())
    state, _ = learner.update(state, gradient)
    for name, x in reference.parameters(state.params, np.float32).items():
        np.testing.assert_array_equal(x, before[name])
    assert state.params.embed.dtype == jnp.bfloat16 and state.params.layers.qkv_b.dtype == jnp.float32
    assert np.abs(np.asarray(state.params.layers.qkv_b[...]) - low_rank).max() > 0.01
    inputs = {"qkv": ARCH.D, "out": ARCH.N * ARCH.H, "gate_up": ARCH.D, "down": ARCH.F}
    outputs = {"qkv": ARCH.K * (ARCH.G + 2) * ARCH.H, "out": ARCH.D, "gate_up": 2 * ARCH.F, "down": ARCH.D}
    size = ARCH.L * RANK * sum(inputs[name] + outputs[name] for name in MATRICES)
    assert size == ARCH.low_rank_parameters(RANK, MATRICES)
    assert kept == 2 * size + 2  # two moments of the change, two counts


def test_the_sampler_uses_it_unmerged():
    model = _changed(_learner())
    prompt = np.arange(9, dtype=np.int32)
    engine = Engine(ARCH, EngineSettings(groups=1, samples=2, prefix_buckets=(16,), branch_buckets=(24,), stop_ids=(),
                                         ticks=20), reference.one_device())
    engine.load(model, 0)
    engine.open(0, prompt, 2, max_branch_tokens=24)
    for sample in range(2):
        engine.draw(0, sample, 20)
    p = _by_hand(model)
    turns = [turn for _, _, turn in engine.tick()]
    assert len(turns) == 2
    for turn in turns:
        assert np.abs(turn.logp - reference.answer_logp(p, ARCH, prompt, turn.ids)).max() <= 1e-5


def test_a_merged_model_is_written_and_read(tmp_path):
    model = _changed(_learner())
    hf_weights.write(tmp_path, ARCH, model, "float32")
    again = hf_weights.load(str(tmp_path), ARCH, _learner(None).abstract.params)
    for name, x in _by_hand(model).items():
        np.testing.assert_allclose(reference.parameters(again)[name], x, atol=1e-6)
    base = hf_weights.load(str(tmp_path), ARCH, _learner().base)  # and a new change on top of it
    fresh = _learner().begin(base).params
    assert jax.tree.structure(fresh) == jax.tree.structure(_learner().abstract.params)
    assert not np.asarray(fresh.layers.down_b[...]).any() and np.asarray(fresh.layers.down_a[...]).any()


@pytest.mark.parametrize("kind", ["hf", "orbax"])
def test_what_is_added_to_a_bfloat16_base_is_not_rounded_to_it(tmp_path, kind):
    learner = _learner(param_dtype=jnp.bfloat16)
    model = jax.tree.map(lambda x, to: x.astype(to.dtype), _changed(_learner()), learner.abstract.params)
    export(tmp_path / "out", ARCH, model, kind, "float32", {}, {}, 20_000, lambda place: None)
    if kind == "hf":
        again = hf_weights.load(str(tmp_path / "out"), ARCH, _learner(None).abstract.params)
    else:
        with ocp.PyTreeCheckpointer() as checkpointer:
            found = checkpointer.restore(tmp_path / "out" / "params")
        again = jax.tree_util.tree_map_with_path(
            lambda path, _: next(jnp.asarray(x) for name, x in found.items() if name.endswith(parameter_name(path))),
            reference.random_model(ARCH))
    batch, = _batches()
    found, plain = learner.logp(model, batch), _learner(None).logp(again, batch)
    assert np.abs(found - plain)[np.asarray(batch.is_sampled)].max() <= 1e-5


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"targets": ()}, {"targets": ("qkv", "head")}])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="needed are a rank of at least 1 and targets out of qkv, out, gate_up, down"):
        Lora(**{"rank": 2, "alpha": 1.0, **wrong})
