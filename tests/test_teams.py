"""Engines of a run: how devices are cut into them, key heads held several times, and processes that draw together."""

import dataclasses
import types

import jax
import joined
import numpy as np
import pytest
import reference_llama as reference

from swerl_jax import config as config_lib, engines
from swerl_jax.learn.processes import ProcessError
from swerl_jax.policy import mesh as mesh_lib
from swerl_jax.policy.engine import Engine, Team
from swerl_jax.policy.engine_steps import EngineSettings
from swerl_jax.policy.engine_weights import axes, repeat_key_heads, with_key_heads
from swerl_jax.policy.llama import LAYER_AXES, Lora, parameter_name
from swerl_jax.policy.mesh import make_mesh
from swerl_jax.policy.team_engine import TeamEngine

LONGEST = 16
WIDE = dataclasses.replace(reference.SMALL, V=64, N=8, has_qkv_bias=True, has_qk_norm=True)  # two key heads of four queries


def devices(processes, each):
    return [types.SimpleNamespace(process_index=process) for process in range(processes) for _ in range(each)]


def config(tensor, together):
    return config_lib.update(config_lib.default(), {"mesh.tensor": tensor, "engine.devices": together})


@pytest.mark.parametrize(("processes", "each", "tensor", "together", "expected", "shared"), [
    (1, 1, 1, 0, (1, 1, 1, 1), (16, 32)), (1, 8, 2, 0, (1, 1, 2, 4), (16, 32)), (1, 8, 2, 8, (1, 1, 8, 1), (16, 32)),
    (4, 8, 2, 0, (4, 1, 2, 4), (16, 8)),
    (64, 4, 8, 0, (64, 1, 4, 1), (8, 1)),  # no more than a process has: half a group each
    (64, 4, 8, 8, (64, 2, 8, 1), (16, 1)), (64, 4, 8, 32, (64, 8, 32, 1), (16, 4)),
    (3, 1, 1, 0, (3, 1, 1, 1), (16, 11)),  # one has ten
])
def test_devices_are_cut_into_engines(processes, each, tensor, together, expected, shared):
    """By hand; 32 prompts × 16 answers, 32 slots."""
    cut = engines.layout(config(tensor, together), devices(processes, each))
    assert dataclasses.astuple(cut) == expected
    assert engines.share(cut, 32, 16, 32) == shared


@pytest.mark.parametrize("together", [3, 6, 16, 20])
def test_devices_that_cannot_be_cut_are_refused(together):
    with pytest.raises(ValueError, match=f"engine.devices is {together}; needed is a divisor of the 4 devices of a process, or "
                                         "a multiple of them that divides all 24"):
        engines.layout(config(1, together), devices(6, 4))


@pytest.mark.parametrize("tensor", [3, 6, 16])
def test_heads_that_cannot_be_dealt_are_refused(tensor):
    with pytest.raises(ValueError, match=f"{tensor} devices are to draw together .* 2 key heads, each for 4 query heads"):
        with_key_heads(WIDE, tensor)


def test_key_heads_are_repeated_beside_their_queries():
    """Two key heads of four queries as eight of one, by hand: query head n stays with key head n // 4."""
    arch = with_key_heads(WIDE, 8)
    assert (arch.K, arch.G, arch.N) == (8, 1, 8)
    bias = np.arange(2 * 6).reshape(2, 6, 1)  # K y H: queries 0 1 2 3, key 4, value 5; then 6 …
    out = np.arange(8).reshape(2, 4, 1, 1)
    np.testing.assert_array_equal(np.asarray(repeat_key_heads(bias, "K y H", 8))[..., 0], [
        [0, 4, 5], [1, 4, 5], [2, 4, 5], [3, 4, 5], [6, 10, 11], [7, 10, 11], [8, 10, 11], [9, 10, 11]])
    np.testing.assert_array_equal(np.asarray(repeat_key_heads(out, "K G H D", 8))[..., 0, 0], np.arange(8)[:, None])
    assert repeat_key_heads(bias, "K y H", 2) is bias


def drawn(mesh, model, **changes):
    """{sample: turn} of three answers to one prompt."""
    engine = Engine(WIDE, EngineSettings(**{**dict(
        groups=2, samples=3, prefix_buckets=(8,), branch_buckets=(LONGEST,), stop_ids=(7,), ticks=LONGEST), **changes}), mesh)
    engine.load(jax.device_put(model, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())), 0)
    engine.open(0, np.arange(9, dtype=np.int32), 3, max_branch_tokens=LONGEST)
    for sample in range(3):
        engine.draw(0, sample, LONGEST)
    return {sample: turn for _, sample, turn in engine.tick()}


@pytest.mark.parametrize("is_unrolled", [False, True])
def test_more_devices_than_key_heads_draw_what_one_draws(is_unrolled):
    model = reference.random_model(WIDE, lora=Lora(2, 4.0))
    assert any(np.any(x) for path, x in jax.tree_util.tree_leaves_with_path(model) if parameter_name(path) == "qkv_b")
    assert "K" in LAYER_AXES["qkv_b"] and "K" in LAYER_AXES["out_a"]
    expected = drawn(reference.one_device(), model, is_unrolled=is_unrolled)
    found = drawn(make_mesh({"fsdp": 2, "tensor": 4}, jax.devices()[:8]), model, is_unrolled=is_unrolled)
    for sample in range(3):
        np.testing.assert_array_equal(found[sample].ids, expected[sample].ids)
        np.testing.assert_allclose(found[sample].logp, expected[sample].logp, atol=1e-5)


@pytest.mark.parametrize(("teams", "learner"), [(2, {"fsdp": 4, "tensor": 2}), (4, {"fsdp": 8})])
def test_teams_take_weights_from_a_learner_that_is_cut_otherwise(teams, learner):
    """The last team's part on each of its devices, by slicing."""
    devices = np.array(jax.devices()[:np.prod(list(learner.values()))])
    model, mesh, together = reference.random_model(WIDE), make_mesh(learner, list(devices)), len(devices) // teams
    own = make_mesh({"tensor": together}, list(devices[-together:]))
    engine = TeamEngine(WIDE, EngineSettings(
        groups=1, samples=1, prefix_buckets=(8,), branch_buckets=(LONGEST,), stop_ids=(), is_unrolled=False), own, devices,
        Team(teams - 1, teams))
    engine.load(jax.tree_util.tree_map_with_path(lambda path, x: jax.device_put(
        x, mesh_lib.sharding(mesh, axes(path, x.ndim), mesh_lib.LEARNER_RULES)), model), 0)
    cut = {path: x for path, x in jax.tree_util.tree_leaves_with_path(engine._model)}
    for path, whole in jax.tree_util.tree_leaves_with_path(model):
        letters = axes(path, whole.ndim).split()
        whole = np.asarray(repeat_key_heads(whole, " ".join(letters), max(WIDE.K, together)))
        places = [i for i, letter in enumerate(letters) if letter in "KFV"]
        parts = np.split(whole, together, axis=places[0]) if places else [whole] * together
        for shard in cut[path].addressable_shards:
            np.testing.assert_array_equal(shard.data, parts[list(own.devices.flat).index(shard.device)])


def tells(directory, here):
    """Process 1 tells the others two things and frees them, then one more; then nobody tells anything."""
    channel = here.channel("news")
    for words in ((b"one", b"two"), (b"x" * 100_000,)):
        if here.index == 1:
            for one in words:
                channel.tell(one)
        else:
            assert [channel.hear() for _ in words] == list(words)
        here.exchange(f"heard {len(words)}", lambda: None)
        if here.index == 1:
            channel.forget()
    channel = here.channel("silence")
    here.deadline_s = channel._deadline_s = 1.0
    if here.index != 1:
        try:
            channel.hear()
        except ProcessError as error:
            (directory / f"{here.index}.txt").write_text(str(error))
    here.deadline_s = 60.0
    here.exchange("end", lambda: None)


@pytest.mark.slow
def test_all_hear_what_one_tells(tmp_path):
    joined.run(__file__, "tells", tmp_path, count=3, devices=1)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 2)] == [
        "nothing was told over 'swerl_jax/channel/silence' for 1 s"] * 2


if __name__ == "__main__":
    joined.main(globals())
