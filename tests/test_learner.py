"""The learner's step by numbers: advantages, weights, losses, AdamW, what is skipped, what is sharded."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_llama as reference

from swerl_jax.learn import advantage, loss
from swerl_jax.learn.batch import Branch, PackSettings, Prefixed, pack
from swerl_jax.learn.learner import Learner, OptimizerSettings, from_arrays, rounded, to_arrays
from swerl_jax.learn.loss import LossSettings
from swerl_jax.policy.arch import Arch
from swerl_jax.policy.mesh import make_mesh

# Every cut axis divides among eight fsdp or two tensor shards.
ARCH = Arch(V=48, D=32, L=2, N=4, K=2, H=8, F=24)
WARM = OptimizerSettings(learning_rate=0.02, schedule="cosine", warmup_steps=2, total_steps=6, weight_decay=0.1,
                         max_grad_norm=0.05)
LARGE = dataclasses.replace(WARM, schedule="constant", warmup_steps=0, weight_decay=0.0, max_grad_norm=1e9)


@functools.cache
def _learner(optimizer=WARM, **sizes):
    sizes = sizes or {"fsdp": 1}
    mesh = make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
    return Learner(ARCH, mesh, optimizer, LossSettings(clip_low=0.2, clip_high=0.2), vocabulary_chunk=8, remat="none")


@functools.cache
def _narrow():
    return Learner(ARCH, make_mesh({"fsdp": 1}, jax.devices()[:1]), LARGE, LossSettings("nll"), param_dtype=jnp.bfloat16,
                   vocabulary_chunk=8, remat="none")


@functools.cache
def _batches():
    """Two microbatches of eight rows, half of the advantages negative; old log-probs are the initial policy's."""
    rng = np.random.default_rng(0)
    settings = PackSettings((4,), (8,), block=4, max_branch_tokens=8, rows=8)

    def groups(logp):
        return [Prefixed(prompt, [Branch(ids, np.ones(len(ids), bool), old, sign, 1 / 60)
                                  for ids, old, sign in zip(answers, logp[i], (1.0, -1.0))])
                for i, (prompt, answers) in enumerate(drawn)]

    drawn = [(rng.integers(0, 48, 4), [rng.integers(0, 48, n) for n in (7, 5)]) for _ in range(5)]
    blank = pack(groups([[np.zeros(7), np.zeros(5)]] * 5), settings)
    learner = _learner()
    params = learner.init(0).params
    return [dataclasses.replace(b, logp=learner.logp(params, b) * b.is_sampled) for b in blank]


def _step(learner, state):
    gradient, sums = learner.gradient(state.params, _batches())
    state, report = learner.update(state, gradient)
    return state, {**report, **sums}


# Advantages and weights


def test_advantages_by_hand():
    # Mean 0.5, squared deviations 2.25, 0.25, 0.25, 0.25: population variance 0.75.
    std = math.sqrt(0.75) + 1e-6
    assert advantage.grpo([-1.0, 1.0, 1.0, 1.0]) == pytest.approx([-1.5 / std, *[0.5 / std] * 3])
    assert advantage.dr_grpo([-1.0, 1.0, 1.0, 1.0]) == [-1.5, 0.5, 0.5, 0.5]
    assert advantage.rloo([-1.0, 1.0, 1.0, 1.0]) == pytest.approx([-2.0, 2 / 3, 2 / 3, 2 / 3])


@pytest.mark.parametrize("kind", advantage.ADVANTAGES)
def test_a_group_that_teaches_nothing_gets_zeros(kind):
    assert advantage.group_advantages(kind, [0.3]) == [0.0]
    assert advantage.group_advantages(kind, [0.25] * 3) == [0.0] * 3
    assert advantage.group_advantages(kind, [None, None]) == [None, None]


def test_our_own_faults_leave_the_baseline():
    assert advantage.group_advantages("dr_grpo", [1.0, None, 0.0]) == [0.5, None, -0.5]
    assert advantage.is_constant([1.0, None, 1.0]) and advantage.is_constant([None]) and advantage.is_constant([])
    assert not advantage.is_constant([1.0, None, 0.0])


def test_token_weights_by_hand():
    assert advantage.token_weights("token_mean", [1, 3, 0]) == [1 / 4, 1 / 4, 0]
    assert advantage.token_weights("sequence_mean", [1, 3, 0]) == [1 / 2, 1 / 6, 0]
    assert advantage.token_weights("constant", [1, 3, 0], 10) == [1 / 20, 1 / 20, 0]
    with pytest.raises(ValueError, match="constant length"):
        advantage.token_weights("constant", [1])
    with pytest.raises(ValueError, match="unknown aggregation 'mean'"):
        advantage.token_weights("mean", [1])


# Losses of a token: ratio ½, 1 and 2 against clips at 0.8 and 1.3, for both signs of the advantage.

RATIO = np.array([0.5, 1.0, 2.0, 0.5, 1.0, 2.0])
ADVANTAGE = np.array([3.0, 3.0, 3.0, -3.0, -3.0, -3.0], np.float32)
CLIPS = LossSettings(clip_low=0.2, clip_high=0.3)
OLD = np.full(6, -1.0, np.float32)
LOGP = (OLD + np.log(RATIO)).astype(np.float32)


def _loss_and_slope(kind):
    value = loss.LOSSES[kind](LOGP, OLD, ADVANTAGE, CLIPS)
    slope = jax.grad(lambda logp: loss.LOSSES[kind](logp, OLD, ADVANTAGE, CLIPS).sum())(jnp.asarray(LOGP))
    return np.asarray(value), np.asarray(slope)


def test_clip_is_the_lower_bound_and_stops_gradients_beyond_it():
    value, slope = _loss_and_slope("clip")
    np.testing.assert_allclose(value, [-1.5, -3.0, -3.9, 2.4, 3.0, 6.0], rtol=1e-6)
    # d ratio / d log π = ratio, so −A·ratio where the unclipped term is the minimum.
    np.testing.assert_allclose(slope, [-1.5, -3.0, 0.0, 0.0, 3.0, 6.0], rtol=1e-6)
    low, high = loss.clipped_fractions(LOGP, OLD, ADVANTAGE, CLIPS)
    assert np.flatnonzero(low).tolist() == [3] and np.flatnonzero(high).tolist() == [2]
    np.testing.assert_array_equal(slope == 0, np.asarray(low | high))


def test_cispo_clips_the_weight_and_keeps_every_gradient():
    value, slope = _loss_and_slope("cispo")
    clipped = np.array([0.8, 1.0, 1.3, 0.8, 1.0, 1.3])
    np.testing.assert_allclose(value, -clipped * ADVANTAGE * LOGP, rtol=1e-6)
    np.testing.assert_allclose(slope, -clipped * ADVANTAGE, rtol=1e-6)


def test_nll_knows_no_ratio():
    value, slope = _loss_and_slope("nll")
    np.testing.assert_allclose(value, -ADVANTAGE * LOGP, rtol=1e-6)
    np.testing.assert_allclose(slope, -ADVANTAGE, rtol=1e-6)


def test_k3_by_hand():
    # π_ref / π = 2, 1, ½: 2 − ln 2 − 1, 0, ½ + ln 2 − 1.
    got = loss.k3(jnp.array([-2.0, -2.0, -2.0]), jnp.array([-2.0 + math.log(2), -2.0, -2.0 - math.log(2)]))
    np.testing.assert_allclose(got, [0.3068528, 0.0, 0.1931472], atol=1e-6)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown loss 'ppo'; choose one of"):
        LossSettings("ppo")
    with pytest.raises(ValueError, match="unknown schedule 'linear'"):
        dataclasses.replace(WARM, schedule="linear").rate()
    learner = Learner(ARCH, reference.one_device(), WARM, LossSettings(kl_coefficient=0.1))
    with pytest.raises(ValueError, match="pass the reference policy"):
        learner.gradient(None, [])


# The optimiser


def test_learning_rates_by_hand():
    # Two warm-up updates, then a half cosine over the four that are left: 1 − done = ¾, ½, ¼, 0.
    shares = [0.5, 1.0, (1 + math.cos(math.pi / 4)) / 2, 0.5, (1 + math.cos(3 * math.pi / 4)) / 2, 0.0, 0.0]
    rate = WARM.rate()
    np.testing.assert_allclose([rate(i) for i in range(7)], 0.02 * np.array(shares), atol=1e-8)
    np.testing.assert_allclose([LARGE.rate()(i) for i in (0, 99)], 0.02, rtol=1e-6)


def test_three_updates_equal_adamw_in_numpy():
    learner = _learner()
    state = learner.init(1)
    rng = np.random.default_rng(0)
    params = {name: np.asarray(x, np.float64) for name, x in to_arrays(state).items() if name.startswith("params")}
    moments = {name: [np.zeros_like(x), np.zeros_like(x)] for name, x in params.items()}
    for step, rate in enumerate([0.01, 0.02, 0.02 * (1 + math.cos(math.pi / 4)) / 2], start=1):
        # The first gradient is below the clip's norm of 0.05, the others far above.
        gradient = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * (1e-5 if step == 1 else 1.0), x.dtype),
                                state.params)
        flat = {f"params/{name}": np.asarray(x, np.float64) for name, x in to_arrays(gradient).items()}
        norm = math.sqrt(sum((g**2).sum() for g in flat.values()))
        state, report = learner.update(state, gradient)
        assert report == {"grad_norm": pytest.approx(norm, rel=1e-5), "lr": pytest.approx(rate, rel=1e-5), "skipped": 0}
        assert (norm > 0.05) == (step > 1)
        for name, x in params.items():
            g = flat[name] * min(1, 0.05 / norm)
            m, v = moments[name]
            m += 0.1 * (g - m)
            v += 0.05 * (g * g - v)
            unbiased = m / (1 - 0.9**step), v / (1 - 0.95**step)
            x -= rate * (unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8) + 0.1 * x)
    got = to_arrays(state)
    assert int(got["step"]) == 3
    for name, x in params.items():
        np.testing.assert_allclose(got[name], x, atol=2e-6)


def test_muon_turns_matrices_by_orthogonal_steps_and_leaves_the_rest_to_adam():
    learner = _learner(dataclasses.replace(LARGE, muon_learning_rate=0.05, max_grad_norm=1e9))
    state = learner.init(1)
    before = {name: np.array(x, np.float64) for name, x in to_arrays(state).items()}
    rng = np.random.default_rng(0)
    state, _ = learner.update(state, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), state.params))
    after = to_arrays(state)
    steps = {name.removeprefix("params/"): np.asarray(after[name], np.float64) - x for name, x in before.items()
             if name.startswith("params/")}
    A = ARCH
    for name, inputs, outputs in (("qkv", A.D, A.K * (A.G + 2) * A.H), ("out", A.N * A.H, A.D),
                                  ("gate_up", A.D, 2 * A.F), ("down", A.F, A.D)):
        for layer in steps.pop(f"layers/{name}"):
            values = np.linalg.svd(layer.reshape(inputs, outputs), compute_uv=False) / 0.05
            values /= math.sqrt(max(1, outputs / inputs))
            # Five rounds bring all but the smallest singular values near 1; the gradient's own spread over a factor of 5.
            assert 0.6 < np.quantile(values, 0.1) and values.max() < 1.3
    for name, step in steps.items():
        # The first step of Adam with Nesterov's momentum: b1·(1 − b1)·g / (1 − b1²) + g, over |g|.
        np.testing.assert_allclose(np.abs(step), 0.02 * (0.9 * 0.1 / 0.19 + 1), rtol=1e-3, err_msg=name)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad):
    learner = _learner()
    state = learner.init(1)
    state, _ = learner.update(state, jax.tree.map(jnp.ones_like, state.params))
    before = {name: np.array(x) for name, x in to_arrays(state).items()}
    gradient = jax.tree.map(jnp.ones_like, state.params)
    gradient.final_norm[...] = gradient.final_norm[...].at[3].set(bad)
    state, report = learner.update(state, gradient)
    assert report["skipped"] == 1 and not math.isfinite(report["grad_norm"])
    for name, x in to_arrays(state).items():
        np.testing.assert_array_equal(x, before[name])


def test_several_steps_on_one_batch_lower_the_loss_and_reach_the_clip():
    learner = _learner(LARGE)
    state, losses, clipped = learner.init(0), [], []
    for _ in range(4):
        state, report = _step(learner, state)
        losses.append(report["loss"])
        clipped.append((report["clip_low"], report["clip_high"]))
        assert report["tokens"] == 60
    assert clipped[0] == (0, 0) and min(clipped[-1]) > 0
    assert losses[-1] < losses[0] - 0.1
    assert learner.compilations == 2  # the gradient once for eight microbatches, the update once for four steps
    # In the first step every ratio is 1: the loss is −Σ A/60 = −(35 − 25)/60.
    assert losses[0] == pytest.approx(-1 / 6, abs=1e-5)


# Meshes, compilations, files


@functools.cache
def _one_step(**sizes):
    learner = _learner(WARM, **sizes)
    return learner, *_step(learner, learner.init(0))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"fsdp": 4, "tensor": 2}], ids=["fsdp8", "fsdp4_tensor2"])
def test_a_sharded_step_equals_the_single_devices(sizes):
    _, single, expected = _one_step(fsdp=1)
    learner, state, report = _one_step(**sizes)
    for name in expected.keys() - {"logp_diff", "logp_diff_max"}:  # those two are nothing but rounding here
        assert report[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6), name
    single, arrays = to_arrays(single), to_arrays(state)
    for name, x in arrays.items():
        wanted = np.asarray(single[name])
        # Adam's first step is about lr·sign(gradient): where a gradient is all rounding, so is the step.
        moment = np.abs(single.get(name.replace("params", "opt/0/mu"), 1.0))
        difference = np.abs(np.asarray(x) - wanted)[moment > 1e-3 * moment.max()] if x.ndim else np.abs(x - wanted)
        assert difference.max() <= 1e-5 * np.abs(wanted).max(), name
        whole = x.addressable_shards[0].data.size == x.size
        assert whole == (x.ndim == 0), f"{name} is replicated"
    _step(learner, state)
    assert learner.compilations == 2  # the gradient and the update, also when their own outputs come back


def test_a_state_goes_through_plain_arrays():
    learner, state, _ = _one_step(fsdp=1)
    arrays = to_arrays(state)
    assert {"step", "params/embed", "params/layers/qkv"} <= arrays.keys()
    assert len(arrays) == len(jax.tree.leaves(state))
    again = from_arrays(learner.abstract, {name: np.asarray(x) for name, x in arrays.items()})
    assert jax.tree.structure(again) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_the_initial_state_follows_from_its_seed():
    learner = _learner()
    a, b, c = (to_arrays(learner.init(seed)) for seed in (5, 5, 6))
    sharded = to_arrays(_learner(WARM, fsdp=8).init(5))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
        np.testing.assert_array_equal(a[name], sharded[name])
    assert np.abs(a["params/embed"] - c["params/embed"]).max() > 0.1
    # Scale of a fresh matrix: D^-0.5 = 0.177 for the embedding, narrowed by (2L)^-0.5 = ½ where it feeds the stream.
    assert np.std(a["params/embed"]) == pytest.approx(0.177, rel=0.1)
    assert np.std(a["params/layers/out"]) == pytest.approx(0.177 / 2, rel=0.1)


# Narrow numbers


def test_rounding_at_random_keeps_the_mean():
    """Between 1 and its bfloat16 neighbour 1 + 2⁻⁷, a quarter of the way: a quarter of the draws go up."""
    step = 2.0**-7
    x = jnp.full(4096, 1 + step / 4, jnp.float32)
    up, = np.nonzero(np.asarray(rounded(x, jax.random.key(3)), np.float32) == 1 + step)
    down, = np.nonzero(np.asarray(rounded(x, jax.random.key(3)), np.float32) == 1)
    assert len(up) + len(down) == 4096
    assert abs(len(up) / 4096 - 0.25) < 0.03  # four standard deviations
    exact = jnp.asarray([0.0, -1.5, 2.0**-100], jnp.float32)
    np.testing.assert_array_equal(np.asarray(rounded(exact, jax.random.key(1)), np.float32), exact)


def test_gradients_of_narrow_parameters_add_up_in_float32():
    """Of 300 equal parts none is lost: in bfloat16 the sum would stand still at 256 times one part."""
    learner, batch = _narrow(), _batches()[0]
    params = learner.init(0).params
    one, many = (to_arrays(learner.gradient(params, [batch] * count)[0]) for count in (1, 300))
    for name, x in one.items():
        assert x.dtype == many[name].dtype == jnp.float32 and float(jnp.abs(x).max()) > 0
        np.testing.assert_allclose(many[name], 300 * x, rtol=1e-5, err_msg=name)
    assert {x.dtype for x in jax.tree.leaves(learner.summed)} == {jnp.dtype(jnp.float32)}


@pytest.mark.slow
def test_narrow_moments_are_the_wide_ones_rounded():
    wide = _learner(LARGE)
    narrow = _learner(dataclasses.replace(LARGE, moments_dtype=jnp.bfloat16))
    (a, _), (b, _) = (_step(learner, learner.init(0)) for learner in (wide, narrow))
    for path, x in to_arrays(a).items():
        y = to_arrays(b)[path]
        if path.startswith("opt/") and x.ndim:
            assert y.dtype == jnp.bfloat16
            np.testing.assert_allclose(np.asarray(y, np.float32), x, rtol=2**-8)
        else:
            np.testing.assert_allclose(y, x, rtol=1e-6, err_msg=path)
    before = narrow.compilations
    _step(narrow, b)
    assert narrow.compilations == before
