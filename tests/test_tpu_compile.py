"""The TPU's kernels through the TPU's own compiler, for chips that are not here."""

import importlib.util
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from swerl_jax.learn import plan_programs
from swerl_jax.policy import decode_kernel
from swerl_jax.policy import mesh as mesh_lib
from swerl_jax.policy.arch import Arch
from swerl_jax.policy.attention import RowShape
from swerl_jax.policy.engine_steps import BRANCH_AXES, PREFIX_AXES, EngineSettings, EngineSteps
from swerl_jax.policy.llama import Llama
from swerl_jax.policy.rows import row_attention

pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU's compiler is missing: pip install -e .[tpu]")]
CHIPS = ("v5p:2x2x1", "v6e:2x2", "v5e:2x2")
HBM_BYTES = 16e9  # of the smallest of them


def _mesh(name, sizes):
    return mesh_lib.make_mesh(sizes, topologies.get_topology_desc(name, "tpu").devices)


def _compiles_over_rows(mesh, B, K, G, H, T, shape):
    """Attention over rows of T branch tokens, forward and backward, as kernels that fit the chips."""
    heads, per_token = (mesh_lib.sharding(mesh, letters, mesh_lib.LEARNER_RULES) for letters in ("B T K", "B T"))
    q, k = (jax.ShapeDtypeStruct((B, shape.S + T, K, *rest), jnp.bfloat16, sharding=heads) for rest in ((G, H), (H,)))
    starts, is_valid = (jax.ShapeDtypeStruct((B, n), dtype, sharding=per_token)
                        for n, dtype in ((T, int), (shape.S + T, bool)))

    def run(q, k, v, weight, starts, is_valid):
        o, pull = jax.vjp(row_attention("auto", mesh)(starts, is_valid, shape), q, k, v)
        return o, pull(weight)

    compiled = jax.jit(run).lower(q, k, k, q, starts, is_valid).compile()
    text = compiled.as_text()
    for kernel in ("fwd_segmented_residuals", "dq_segmented", "dkv_segmented"):
        assert f"splash_mha_{kernel}" in text
    used = compiled.memory_analysis()
    assert used.temp_size_in_bytes + used.argument_size_in_bytes + used.output_size_in_bytes < HBM_BYTES / 4


@pytest.mark.parametrize(("name", "H", "S", "T"), [
    *((name, H, 4096, 16_384) for name in CHIPS for H in (64, 128)), ("v5p:2x2x1", 128, 12_288, 65_536)])
def test_attention_over_rows_forward_and_backward(name, H, S, T):
    """A row on each chip, answers of up to 4,096 tokens, two of its key heads with eight queries each."""
    _compiles_over_rows(_mesh(name, {"fsdp": 2, "tensor": 2}), 2, 4, 8, H, T, RowShape(S, 128, 4096 - 128))


@pytest.mark.parametrize(("name", "S", "T"), [*((name, 8192, 24_576) for name in CHIPS), ("v5p:2x2x1", 16_384, 114_688)])
def test_attention_over_rows_in_parts(name, S, T):
    """A row cut over two chips, an answer as long as all of the branches, a key head with eight queries."""
    _compiles_over_rows(_mesh(name, {"tensor": 2, "context": 2}), 1, 2, 8, 128, T, RowShape(S, 128, T - 128, 2))


@pytest.mark.parametrize("is_rounded", [False, True])
@pytest.mark.parametrize("H", [64, 128])
@pytest.mark.parametrize("name", CHIPS)
def test_attention_to_caches(name, H, is_rounded):
    """Two slots of 16 branches, a bucket and what is spare, 32 fresh columns; the caches are arguments and are not copied.

    Where they are rounded there is a number of columns that tiles of 32 rows would pad, as they lie turned, no less than others.
    """
    mesh = _mesh(name, {"fsdp": 1, "tensor": 4})
    P, R, K, G, L, S, C = 2, 16, 8, 8, 16, 4096, 1128 if is_rounded else 1024 + 64
    sizes = {"P": P, "R": R, "T": 1, "K": K, "G": G, "H": H, "L": L, "S": S, "C": C, "t": 32}

    def shaped(axes, dtype=jnp.bfloat16):
        sharding = mesh_lib.sharding(mesh, axes, mesh_lib.ENGINE_RULES)
        return jax.ShapeDtypeStruct(tuple(sizes[letter] for letter in axes.split()), dtype, sharding=sharding)

    dtypes = (jnp.int8, jnp.int8, jnp.float32, jnp.float32) if is_rounded else (jnp.bfloat16,) * 2
    caches = [tuple(map(shaped, (f"L {axes}" for axes in part), dtypes)) for part in (PREFIX_AXES, BRANCH_AXES)]
    run = partial(decode_kernel.attend_cached, columns=C, mesh=mesh, is_interpreted=False)
    fresh = shaped("P R K H t"), shaped("P R K t H")
    lengths = shaped("P", jnp.int32), shaped("P R", jnp.int32), shaped("", jnp.int32)
    arguments = shaped("P R T K G H"), shaped("", jnp.int32), *caches, fresh, *lengths
    compiled = jax.jit(run).lower(*arguments).compile()
    assert compiled.as_text().count("decode_attention") >= 2
    one_layer = 2 * 2 * P * R * K * C * H // 4 // L
    used = compiled.memory_analysis()
    assert used.temp_size_in_bytes < one_layer
    # Nor is there more than the padding of 64 columns and of fresh ones, least of all of scales.
    assert used.argument_size_in_bytes < 1.1 * sum(x.size * x.dtype.itemsize / 4 for x in jax.tree.leaves(arguments))


def _decoding(mesh, learner_mesh, H=128, F=4096, L=16, V=512):
    """(steps, the learner's model)."""
    arch = Arch(V=V, D=1024, L=L, N=4 * 1024 // H, K=4, H=H, F=F)
    with jax.set_mesh(learner_mesh):
        model = jax.eval_shape(lambda: Llama(arch, jax.random.key(0)))
        shardings = nnx.get_named_sharding(model, learner_mesh)
    model = jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), model, shardings)
    return EngineSteps(arch, EngineSettings(4, 4, (512,), (512,), (0,), dtype=jnp.bfloat16, is_unrolled=False), mesh), model


@pytest.mark.parametrize(("H", "F"), [(128, 4096), (128, 4480), (64, 4096)])
def test_decoding_copies_no_weights(H, F):
    """A device's part of a matrix fills whole lanes (1,024 or 128 numbers), or does not (1,120, or 64)."""
    mesh = _mesh("v5e:2x2", {"fsdp": 1, "tensor": 4})
    steps, model = _decoding(mesh, mesh, H, F)
    compiled = steps.trace(model, 512, 512, 512)["decode"].lower().compile()
    queries = 2 * 16 * 1024 * 1024 // 4  # bytes of the smallest matrix, of all layers
    assert compiled.memory_analysis().temp_size_in_bytes < queries


def test_teams_load_together_what_each_decodes_with():
    """Two engines of four chips: no chip holds more than its own engine's part, and that lies as decoding wants it."""
    devices = topologies.get_topology_desc("v5e:2x4", "tpu").devices
    own = mesh_lib.make_mesh({"fsdp": 1, "tensor": 4}, devices[:4])
    steps, model = _decoding(own, mesh_lib.make_mesh({"fsdp": 2, "tensor": 4}, devices))
    everyone = Mesh(np.array(devices).reshape(2, *own.devices.shape), ("team", *own.axis_names),
                    axis_types=(AxisType.Auto,) * (1 + len(own.axis_names)))
    loaded = steps.loading(model, everyone).lower(model).compile()
    decoded = steps.weights(model)
    layouts = [x.layout for x in jax.tree.leaves(loaded.output_formats)]
    assert layouts == [x.layout for x in jax.tree.leaves(_formats(steps, model))]
    assert len(set(map(str, layouts))) > 1
    assert loaded.memory_analysis().output_size_in_bytes == pytest.approx(plan_programs.held(decoded), rel=0.02)


def test_loading_needs_little_beside_what_is_kept():
    """From 16 × 2 chips to engines of 4: beyond a layer and the vocabulary's parts nothing but what each chip sends, once cast."""
    devices = topologies.get_topology_desc("v5p:2x4x4", "tpu").devices
    learner_mesh, mesh = (mesh_lib.make_mesh({"fsdp": 32 // n, "tensor": n}, devices) for n in (2, 4))
    found = {}
    for L in (2, 8):
        steps, model = _decoding(mesh, learner_mesh, L=L, V=65_536)
        found[L] = steps.loading(model, mesh).lower(model).compile().memory_analysis().temp_size_in_bytes
    layer = 2 * (2 * 1024 * 4096 + 2 * 1024 * 512 + 3 * 1024 * 4096)  # bytes in bfloat16
    assert found[8] - found[2] < 6 * 1.5 * layer / 32  # padding included
    assert found[2] < (2 * 2 * 65_536 * 1024 + 2 * layer) / 4


def _formats(steps, model):
    """In which decoding takes its weights."""
    return steps.trace(model, 512, 512, 512)["decode"].lower().compile().input_formats[1]["model"]
