"""cuDNN's attention on prefixes: when it is taken, that it is lowered for a GPU, and that it computes the mask rule."""

import pathlib
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_rows import row
from jax._src.cudnn import fused_attention_stablehlo as cudnn  # its check of the library, which no CPU has

from swerl_jax import assemble, config as config_lib
from swerl_jax.learn.batch import Branch, PackSettings, Prefixed, pack
from swerl_jax.learn.learner import Learner, OptimizerSettings
from swerl_jax.learn.loss import LossSettings
from swerl_jax.policy import attention, gpu_attention
from swerl_jax.policy.arch import Arch
from swerl_jax.policy.attention import RowShape
from swerl_jax.policy.engine_steps import EngineSettings, EngineSteps
from swerl_jax.policy.mesh import make_mesh
from swerl_jax.policy.rows import row_attention

ARCH = Arch(V=64, D=32, L=3, N=8, K=4, H=8, F=48)
S = 96  # no other size in these programs
FORWARD, BACKWARD = r"@__cudnn\$fmhaSoftmax\(", r"@__cudnn\$fmhaSoftmaxBackward\("
SQUARE = rf"tensor<(\d+x)*{S}x(\d+x)*{S}x"  # an array with S twice among its sizes


def _mesh(platform="gpu", capability="9.0", context=1):
    """What `obstacle` looks at."""
    device = types.SimpleNamespace(platform=platform, device_kind="one")
    if platform == "gpu":  # others have none
        device.compute_capability = capability
    return types.SimpleNamespace(devices=np.array([[device]]), shape={"context": context})


@pytest.mark.parametrize(("mesh", "dtype", "H", "words"), [
    *((_mesh(), dtype, H, "") for dtype in (jnp.bfloat16, "float16") for H in (8, 64, 120, 128)),
    *((_mesh(capability=one), jnp.bfloat16, 64, "") for one in ("8.0", "8.9", "10.0", "12.0")),
    (_mesh("cpu"), jnp.bfloat16, 64, "the device is a cpu"), (_mesh("tpu"), jnp.bfloat16, 64, "the device is a tpu"),
    (_mesh(capability="7.5"), jnp.bfloat16, 64, "compute capability 7.5; needed is one of NVIDIA's from 8.0"),
    (_mesh(capability="gfx942"), jnp.bfloat16, 64, "compute capability gfx942"),
    (_mesh(), jnp.float32, 64, "model.dtype is float32; needed is bfloat16 or float16"),
    (_mesh(), jnp.bfloat16, 132, "heads have 132 numbers; needed is a multiple of 8 up to 128"),
    (_mesh(), jnp.bfloat16, 100, "heads have 100 numbers"), (_mesh(), jnp.bfloat16, 256, "heads have 256 numbers"),
    (_mesh(context=2), jnp.bfloat16, 64, "mesh.context is 2"),
])
def test_it_is_taken_where_cudnn_can(mesh, dtype, H, words):
    found = gpu_attention.obstacle(mesh, dtype, H)
    assert words in found and bool(found) == bool(words)
    assert (gpu_attention.causal(mesh, dtype, H) is None) == bool(words)


@pytest.mark.parametrize(("changes", "mesh", "line"), [
    ({}, _mesh(), "learner  cuDNN's attention on prompts, plain on answers"),
    ({"model.dtype": "float32"}, _mesh(),
     "learner  plain attention, not cuDNN's: model.dtype is float32; needed is bfloat16 or float16"),
    ({"learner.attention": "plain"}, _mesh(), None), ({}, _mesh("cpu"), None),
])
def test_a_run_on_a_gpu_says_what_it_attends_with(changes, mesh, line):
    config = config_lib.update(config_lib.default(), changes)
    found = assemble.banner(config, ARCH, mesh, pathlib.Path("run"), {}, 1).splitlines()
    assert [one for one in found if one.startswith("learner")] == ([line] if line else [])


@pytest.fixture
def gpu(monkeypatch):
    """CPUs are taken for GPUs with the oldest cuDNN that has flash attention for every one of them."""
    monkeypatch.setattr(gpu_attention, "obstacle", lambda mesh, dtype, H: "")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91100)


def _lowered(traced):
    return traced.lower(lowering_platforms=("cuda",)).as_text()


def _learner(mesh, kind, remat="none"):
    """The gradient's program for two rows of a prefix of 90 and two answers."""
    learner = Learner(ARCH, mesh, OptimizerSettings(0.1, "constant", 0, 1), LossSettings(), dtype=jnp.bfloat16,
                      vocabulary_chunk=16, attention=kind, remat=remat)
    branch = Branch(np.zeros(12, np.int32), np.ones(12, bool), np.zeros(12, np.float32), 1.0, 1.0)
    packing = PackSettings((S,), (32,), 16, 16, rows=2)
    batch, = pack([Prefixed(np.zeros(90, np.int32), [branch] * 2)] * 2, packing)
    return _lowered(learner.trace(batch)["gradient"])


@pytest.mark.parametrize("sizes", [{"fsdp": 1}, {"fsdp": 2, "tensor": 2}])
def test_learning_is_lowered_for_a_gpu_without_the_prefixs_square(gpu, sizes):
    mesh = make_mesh(sizes, jax.devices()[:int(np.prod(list(sizes.values())))])
    plain, ours = _learner(mesh, "plain"), _learner(mesh, "auto")
    assert re.search(SQUARE, plain) and "cudnn" not in plain
    assert not re.search(SQUARE, ours)
    assert len(re.findall(FORWARD, ours)) == len(re.findall(BACKWARD, ours)) == 1  # in the body of a loop over layers
    assert len(re.findall(r'mask_type\\22: \\22CAUSAL\\22', ours)) == 2


def test_a_layer_that_is_made_again_attends_again(gpu):
    found = _learner(make_mesh({"fsdp": 1}, jax.devices()[:1]), "auto", remat="dots")
    assert len(re.findall(FORWARD, found)) == 2 and len(re.findall(BACKWARD, found)) == 1


@pytest.mark.parametrize("is_unrolled", [True, False])
def test_prefilling_is_lowered_for_a_gpu(gpu, is_unrolled):
    mesh = make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])
    model = Learner(ARCH, mesh, OptimizerSettings(0.1, "constant", 0, 1), LossSettings()).abstract.params
    for kind in ("auto", "plain"):
        steps = EngineSteps(ARCH, EngineSettings(2, 2, (S,), (32,), (0,), dtype=jnp.bfloat16, is_unrolled=is_unrolled,
                                                 attention=kind), mesh)
        traced = steps.trace(model, S, 32, 32)
        found = _lowered(traced["prefill"])
        # What the last layer's attention gives, nobody reads.
        assert len(re.findall(FORWARD, found)) == (kind == "auto") * (ARCH.L - 1 if is_unrolled else 1)
        assert bool(re.search(SQUARE, found)) == (kind == "plain")
        assert "cudnn" not in _lowered(traced["decode"])


def _arrays(shape, T, K, G, H, dtype, seed=0):
    """(branch_start, is_valid, (q, k, v), weight) of two ragged rows; only real tokens carry weight."""
    starts, is_valid = (np.stack(x) for x in zip(row(shape, T, shape.S, [16, 3]), row(shape, T, shape.S // 3, [9, 8])))
    rng = np.random.default_rng(seed)
    q, k, v = (jnp.asarray(rng.normal(size=(2, shape.S + T, K, *rest)), dtype) for rest in ((G, H), (H,), (H,)))
    return starts, is_valid, (q, k, v), jnp.asarray(rng.normal(size=q.shape) * is_valid[:, :, None, None, None], dtype)


def _run(attend, arrays, weight):
    """Values where they count, and gradients, as float32."""
    def run(q, k, v, weight):
        o, pull = jax.vjp(attend, q, k, v)
        return o * (weight != 0), *pull(weight)
    return [np.asarray(x, np.float32) for x in jax.jit(run)(*arrays, weight)]


def test_the_same_call_elsewhere_is_the_mask_rule():
    """Three queries to a key head, values and gradients of whole rows, over four devices."""
    mesh = make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])
    shape = RowShape(S=24, block=8, window=8)
    starts, is_valid, arrays, weight = _arrays(shape, 32, 4, 3, 8, jnp.float32)
    called = []

    def causal(q, k, v):
        called.append(q.shape)
        return gpu_attention.attend(q, k, v, mesh=mesh, implementation="xla")

    found = _run(row_attention("auto", mesh, causal)(starts, is_valid, shape), arrays, weight)
    expected = _run(lambda *qkv: attention.attend_rows(*qkv, starts, is_valid, shape), arrays, weight)
    assert set(called) == {(2, 24, 4, 3, 8)}
    for got, wanted in zip(found, expected, strict=True):
        assert np.abs(got - wanted).max() <= 2e-6 * np.abs(wanted).max()


@pytest.mark.parametrize(("K", "G", "H"), [(2, 4, 128), (2, 1, 64), (1, 3, 80)])
def test_on_a_gpu_it_equals_the_plain_path(K, G, H):
    """Against float32 on the same numbers; bfloat16 has eight bits of mantissa, as in test_attention's test of it."""
    if jax.devices()[0].platform != "gpu":
        pytest.skip("needs an accelerator: a GPU of NVIDIA's, with .[gpu] and JAX_PLATFORMS=cuda")
    mesh, shape = make_mesh({"fsdp": 1}, jax.devices()[:1]), RowShape(S=301, block=8, window=8)
    assert gpu_attention.obstacle(mesh, jnp.bfloat16, H) == ""
    starts, is_valid, arrays, weight = _arrays(shape, 32, K, G, H, jnp.bfloat16)
    found = _run(row_attention("auto", mesh, gpu_attention.causal(mesh, jnp.bfloat16, H))(starts, is_valid, shape), arrays, weight)
    with jax.default_matmul_precision("highest"):
        expected = _run(lambda *qkv: attention.attend_rows(*qkv, starts, is_valid, shape),
                        [x.astype(jnp.float32) for x in arrays], weight.astype(jnp.float32))
    for got, wanted in zip(found, expected, strict=True):
        assert np.abs(got - wanted).max() <= 0.02 * np.abs(wanted).max()
