"""The planner: its arithmetic by hand, what the compiler's refusals become, and a whole plan by the real TPU compiler."""

import dataclasses
import importlib.util
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swerl_jax import assemble, config as config_lib
from swerl_jax.learn import calibration, flop_count, plan, plan_programs, plan_search, plan_table
from swerl_jax.learn.batch import Branch, PackSettings, Prefixed, pack
from swerl_jax.learn.learner import Learner, OptimizerSettings
from swerl_jax.learn.loss import LossSettings
from swerl_jax.learn.plan import Plan, Report
from swerl_jax.learn.plan_programs import StepShape
from swerl_jax.policy.arch import ARCHS, Arch
from swerl_jax.policy.chips import GIB, parse_topology
from swerl_jax.policy.mesh import make_mesh

needs_compiler = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None,
                                    reason='needs the TPU compiler: pip install -e ".[tpu]"')
TWO_LAYERS = Arch(V=512, D=256, L=2, N=4, K=2, H=64, F=512)


def small(**changes):
    return config_lib.update(config_lib.default(), {
        "phases": ("rl",), "prompt.max_tokens": 256, "answer.max_tokens": 128, "engine.groups": 4,
        "engine.prefix_buckets": (256,),
        "learner.block": 128, "learner.remat": "layer", "rl.prompts": 4, "rl.samples": 4, "engine.ticks": 128,
        "learner.vocabulary_chunk": 128, **{name.replace("__", "."): value for name, value in changes.items()}})


def test_a_learners_products_are_those_of_a_count_by_hand():
    """Two layers, one row of one branch of T tokens that is attended in one product, nothing computed again."""
    arch, B, T = Arch(V=48, D=16, L=2, N=4, K=2, H=8, F=24), 1, 64
    learner = Learner(arch, make_mesh({"fsdp": 1}, jax.devices()[:1]), OptimizerSettings(1e-3, "constant", 0, 1),
                      LossSettings("clip"), remat="none", vocabulary_chunk=32, attention="plain")
    branch = Branch(np.zeros(T, np.int32), np.ones(T, bool), np.zeros(T, np.float32), 1.0, 1.0)
    batch, = pack([Prefixed(np.zeros(1, np.int32), [branch])], PackSettings((0,), (T,), T, T, B))
    assert batch.ids.shape == (B, T)
    matrices = 16 * 2 * (2 + 2) * 8 + 4 * 8 * 16 + 3 * 16 * 24  # q, k and v; out; gate, up and down
    linear = 3 * 2 * 2 * matrices * B * T  # forward, and the gradients of activations and of weights
    # Scores and values; then scores again, the gradients of weights, values, keys and queries, and the row sums of do · o.
    attention = 2 * (7 * 2 * B * 4 * T * T * 8 + 2 * B * 4 * T * 8)
    head = 4 * 2 * 48 * 16 * B * T + 2 * 48 * B * T  # logits twice, the gradients of both operands; the entropy
    assert flop_count.count(learner.trace(batch)["gradient"].jaxpr).total == linear + attention + head
    assert flop_count.count(learner.trace(batch)["update"].jaxpr).total < linear / 100


@pytest.mark.parametrize("answers_a_row, tokens, blocks, block", [
    (4, 256 + 4 * 128, 1 + 2 * 2, 256),  # a block of the prompt; each of two of answers sees it and itself
    (1, 4 * (256 + 128), 4 * (3 + 3), 128),  # in each of four rows two blocks of the prompt and one of an answer, causal
])
def test_operations_of_answers_that_share_a_prompt_and_that_do_not(answers_a_row, tokens, blocks, block):
    """Two layers whose forward pass is made again: 4 products a matrix; 2 · 2 of attention forward, 3 for queries, 4 for keys.

    What the last matrix of a layer gives is not made again: nothing needs it.
    """
    config = small(rl__prompts=1, learner__attention="splash", rl__row_tokens=(answers_a_row * 128,))
    parts = assemble.plan_parts(config, TWO_LAYERS, assemble.mesh(config, jax.devices()[:1]))
    products = 4 * (256 * 2 * (2 + 2) * 64 + 4 * 64 * 256 + 3 * 256 * 512) - 512 * 256
    row_sums = 4 * 64  # of do · o
    head = 4 * 2 * 512 * 256 * 512 + 2 * 512 * 512  # 512 tokens of answers either way
    found = plan_programs.gradient_flops(parts)
    assert found.products == 2 * 2 * (products + row_sums) * tokens + head
    assert found.total - found.products == pytest.approx(2 * 4 * (2 * 2 + 3 + 4) * 2 * 64 * blocks * block**2)


def test_useful_operations():
    """2 prompts of 100 with 3 answers of 10; a branch's token sees the prompt and half of its answer on average."""
    arch = Arch(V=48, D=16, L=2, N=4, K=2, H=8, F=24)
    matrices = 16 * 2 * 4 * 8 + 4 * 8 * 16 + 3 * 16 * 24
    linear = 2 * (2 * matrices * 260 + 48 * 16 * 60)
    attention = 2 * 2 * 2 * 4 * 8 * (200 * 50 + 60 * 105)
    assert StepShape(2, 3, 100, 10).useful_flops(arch) == pytest.approx(3 * (linear + attention))
    assert StepShape(2, 3, 100, 10, epochs=2).useful_flops(arch) == pytest.approx(6 * (linear + attention))


def test_full_batches_of_a_step():
    """8 prompts of 4 answers of 100 tokens (padded 128), two updates: a row a group, 2 rows at a time."""
    settings = PackSettings((256,), (128, 256, 512), 128, 100, rows=2)
    (batch, times), = plan_programs.full_batches(StepShape(8, 4, 256, 100, minibatches=2), settings)
    assert (batch.ids.shape, batch.shape.S, times) == ((2, 256 + 512), 256, 4)
    (_, times), = plan_programs.full_batches(StepShape(8, 4, 256, 100, minibatches=2, epochs=3), settings)
    assert times == 12


@pytest.mark.parametrize("message, needed", [
    ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (245.20G) exceeds available "
     "HBM (95.74G).", 245.20 * GIB),
    ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (1.00T) exceeds available "
     "HBM (15.75G).", 1024 * GIB),
    ("XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 57.23G of 15.75G hbm. Exceeded hbm capacity "
     "by 41.48G.", 57.23 * GIB),
])
def test_what_a_refusal_says_it_needs(message, needed):
    assert plan.needed_bytes(message) == pytest.approx(needed)


def test_other_failures_are_not_taken_for_want_of_memory():
    with pytest.raises(ValueError, match="not for want of memory: INTERNAL: Mosaic failed"):
        plan.needed_bytes("INTERNAL: Mosaic failed to compile")


def test_a_missing_compiler_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[tpu\]"'):
        plan.devices(parse_topology("v5e:2x2"))


@pytest.mark.parametrize("group, bytes_per_second", [
    ((0, 1), 100e9),  # two of the four chips along the first axis: not the whole ring
    ((0, 1, 2, 3), 200e9), (tuple(range(16)), 400e9), (tuple(range(64)), 600e9), ((0, 64), 6.25e9),
])
def test_bandwidth_by_the_axes_that_a_group_spans(group, bytes_per_second):
    places = [types.SimpleNamespace(coords=[x, y, z], slice_index=s)
              for s in range(2) for z in range(4) for y in range(4) for x in range(4)]
    mesh = types.SimpleNamespace(devices=np.array(places))
    assert plan.bandwidth(group, parse_topology("v5p:4x4x4:x2"), mesh) == bytes_per_second


def a_plan(**changes):
    reports = [Report("gradient", "learn", 2, 10 * GIB, flops=459e12, roofline_s=1.0, roof="compute", cycles_s=1.5,
                      kernels_s=0.25, links_s=0.25), Report("decode", "decode", 10, 1 * GIB, roofline_s=0.1, roof="memory", cycles_s=0.3)]
    resident, sampling = {"parameters": 50 * GIB}, {"engine weights": 18 * GIB, "K/V cache": 12 * GIB}
    found = Plan(parse_topology("v5p:2x2x1"), {"fsdp": 4}, resident, sampling, 5 * GIB, reports, useful_flops=2 * 459e12 * 4)
    return dataclasses.replace(found, **changes)


def test_what_a_plan_adds_up_to():
    found = a_plan()
    assert found.peaks == {"gradient": 65 * GIB, "decode": 81 * GIB}  # the gradient while learning, the cache while not
    assert found.spare_bytes == pytest.approx(14.74 * GIB, rel=1e-6) and found.fits
    assert (found.seconds("learn"), found.seconds("decode"), found.seconds("decode", "roofline_s")) == (4.0, 3.0, 1.0)
    assert found.mfu == pytest.approx(0.5)  # 2 s of full use in 4 s
    text = plan_table.table(found)
    assert "fits, 14.74 GiB (15%) to spare" in text and "MFU 50.0%" in text and "memory" in text
    record = json.loads(json.dumps(plan_table.as_json(found)))
    assert record["step_s"] == {"roofline_s": 3.0, "compiler_s": 7.0} and record["fits"] and record["mfu"] == 0.5


def test_a_plan_that_does_not_fit_says_by_how_much():
    refused = Report("gradient", "learn", 2, 100 * GIB, fault="RESOURCE_EXHAUSTED: 100G")
    found = a_plan(reports=[refused])
    assert not found.fits
    text = plan_table.table(found)
    assert "DOES NOT FIT: 59.26 GiB too much" in text and "RESOURCE_EXHAUSTED" in text and "DOES NOT COMPILE" in text
    assert json.loads(json.dumps(plan_table.as_json(found)))["mfu"] is None


def test_changes_that_need_less_memory():
    config = small(learner__rows=4, learner__remat="attention")
    whole = a_plan(sampling={"engine weights": 2.0, "K/V cache": 1.0})  # of 4 chips
    found = list(plan_search.candidates(config, 2, whole, "learning"))
    assert found[:5] == [{"optimizer.moments_dtype": "bfloat16"}, {"rl.row_tokens": (256,)}, {"mesh.tensor": 2},
                         {"learner.remat": "layer"}, {"learner.rows": 2}]
    assert found[-1] == {"learner.rows": 1, "learner.remat": "offload", "mesh.tensor": 2, "rl.row_tokens": (128,),
                         "optimizer.moments_dtype": "bfloat16"}
    assert len(found) == 3 * 3 * 2 * 3 * 2 - 1
    found = list(plan_search.candidates(config, 2, whole, "sampling"))
    assert found[:4] == [{"engine.weights": "int8"}, {"engine.cache": "int8"}, {"engine.devices": 2}, {"engine.groups": 2}]
    assert len(found) == 3 * 3 * 2 * 2 - 1
    found = list(plan_search.candidates(config, 2, a_plan(sampling={"engine weights": 1.0, "K/V cache": 2.0}), "sampling"))
    assert found[:4] == [{"engine.cache": "int8"}, {"engine.groups": 2}, {"engine.devices": 2}, {"engine.weights": "int8"}], (
        "the cache is what is large")


def test_the_nearest_settings_of_each_side():
    """Fewer rows make learning fit, as a change of tensor shards would that cannot be; sampling needs int8."""
    config, planned = small(learner__rows=4), []

    def make(changes, sides):
        planned.append((changes, tuple(sides)))
        if "mesh.tensor" in changes:
            raise ValueError("cannot be cut")
        learning = 10 if changes.get("learner.rows") == 2 else 100
        drawing = 1 if changes.get("engine.weights") == "int8" else 100
        reports = {"learning": Report("gradient", "learn", 1, learning * GIB),
                   "sampling": Report("decode", "decode", 1, drawing * GIB)}
        return a_plan(reports=[reports[side] for side in sides])

    whole = make({}, ("learning", "sampling"))
    assert whole.short == ["learning", "sampling"] and make({"learner.rows": 2}, ("learning", "sampling")).short == ["sampling"]
    planned.clear()
    changes, found = plan_search.nearest(config, 2, whole, make)
    assert changes == {"learner.rows": 2, "engine.weights": "int8"} and found.fits
    # One side alone each time; learning once more, with what sampling needs.
    assert all(len(sides) == 1 for _, sides in planned) and planned[-1] == (changes, ("learning",))
    assert {report.name for report in found.reports} == {"gradient", "decode"}
    assert plan_search.nearest(config, 2, whole, lambda *_: whole) is None
    drawn, *_ = make({"learner.rows": 2}, ("learning", "sampling")), planned.clear()
    assert plan_search.nearest(config, 2, drawn, make)[0] == {"engine.weights": "int8"}
    assert {sides for _, sides in planned} == {("sampling",)}, "learning is as it was"


def test_what_two_layers_hold_and_run():
    """On 2 data × 2 tensor shards, by hand."""
    config = small(mesh__tensor=2, engine__unroll_layers="false")
    parts = assemble.plan_parts(config, TWO_LAYERS, assemble.mesh(config, jax.devices()[:4]))
    n, norms = TWO_LAYERS.parameters, 5 * 256  # norms are cut over the data axis alone
    parameters = 4 * ((n - norms) // 4 + norms // 2)
    assert plan_programs.resident(parts) == {
        "parameters": parameters, "optimiser": 2 * parameters + 3 * 4}  # two moments, three counters
    assert plan_programs.sampling(parts) == {
        "engine weights": 2 * ((n - norms) // 2 + norms),
        # 2 of 4 groups, 1 of 2 key heads, 2 layers, key and value, 2 bytes; 256 + 4 · (128 + 128) columns of 64.
        "K/V cache": 2 * 1 * 2 * 2 * 2 * (256 + 4 * 256) * 64}
    rounded = assemble.plan_parts(small(mesh__tensor=2, engine__unroll_layers="false", engine__cache="int8"), TWO_LAYERS,
                                  assemble.mesh(config, jax.devices()[:4]))
    # The same columns, of 64 bytes and a scale of four.
    assert plan_programs.sampling(rounded)["K/V cache"] == 2 * 1 * 2 * 2 * (256 + 4 * 256) * (64 + 4)
    found = {program.name: program for program in [*plan_programs.learning(parts), *plan_programs.drawing(parts)]}
    assert {name: (program.phase, program.runs) for name, program in found.items()} == {
        "gradient 2 × 768": ("learn", 2), "update": ("learn", 1), "reshard": ("reshard", 1), "prefill 2 × 256": ("prefill", 2),
        "decode 128 tokens at 0": ("decode", 1)}
    linear = 2 * (n - 2 * 512 * 256 - norms)
    prefill = linear * 256 + 2 * 2 * 2 * 4 * 64 * 256 * 256
    assert flop_count.count(found["prefill 2 × 256"].traced.jaxpr).total == 2 * prefill  # a prompt on each data shard
    # A token a tick for 16 branches: the layers, the head, 256 columns of the prefix and 128 of what is new.
    decode = flop_count.count(found["decode 128 tokens at 0"].traced.jaxpr).total
    assert decode == 128 * 16 * (linear + 2 * 512 * 256 + 2 * 2 * 2 * 4 * 64 * (256 + 128))


def test_chunks_of_decoding_are_as_long_as_the_branches_have_become():
    """Chunks of 32 tokens begin at 0, 32, 64 and 96 columns and read 0, 32, 64 and 128: two lengths stand for all four."""
    config = small(engine__ticks=32, engine__unroll_layers="false")
    parts = assemble.plan_parts(config, TWO_LAYERS, assemble.mesh(config, jax.devices()[:4]))
    runs = {program.name: program.runs for program in plan_programs.drawing(parts) if program.phase == "decode"}
    # A cost of a + b · columns: at 32 and 128 columns, so that the sum over chunks is 4a + 224b.
    few, many = runs["decode 32 tokens at 32"], runs["decode 32 tokens at 128"]
    assert (few + many, few * 32 + many * 128) == (pytest.approx(4), pytest.approx(224))


def test_passes_without_a_gradient():
    """Importance weights ask the policy once a step, a reference is asked before both of two epochs, and is held."""
    config = small(rl__importance_cap=2.0, rl__kl_coefficient=0.1, rl__epochs=2)
    parts = assemble.plan_parts(config, TWO_LAYERS, assemble.mesh(config, jax.devices()[:4]))
    assert {program.name: program.runs for program in plan_programs.learning(parts)} == {
        "gradient 4 × 768": 2, "forward 4 × 768": 3, "update": 2}
    assert plan_programs.resident(parts)["reference"] == plan_programs.resident(parts)["parameters"]
    parts = assemble.plan_parts(config := small(rl__importance_cap=2.0), TWO_LAYERS, assemble.mesh(config, jax.devices()[:4]))
    assert [program.name for program in plan_programs.learning(parts)] == ["gradient 4 × 768", "update"], "one update needs none"


def test_taught_documents_are_planned_as_they_are_packed():
    config = small(phases=("sft",), sft__prompt_weight=0.5, sft__examples=3, sft__rows=3)
    parts = assemble.plan_parts(config, TWO_LAYERS, assemble.mesh(config, jax.devices()[:1]))
    (batch, times), = plan_programs.full_batches(parts.shape, parts.packing)
    assert (int(batch.is_valid.sum()), times) == (3 * (256 + 128 - 1), 1)


def test_what_cannot_be_held_is_not_compiled():
    topology, config, said = parse_topology("v5e:2x2"), small(), []
    topology = dataclasses.replace(topology, chip=dataclasses.replace(topology.chip, hbm_bytes=10**6))
    parts = assemble.plan_parts(config, TWO_LAYERS, assemble.mesh(config, jax.devices()[:4]))
    found = plan.make(parts, topology, said.append)
    assert not said and found.short == ["learning", "sampling"] and found.spare_bytes < 0
    assert "GiB more than a chip has" in plan_table.table(found)


def test_operations_are_counted_as_those_that_were_published():
    """MaxText's log of its run says 462.297 TFLOP/s on each chip, 50.33 % of 918."""
    assert calibration.flops() / calibration.PUBLISHED_SECONDS == pytest.approx(462.297e12, rel=1e-4)
    assert calibration.mfu(calibration.PUBLISHED_SECONDS) == pytest.approx(calibration.PUBLISHED_MFU, rel=1e-3)


def test_a_calibration_by_other_versions_says_so(monkeypatch):
    monkeypatch.setattr(calibration, "_installed", lambda: dict(calibration.VERSIONS))
    assert calibration.line().endswith("50.3%")
    monkeypatch.setattr(calibration, "_installed", lambda: calibration.VERSIONS | {"libtpu": "9.9"})
    assert "installed are jax 0.10.2, libtpu 9.9: python tests/bench/calibration.py" in calibration.line()


@needs_compiler
@pytest.mark.slow
def test_the_calibrations_roofline_is_that_of_what_the_learner_runs_now():
    """Operations alone bind it; what only compiling could tell, 3 minutes of it, is bound to the versions that it was made with."""
    topology = parse_topology(calibration.TOPOLOGY)
    found = plan_programs.gradient_flops(calibration.parts(plan.devices(topology)))
    seconds = found.total / topology.chips / topology.chip.peak_flops
    assert seconds == pytest.approx(calibration.ROOFLINE_SECONDS, rel=2e-3)


@needs_compiler
def test_two_layers_planned_by_the_real_compiler():
    topology = parse_topology("v5e:2x2")
    config = small(mesh__tensor=2, learner__remat="none", rl__prompts=2, engine__groups=2)  # what compiles fast
    found = plan.make(assemble.plan_parts(config, TWO_LAYERS, assemble.mesh(config, plan.devices(topology))), topology)
    assert not [r.fault for r in found.reports if r.fault] and found.fits
    assert {r.phase for r in found.reports} == {"learn", "reshard", "prefill", "decode"}
    assert all(r.compiler_s > 0 and r.memory_bytes > 0 and r.extra_bytes > 0 for r in found.reports)
    assert all(r.sent_bytes > 0 for r in found.reports if r.name != "update")
    assert 0 < found.mfu < 1


@needs_compiler
@pytest.mark.slow
def test_cycles_of_a_scan_are_those_of_its_body_times_its_length():
    devices = plan.devices(parse_topology("v5e:2x2"))[:1]
    one = jax.sharding.NamedSharding(make_mesh({"fsdp": 1}, devices), jax.sharding.PartitionSpec())

    def cycles(length):
        def layers(x, w):
            return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

        shapes = (jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=one) for shape in ((4096, 1024), (length, 1024, 1024)))
        return plan.hlo_count.count(jax.jit(layers).trace(*shapes).lower().compile().as_text()).cycles

    few, many = cycles(4), cycles(12)
    at_peak = 2 * 4096 * 1024 * 1024 / 197e12 * parse_topology("v5e:2x2").chip.clock_hz
    assert many == pytest.approx(3 * few, rel=0.01)
    assert at_peak < few / 4 < 4 * at_peak


@needs_compiler
@pytest.mark.slow
def test_what_does_not_fit_is_a_report():
    topology = parse_topology("v5e:2x2")
    wide = dataclasses.replace(TWO_LAYERS, D=8192, N=64, K=8, H=128, F=28_672, V=128_256)
    config = small()
    parts = assemble.plan_parts(config, wide, assemble.mesh(config, plan.devices(topology)))
    found = plan.make(parts, topology)
    assert not found.fits and found.spare_bytes < 0 and "DOES NOT FIT" in plan_table.table(found)


@needs_compiler
@pytest.mark.slow
def test_a_host_that_cannot_hold_the_weights_is_told_with_the_remedy():
    """70 billion parameters in bfloat16, 131.4 GiB, on the four chips of a v6e host, 128 GB as they are sold; nothing compiles."""
    topology = parse_topology("v6e:16x16")
    config = config_lib.update(config_lib.default(), {
        "mesh.tensor": 4, "engine.prefix_buckets": (12_288,), "engine.groups": 32, "optimizer.moments_dtype": "bfloat16"})
    arch = ARCHS["llama3.3-70b"]
    parts = assemble.plan_parts(config, arch, assemble.mesh(config, plan.devices(topology)))
    said = []
    found = plan.make(parts, topology, said.append, ["sampling"])
    assert not said and found.short == ["sampling"] and found.copy == plan_programs.Copy(4, 1, "bfloat16", 8)
    advice, = plan_table.as_json(found)["advice"]
    assert "4 chips of one host with 125 GiB of HBM cannot hold 131.4 GiB in bfloat16" in advice and advice in plan_table.table(found)
    assert advice.endswith(": --config.engine.weights=int8 halves the weights, --config.engine.devices=8 lays them over 2 hosts")
    assert next(plan_search.candidates(config, arch.K, found, "sampling")) == {"engine.weights": "int8"}
    config = config_lib.update(config, {"engine.weights": "int8"})
    rounded = dataclasses.replace(found, sampling=plan_programs.sampling(assemble.plan_parts(
        config, arch, assemble.mesh(config, plan.devices(topology)))))
    assert rounded.held("sampling") < topology.chip.hbm_bytes
