"""Exactness: packed prefix/branch rows against every answer taken alone as one full sequence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_llama as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from swerl_jax.learn.batch import Branch, PackSettings, Prefixed, pack, padding_fraction
from swerl_jax.learn.learner import Learner, OptimizerSettings
from swerl_jax.learn.loss import LossSettings
from swerl_jax.policy.rows import target_logp

ARCH = reference.SMALL
TEMPERATURE, CLIP_LOW, CLIP_HIGH, BETA = 0.8, 0.1, 0.2, 0.3
# (prompt length, lengths of its answers): a prefix of nothing, two buckets of prefixes, groups wider than a row.
SIZES = [(1, [3, 12]), (9, [1, 7, 12, 5, 4]), (6, [9]), (15, [11, 2, 8, 12])]
LONGEST = 12
PACKINGS = {
    "several_rows_and_buckets": PackSettings((8, 16), (12, 24), block=4, max_branch_tokens=LONGEST, rows=2),
    "one_row_a_microbatch": PackSettings((14,), (24,), block=4, max_branch_tokens=LONGEST, rows=1),
    "one_big_batch": PackSettings((14,), (24,), block=4, max_branch_tokens=LONGEST, rows=6),
}


def _model(seed=0):
    # As narrow as a fresh model's, so that a rounded log-prob is not magnified by a ratio far from 1.
    return reference.random_model(ARCH, seed, spread=0.09)


@functools.cache
def _answers():
    """A list of dicts, one an answer: numbers that a learner is given, and float64 log-probs of the plain model."""
    rng = np.random.default_rng(3)
    p, frozen = reference.parameters(_model()), reference.parameters(_model(1))
    answers = []
    for index, (prompt_length, lengths) in enumerate(SIZES):
        prompt = rng.integers(0, ARCH.V, prompt_length).astype(np.int32)
        for n in lengths:
            ids = rng.integers(0, ARCH.V, n).astype(np.int32)
            logp = reference.answer_logp(p, ARCH, prompt, ids, TEMPERATURE)
            is_sampled = np.ones(n, bool)
            is_sampled[2:4] = n < 6  # longer answers hold an observation, which carries no loss
            answers.append({
                "group": index, "prompt": prompt, "ids": ids, "is_sampled": is_sampled, "logp": logp,
                "old": (logp + rng.normal(0, 0.25, n)).astype(np.float32),  # the clip is active on both sides
                "ref": reference.answer_logp(frozen, ARCH, prompt, ids, TEMPERATURE),
                "advantage": float(rng.normal()), "weight": 1 / (12 * int(is_sampled.sum()))})
    return answers


def _groups(logp="old"):
    groups = []
    for index in range(len(SIZES)):
        mine = [a for a in _answers() if a["group"] == index]
        branches = [Branch(a["ids"], a["is_sampled"], a[logp], a["advantage"], a["weight"]) for a in mine]
        groups.append(Prefixed(mine[0]["prompt"], branches))
    return groups


@functools.cache
def _learner():
    loss = LossSettings("clip", CLIP_LOW, CLIP_HIGH, BETA, TEMPERATURE)
    return Learner(ARCH, reference.one_device(), OptimizerSettings(0.1, "constant", 0, 1), loss, vocabulary_chunk=5)


@functools.cache
def _ours(packing):
    """({parameter: gradient}, sums) of packed rows; the reference policy's log-probs are packed as the sampler's are."""
    ref_logp = [batch.logp for batch in pack(_groups("ref"), PACKINGS[packing])]
    gradient, sums = _learner().gradient(_model(), pack(_groups(), PACKINGS[packing]), ref_logp)
    return reference.parameters(gradient), sums


@functools.cache
def _plain():
    """(loss, {parameter: gradient}) in float64: each answer its own sequence, prompt repeated, nothing shared."""
    answers = _answers()
    longest = max(len(a["prompt"]) + len(a["ids"]) for a in answers)
    ids = np.zeros((len(answers), longest), np.int32)
    per_token = {name: np.zeros((len(answers), longest - 1)) for name in ("old", "ref", "advantage", "weight")}
    for i, a in enumerate(answers):
        ids[i, : len(a["prompt"]) + len(a["ids"])] = np.concatenate([a["prompt"], a["ids"]])
        for name, values in per_token.items():
            value = np.where(a["is_sampled"], a[name], 0)
            values[i, len(a["prompt"]) - 1:][: len(a["ids"])] = value

    def loss(p):
        p = {**p, "head": p["head"] / TEMPERATURE}
        logp = reference.sequence_logp(p, ARCH, ids)
        ratio = jnp.exp(logp - per_token["old"])
        a = per_token["advantage"]
        surrogate = jnp.where(a > 0, jnp.minimum(ratio, 1 + CLIP_HIGH), jnp.maximum(ratio, 1 - CLIP_LOW)) * a
        gap = per_token["ref"] - logp
        return (per_token["weight"] * (-surrogate + BETA * (jnp.exp(gap) - gap - 1))).sum()

    with jax.enable_x64(True):
        value, gradient = jax.jit(jax.value_and_grad(loss))(reference.parameters(_model()))
        return float(value), {name: np.asarray(g) for name, g in gradient.items()}


def _distance(ours, expected):
    assert ours.keys() == expected.keys()
    return max(np.abs(ours[name] - expected[name]).max() / np.abs(expected[name]).max() for name in expected)


@pytest.mark.parametrize("packing", [
    pytest.param(name, marks=pytest.mark.slow) if name == "one_row_a_microbatch" else name for name in PACKINGS])
def test_loss_and_gradients_equal_the_unshared_computation(packing):
    loss, gradient = _plain()
    ours, sums = _ours(packing)
    assert sums["loss"] == pytest.approx(loss, rel=1e-5)
    assert _distance(ours, gradient) <= 1e-5


def test_accumulation_equals_one_big_batch():
    accumulated, sums = _ours("one_row_a_microbatch")
    whole, whole_sums = _ours("one_big_batch")
    assert len(pack(_groups(), PACKINGS["one_row_a_microbatch"])) >= 5
    assert len(pack(_groups(), PACKINGS["one_big_batch"])) == 1
    assert _distance(accumulated, whole) <= 1e-6
    assert sums["loss"] == pytest.approx(whole_sums["loss"], rel=1e-6)


def test_sums_over_tokens_equal_the_unshared_ones():
    tokens = [(a["logp"][i], a["old"][i], a["ref"][i], a["advantage"])
              for a in _answers() for i in np.flatnonzero(a["is_sampled"])]
    logp, old, ref, advantage = np.array(tokens).T
    _, sums = _ours("several_rows_and_buckets")
    assert sums["tokens"] == len(tokens)
    assert sums["logp_diff"] == pytest.approx(np.abs(logp - old).sum(), rel=1e-5)
    assert sums["logp_diff_max"] == pytest.approx(np.abs(logp - old).max(), rel=1e-5)
    assert sums["kl"] == pytest.approx((np.exp(ref - logp) - (ref - logp) - 1).sum(), rel=1e-5)
    low = (np.exp(logp - old) < 1 - CLIP_LOW) & (advantage < 0)
    high = (np.exp(logp - old) > 1 + CLIP_HIGH) & (advantage > 0)
    assert low.sum() and high.sum(), "the test must exercise both clips"
    assert (sums["clip_low"], sums["clip_high"]) == (low.sum(), high.sum())


def test_log_probs_and_entropy_of_packed_rows():
    p = reference.parameters(_model())
    batch, = pack(_groups(), PACKINGS["one_big_batch"])
    got = _learner().logp(_model(), batch)[batch.is_sampled]
    expected = np.concatenate([a["logp"][a["is_sampled"]] for a in _answers()])
    assert np.abs(np.sort(got) - np.sort(expected)).max() <= 1e-5
    entropy = 0.0
    for a in _answers():
        table = reference.log_softmax(reference.logits(p, ARCH, np.concatenate([a["prompt"], a["ids"]])) / TEMPERATURE)
        per_token = -(np.exp(table) * table).sum(-1)[len(a["prompt"]) - 1:-1]
        entropy += per_token[a["is_sampled"]].sum()
    assert _ours("one_big_batch")[1]["entropy"] == pytest.approx(entropy, rel=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
def test_targets_in_chunks_equal_a_plain_softmax(chunk):
    rng = np.random.default_rng(0)
    hidden, unembed = rng.normal(size=(2, 7, 8)).astype(np.float32), rng.normal(size=(53, 8)).astype(np.float32)
    target = rng.integers(0, 53, (2, 7)).astype(np.int32)
    weight = rng.normal(size=(2, 7)).astype(np.float32)

    def ours(hidden, unembed):
        logp, entropy = target_logp(hidden, unembed, target, 0.5, chunk)
        return (weight * logp).sum() + 0 * entropy.sum(), (logp, entropy)

    gradients, (logp, entropy) = jax.jit(jax.grad(ours, (0, 1), has_aux=True))(hidden, unembed)
    table = reference.log_softmax(hidden.astype(np.float64) @ unembed.T.astype(np.float64) / 0.5)
    np.testing.assert_allclose(logp, np.take_along_axis(table, target[..., None], -1)[..., 0], atol=5e-6)
    # A logit of 15 is rounded to 1e-6, and so is every probability, relatively.
    np.testing.assert_allclose(entropy, -(np.exp(table) * table).sum(-1), atol=2e-5)
    by_logits = (np.eye(53)[target] - np.exp(table)) * weight[..., None] / 0.5
    for got, expected in zip(gradients, (by_logits @ unembed, np.einsum("btv,btd->vd", by_logits, hidden)), strict=True):
        assert np.abs(got - expected).max() <= 1e-6 * np.abs(expected).max()


@st.composite
def _anything(draw):
    """(groups, settings) with numbers that name each token uniquely."""
    block = draw(st.sampled_from([1, 2, 4]))
    longest = draw(st.integers(1, 9))
    padded = -(-longest // block) * block
    buckets = tuple(sorted({padded * m for m in draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))}))
    settings_ = PackSettings((0, 3, 11), buckets, block, longest, draw(st.integers(1, 3)))
    lengths = st.lists(st.integers(1, longest), min_size=1, max_size=6)
    groups, unique = [], iter(range(1, 10_000))
    for prompt_length, answers in draw(st.lists(st.tuples(st.integers(1, 12), lengths), min_size=1, max_size=4)):
        prompt = np.array([next(unique) for _ in range(prompt_length)], np.int32)
        branches = [Branch(np.array([next(unique) for _ in range(n)], np.int32), np.arange(n) % 3 != 1,
                           -np.arange(1, n + 1, dtype=np.float32), float(next(unique)), 1 / 8) for n in answers]
        groups.append(Prefixed(prompt, branches))
    return groups, settings_


def _unpacked(batch):
    """[(prompt, answer, is_sampled, logp, advantage, weight)] as the arrays alone tell; checks the layout on the way."""
    S, block = batch.shape.S, batch.shape.block
    for row in range(batch.ids.shape[0]):
        prefix = int(batch.is_valid[row, :S].sum())
        np.testing.assert_array_equal(batch.position[row, :prefix], np.arange(prefix))
        assert batch.is_valid[row, :prefix].all()
        is_valid, start = batch.is_valid[row, S:], batch.branch_start[row]
        np.testing.assert_array_equal(start[~is_valid], np.flatnonzero(~is_valid))
        for first in np.unique(start[is_valid]):
            inside = np.flatnonzero(is_valid & (start == first))
            assert first % block == 0 and inside[0] == first and inside[-1] - first == len(inside) - 1
            assert inside[-1] // block * block - first <= batch.shape.window, "a key lies outside its query's window"
            np.testing.assert_array_equal(batch.position[row, S + inside], prefix + np.arange(len(inside)))
            answer = batch.target[row, inside]
            np.testing.assert_array_equal(batch.ids[row, S + inside[1:]], answer[:-1])
            prompt = [*batch.ids[row, :prefix], batch.ids[row, S + first]]
            yield (tuple(prompt), tuple(answer),
                   *(tuple(x[row, inside]) for x in (batch.is_sampled, batch.logp, batch.advantage, batch.weight)))


@settings(max_examples=150)
@given(_anything())
def test_packing_keeps_every_branch_exactly_once(case):
    groups, pack_settings = case
    batches = pack(groups, pack_settings)
    expected = [(tuple(g.prompt), tuple(b.ids), tuple(b.is_sampled), *(tuple(np.where(b.is_sampled, x, 0)) for x in
                 (b.logp, b.advantage, b.weight))) for g in groups for b in g.branches]
    assert sorted(branch for batch in batches for branch in _unpacked(batch)) == sorted(expected)
    sampled = sum(int(b.is_sampled.sum()) for g in groups for b in g.branches)
    assert sum(float(b.weight.sum()) for b in batches) == sampled / 8  # eighths: exact in float32
    assert sum(int(b.is_sampled.sum()) for b in batches) == sampled
    for batch in batches:
        width = batch.ids.shape[1] - batch.shape.S
        assert batch.ids.shape[0] == pack_settings.rows and batch.shape.S in pack_settings.prefix_buckets
        assert batch.target.shape == (pack_settings.rows, width)
        ends = [int(np.flatnonzero(row)[-1]) + 1 for row in batch.is_valid[:, batch.shape.S:] if row.any()]
        assert width == min(size for size in pack_settings.branch_buckets if size >= max(ends))


def test_padding_fraction_by_hand():
    ids = np.arange(5, dtype=np.int32)
    branch = Branch(ids, np.ones(5, bool), np.zeros(5, np.float32), 1.0, 1.0)
    batches = pack([Prefixed(np.arange(4, dtype=np.int32), [branch])], PackSettings((6,), (8,), 4, 8, 2))
    assert padding_fraction(batches) == pytest.approx(1 - (3 + 5) / (2 * (6 + 8)))


def test_a_group_is_dealt_over_the_fewest_rows():
    branches = [Branch(np.zeros(n, np.int32), np.ones(n, bool), np.zeros(n, np.float32), 1.0, 1.0)
                for n in (4, 8, 4, 8, 8)]
    batches = pack([Prefixed(np.zeros(3, np.int32), branches)], PackSettings((2,), (16,), 4, 8, 2))
    assert len(batches) == 1 and batches[0].is_valid[:, :2].all()  # 32 tokens in two rows of 16, the prefix in both


@pytest.mark.parametrize(("prompt_length", "answer_length", "message"),
                         [(18, 4, "17 tokens do not fit"), (5, 13, "13 tokens"), (5, 25, "25 tokens"), (5, 0, "0 tokens")])
def test_what_does_not_fit_is_refused(prompt_length, answer_length, message):
    branch = Branch(np.zeros(answer_length, np.int32), np.ones(answer_length, bool),
                    np.zeros(answer_length, np.float32), 1.0, 1.0)
    with pytest.raises(ValueError, match=message):
        pack([Prefixed(np.zeros(prompt_length, np.int32), [branch])], PACKINGS["several_rows_and_buckets"])


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="does not hold one answer of 13"):
        PackSettings((8,), (12,), 4, 13, 1)
    with pytest.raises(ValueError, match="no multiples of the block"):
        PackSettings((8,), (12, 18), 4, 12, 1)
