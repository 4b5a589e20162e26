"""The engine: what it draws is what the learner recomputes and what a plain model says, whatever the schedule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_llama as reference

from swerl_jax.data.records import LENGTH, STOP
from swerl_jax.learn.batch import Branch, PackSettings, Prefixed, pack
from swerl_jax.learn.learner import Learner, OptimizerSettings
from swerl_jax.learn.loss import LossSettings
from swerl_jax.policy.engine import Engine, EngineSettings, turn_key
from swerl_jax.policy.engine_steps import EngineSteps
from swerl_jax.policy.mesh import make_mesh

ARCH = reference.SMALL
STOPS = (7, 30)
TEMPERATURE = 0.9


def _settings(**changes):
    return EngineSettings(**{**dict(groups=2, samples=3, prefix_buckets=(16,), branch_buckets=(24,), stop_ids=STOPS,
                                    ticks=8, extend_tokens=8, temperature=TEMPERATURE, seed=1), **changes})


def _new_engine(mesh=None, **changes):
    mesh = mesh or reference.one_device()
    engine = Engine(ARCH, _settings(**changes), mesh)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    engine.load(jax.device_put(reference.random_model(ARCH), everywhere), version=3)
    return engine


_engine = functools.cache(_new_engine)  # an engine whose groups are all closed is as good as a new one


def _prompt(group):
    """A prompt of 1 to 16 ids; its prefix has one fewer."""
    rng = np.random.default_rng(group)
    return rng.integers(0, ARCH.V, (6, 16, 1, 11, 9, 13, 2, 15)[group % 8]).astype(np.int32)


def _finish(engine, wanted):
    """{(group, sample): turn} once every one of `wanted` has ended."""
    turns = {}
    for _ in range(200):
        turns.update({(group, sample): turn for group, sample, turn in engine.tick()})
        if turns.keys() >= set(wanted):
            return turns
    raise AssertionError(f"no end after 200 ticks; missing {set(wanted) - turns.keys()}")


def _run(engine, groups, samples=3, max_tokens=20):
    """Opens the groups in order, draws every branch once, closes; {(group, sample): turn}."""
    names = [(group, sample) for group in groups for sample in range(samples)]
    for group in groups:
        engine.open(group, _prompt(group), samples, max_branch_tokens=24)
    for name in names:
        engine.draw(*name, max_tokens)
    turns = _finish(engine, names)
    for name in names:
        engine.close(*name)
    assert engine.is_idle
    return turns


def _learned(turns, dtype=jnp.float32):
    """(sampler's log-probs, learner's recomputation from ids alone), in one order, of {(group, sample): turn}."""
    learner = Learner(ARCH, reference.one_device(), OptimizerSettings(0.1, "constant", 0, 1),
                      LossSettings(temperature=TEMPERATURE), vocabulary_chunk=16, remat="none", dtype=dtype)
    groups = [Prefixed(_prompt(group), [Branch(turn.ids, np.ones(len(turn.ids), bool), turn.logp, 1.0, 1.0)
                                        for name, turn in turns.items() if name[0] == group])
              for group in sorted({group for group, _ in turns})]
    batch, = pack(groups, PackSettings((16,), (72,), 8, 24, rows=len(groups)))
    return batch.logp[batch.is_sampled], learner.logp(reference.random_model(ARCH), batch)[batch.is_sampled]


def _assert_same(one, other, atol=0.0):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name].ids, other[name].ids)
        np.testing.assert_allclose(one[name].logp, other[name].logp, rtol=0, atol=atol)
        assert one[name].stop_reason == other[name].stop_reason


@pytest.mark.parametrize("is_unrolled", [pytest.param(True, id="unrolled", marks=pytest.mark.slow), pytest.param(False, id="scan")])
def test_the_learner_recomputes_the_samplers_log_probs(is_unrolled):
    engine = _engine() if is_unrolled else _engine(is_unrolled=False, ticks=20)
    turns = _run(engine, [0, 1, 2])
    sampled, recomputed = _learned(turns)
    assert len(sampled) == sum(len(t.ids) for t in turns.values()) > 80
    assert np.abs(sampled - recomputed).max() <= 1e-5
    p = reference.parameters(reference.random_model(ARCH))
    for (group, _), turn in turns.items():
        expected = reference.answer_logp(p, ARCH, _prompt(group), turn.ids, TEMPERATURE)
        assert np.abs(turn.logp - expected).max() <= 1e-5


def test_bfloat16_log_probs():
    sampled, recomputed = _learned(_run(_engine(dtype=jnp.bfloat16, ticks=20), [0, 1, 2]), jnp.bfloat16)
    assert np.abs(sampled - recomputed).mean() <= 0.006


def test_greedy_equals_a_plain_argmax_step_by_step():
    engine = _engine(temperature=0.0, stop_ids=(), ticks=24)
    turn = _run(engine, [3], samples=1, max_tokens=24)[3, 0]
    p, ids = reference.parameters(reference.random_model(ARCH)), _prompt(3).tolist()
    for id_, logp in zip(turn.ids, turn.logp, strict=True):
        table = reference.log_softmax(reference.logits(p, ARCH, np.array(ids))[-1])
        assert id_ == table.argmax()
        assert logp == pytest.approx(table.max(), abs=1e-5)
        ids.append(int(id_))
    assert len(turn.ids) == 24 and turn.stop_reason == LENGTH and turn.version == 3


def test_a_turn_ends_with_its_first_stop_id_or_at_its_limit():
    turns = _run(_engine(), [0, 1, 2, 3], max_tokens=13)
    assert {turn.stop_reason for turn in turns.values()} == {STOP, LENGTH}, "the test must see both ends"
    for turn in turns.values():
        stops = np.isin(turn.ids, STOPS)
        assert not stops[:-1].any() and stops[-1] == (turn.stop_reason == STOP)
        assert len(turn.ids) == 13 or turn.stop_reason == STOP
        assert len(turn.ids) == len(turn.logp) <= 13 and turn.version == 3


@pytest.mark.parametrize("cache", ["model", "int8"])
def test_a_branch_depends_on_no_slot_or_order(cache):
    engine = _engine(cache=cache)
    together = _run(engine, [0, 1, 2, 3])
    _assert_same(together, _run(engine, [3, 2, 1, 0]))
    _assert_same(together, {name: turn for group in range(4) for name, turn in _run(engine, [group]).items()})
    assert len({tuple(turn.ids) for turn in together.values()}) == 12, "every branch draws its own random numbers"


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1), (3, 1, 0, 2)])
def test_a_branch_depends_on_no_neighbour_that_came_earlier(order):
    engine = _engine()
    expected, turns = _run(engine, [0, 1, 2, 3]), {}
    for i, group in enumerate(order):
        engine.open(group, _prompt(group), 3, max_branch_tokens=24)
        for sample in range(3):
            engine.draw(group, sample, 20)
        for _ in range(i % 3 + 1):
            turns.update({(group, sample): turn for group, sample, turn in engine.tick()})
    turns.update(_finish(engine, expected.keys() - turns.keys()))
    for name in turns:
        engine.close(*name)
    # A longer neighbour makes the sums over a branch's past longer by zeros, which may round in another order.
    _assert_same(turns, expected, atol=2e-6)


def test_keys_are_of_their_turn_alone():
    keys = [turn_key(seed, purpose, group, sample, turn).tobytes() for seed in (0, 1) for purpose in ("train", "eval")
            for group in (0, 1, 2**40) for sample in (0, 1) for turn in (0, 1)]
    assert len(set(keys)) == len(keys) == 48


def test_finished_slots_are_filled_again_without_compiling():
    engine = _new_engine(prefix_buckets=(8, 16), ticks=10)
    _run(engine, [0, 1, 2])
    before = engine.compilations
    # Two prefix buckets, and decoding with 0 or 10 columns of past; nothing is extended.
    assert before == 2 + 2
    drawn = engine.tokens_drawn
    turns = _run(engine, range(3, 10))
    assert engine.compilations == before
    assert engine.tokens_drawn - drawn == sum(len(turn.ids) for turn in turns.values())


def test_a_group_wider_than_the_lanes_is_dealt_over_slots():
    engine = _engine()
    wide = _run(engine, [1], samples=7)
    assert len(wide) == 7
    _assert_same({name: turn for name, turn in wide.items() if name[1] < 3}, _run(engine, [1]))


def _episode(engine, group, disturb=lambda turn: None):
    """Three turns with observations between them: [(ids, is_sampled, logp)] of the whole branch."""
    engine.open(group, _prompt(group), 2, max_branch_tokens=24)
    ids, is_sampled, logp = [], [], []
    for turn_index, observation in enumerate([[], [3, 1, 4, 1, 5, 9], [2]]):
        engine.draw(group, 1, 5, ids=np.array(observation, np.int32) if observation else None)
        turn = _finish(engine, [(group, 1)])[group, 1]
        ids += [*observation, *turn.ids]
        is_sampled += [False] * len(observation) + [True] * len(turn.ids)
        logp += [0.0] * len(observation) + turn.logp.tolist()
        disturb(turn_index)
    engine.close(group, 1)
    engine.close(group, 0)
    assert engine.is_idle
    return np.array(ids), np.array(is_sampled), np.array(logp)


def test_an_episode_of_three_turns_survives_eviction():
    engine = _engine()
    ids, is_sampled, logp = _episode(engine, 5)
    assert is_sampled.sum() > 8 and (~is_sampled).sum() == 7
    evicted = _episode(engine, 5, lambda turn: engine.evict(5))
    np.testing.assert_array_equal(evicted[0], ids)
    assert np.abs(evicted[2] - logp).max() <= 1e-5
    p = reference.parameters(reference.random_model(ARCH))
    expected = reference.answer_logp(p, ARCH, _prompt(5), ids, TEMPERATURE)
    assert np.abs(expected - logp)[is_sampled].max() <= 1e-5
    # The learner sees the same branch, observations included and not scored.
    learner = Learner(ARCH, reference.one_device(), OptimizerSettings(0.1, "constant", 0, 1),
                      LossSettings(temperature=TEMPERATURE), remat="none")
    batch, = pack([Prefixed(_prompt(5), [Branch(ids, is_sampled, logp, 1.0, 1.0)])], PackSettings((16,), (24,), 8, 24, 1))
    recomputed = learner.logp(reference.random_model(ARCH), batch)[batch.is_sampled]
    assert np.abs(recomputed - logp[is_sampled]).max() <= 1e-5


def test_an_episode_gives_up_its_slots_while_it_waits_for_the_world():
    engine = _engine()
    undisturbed = _episode(engine, 5)

    def others(turn):
        names = [(100 + 10 * turn + group, 0) for group in range(2)]  # as many groups as there are slots
        for group, sample in names:
            engine.open(group, _prompt(group), 1, max_branch_tokens=24)
            engine.draw(group, sample, 4)
        _finish(engine, names)
        for name in names:
            engine.close(*name)

    disturbed = _episode(engine, 5, others)
    np.testing.assert_array_equal(disturbed[0], undisturbed[0])
    assert np.abs(disturbed[2] - undisturbed[2]).max() <= 1e-5


def test_eviction_in_the_middle_of_a_turn():
    engine = _engine()
    expected = _run(engine, [1], samples=2)
    assert max(len(turn.ids) for turn in expected.values()) > 8, "the turn must span two chunks"
    engine.open(1, _prompt(1), 2, max_branch_tokens=24)
    engine.draw(1, 0, 20)
    engine.draw(1, 1, 20)
    turns = {(group, sample): turn for group, sample, turn in engine.tick()}
    engine.evict(1)
    turns.update(_finish(engine, expected.keys() - turns.keys()))
    engine.close(1, 0)
    engine.close(1, 1)
    _assert_same(turns, expected, atol=1e-5)


def test_caches_grow_for_a_larger_group_while_others_draw():
    expected = _run(_engine(), [1])
    engine = _new_engine(branch_buckets=(24, 40), ticks=16)
    engine.open(1, _prompt(1), 3, max_branch_tokens=24)
    for sample in range(3):
        engine.draw(1, sample, 20)
    turns = {(group, sample): turn for group, sample, turn in engine.tick()}
    assert len(turns) < 3, "a branch must be in the middle of its turn"
    engine.open(3, _prompt(3), 1, max_branch_tokens=40)
    engine.draw(3, 0, 40)
    turns.update(_finish(engine, [*(expected.keys() - turns.keys()), (3, 0)]))
    large = turns.pop((3, 0))
    _assert_same(turns, expected, atol=1e-5)
    p = reference.parameters(reference.random_model(ARCH))
    assert np.abs(large.logp - reference.answer_logp(p, ARCH, _prompt(3), large.ids, TEMPERATURE)).max() <= 1e-5


def test_eight_devices_draw_what_one_draws():
    groups = range(8)
    options = dict(groups=8, samples=2, ticks=20)
    mesh = make_mesh({"fsdp": 8}, jax.devices()[:8])
    expected = _run(_engine(**options), groups, samples=2)
    engine = _new_engine(mesh, **options)
    turns = _run(engine, groups, samples=2)
    _assert_same(turns, expected, atol=1e-5)
    key = jax.tree.leaves(engine._caches.branch)[0]
    assert len(key.sharding.device_set) == 8 and key.addressable_shards[0].data.shape[0] == 1, "a slot a device"
    before = engine.compilations
    _run(engine, groups, samples=2)
    assert engine.compilations == before


# What is refused


def test_bad_calls_say_what_is_wrong():
    engine = _engine()
    with pytest.raises(ValueError, match="group 9 is not open"):
        engine.draw(9, 0, 5)
    with pytest.raises(ValueError, match="prompt of group 9 of 17 tokens does not fit the largest bucket 16"):
        engine.open(9, np.zeros(18, np.int32), 1, max_branch_tokens=24)
    with pytest.raises(ValueError, match="answer limit of group 9 of 25 tokens does not fit the largest bucket 24"):
        engine.open(9, _prompt(0), 1, max_branch_tokens=25)
    with pytest.raises(ValueError, match="prompt of 0 tokens"):
        engine.open(9, np.zeros(0, np.int32), 1, max_branch_tokens=24)
    with pytest.raises(ValueError, match="0 samples"):
        engine.open(9, _prompt(0), 0, max_branch_tokens=24)
    assert engine.is_idle


def test_bad_calls_on_an_open_group():
    engine = _engine()
    engine.open(9, _prompt(0), 4, max_branch_tokens=10)
    with pytest.raises(ValueError, match="group 9 is open already"):
        engine.open(9, _prompt(0), 1, max_branch_tokens=10)
    with pytest.raises(ValueError, match="no branch 4"):
        engine.draw(9, 4, 1)
    with pytest.raises(ValueError, match="asks for 11 tokens and has room for 10"):
        engine.draw(9, 0, 11)
    with pytest.raises(ValueError, match="asks for 5 tokens and has room for 4"):
        engine.draw(9, 0, 5, ids=np.zeros(6, np.int32))
    with pytest.raises(ValueError, match="asks for 0 tokens"):
        engine.draw(9, 0, 0)
    engine.draw(9, 0, 10)
    with pytest.raises(ValueError, match="is drawing already"):
        engine.draw(9, 0, 1)
    for sample in range(3):
        engine.close(9, sample)  # all of the first slot's lanes; the group is open still
    with pytest.raises(ValueError, match="group 9 is open already"):
        engine.open(9, _prompt(0), 1, max_branch_tokens=10)
    engine.close(9, 3)
    assert engine.is_idle and engine.tick() == []


def test_a_closed_branch_draws_no_more():
    engine = _engine()
    engine.open(9, _prompt(0), 2, max_branch_tokens=10)
    engine.close(9, 0)
    with pytest.raises(ValueError, match="branch 0 of group 9 is closed"):
        engine.draw(9, 0, 1)
    engine.close(9, 1)


def test_weights_change_between_groups_only():
    engine = _new_engine(ticks=20)
    engine.open(0, _prompt(0), 1, max_branch_tokens=24)
    with pytest.raises(RuntimeError, match="1 groups are open"):
        engine.load(reference.random_model(ARCH, 1), 4)
    engine.close(0, 0)
    engine.load(reference.random_model(ARCH, 1), 4)
    turn = _run(engine, [0], samples=1)[0, 0]
    assert turn.version == 4
    p = reference.parameters(reference.random_model(ARCH, 1))
    assert np.abs(turn.logp - reference.answer_logp(p, ARCH, _prompt(0), turn.ids, TEMPERATURE)).max() <= 1e-5


def test_weights_may_go_between_groups():
    engine = _new_engine(ticks=20)
    before = _run(engine, [0], samples=1)
    engine.open(1, _prompt(1), 1, max_branch_tokens=24)
    with pytest.raises(RuntimeError, match="1 groups are open"):
        engine.unload()
    engine.close(1, 0)
    engine.unload()
    with pytest.raises(RuntimeError, match="load"):
        engine.open(0, _prompt(0), 1, max_branch_tokens=24)
    engine.load(reference.random_model(ARCH), 3)
    _assert_same(_run(engine, [0], samples=1), before, atol=0)


def test_stacked_weights_are_the_learners_cast_and_gathered():
    mesh = make_mesh({"fsdp": 8}, jax.devices()[:8])
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    model = jax.device_put(reference.random_model(ARCH), everywhere)
    loaded = EngineSteps(ARCH, _settings(is_unrolled=False, dtype=jnp.bfloat16), mesh).load(model)
    for ours, x in zip(jax.tree.leaves(loaded), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(x.astype(jnp.bfloat16)))
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(loaded)), "no part of a weight is elsewhere"


def test_an_engine_without_weights_says_so():
    engine = Engine(ARCH, _settings(), reference.one_device())
    with pytest.raises(RuntimeError, match="load"):
        engine.open(0, _prompt(0), 1, max_branch_tokens=24)
