"""Every family against `transformers`: what it writes we read, what we write it reads, and the numbers are equal."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_llama as reference
from safetensors.numpy import save_file

from swerl_jax.learn.batch import Branch, PackSettings, Prefixed, pack
from swerl_jax.learn.learner import Learner, OptimizerSettings
from swerl_jax.learn.loss import LossSettings
from swerl_jax.policy import hf, hf_weights, llama
from swerl_jax.policy.engine import Engine, EngineSettings

torch = pytest.importorskip("torch", reason="torch is not installed; bash tests/run.sh --slow installs it")
transformers = pytest.importorskip("transformers", reason="transformers is not installed; bash tests/run.sh --slow does it")
pytestmark = pytest.mark.slow
TOKENS = 512
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 1e4}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 128, "rope_theta": 1e4}
SMALL = dict(vocab_size=97, hidden_size=48, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
             intermediate_size=80, max_position_embeddings=1024, initializer_range=0.15, bos_token_id=1, eos_token_id=None,
             pad_token_id=None)
FAMILIES = {
    "llama3": (transformers.LlamaConfig, dict(head_dim=16)),
    "llama3.1": (transformers.LlamaConfig, dict(rope_parameters=LLAMA3, rms_norm_eps=1e-5)),
    "llama3.2": (transformers.LlamaConfig, dict(rope_parameters=LLAMA3, tie_word_embeddings=True, num_key_value_heads=6)),
    "qwen2.5": (transformers.Qwen2Config, dict(tie_word_embeddings=True)),
    "qwen2.5_yarn": (transformers.Qwen2Config, dict(rope_parameters=YARN)),
    "qwen3": (transformers.Qwen3Config, dict(head_dim=24)),
    "qwen3_yarn": (transformers.Qwen3Config, dict(head_dim=10, tie_word_embeddings=True, rope_parameters=YARN)),
}


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """(their model, our arch, our model, the directory that they wrote)."""
    kind, changes = FAMILIES[request.param]
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(kind(**{**SMALL, **changes})).eval()
    with torch.no_grad():
        for name, x in theirs.named_parameters():
            if "norm" in name or "bias" in name:  # fresh ones are all 1 or 0
                x.add_(0.3 * torch.randn_like(x))
    directory = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(directory)
    arch = hf.read_arch(str(directory))
    return theirs, arch, hf_weights.load(str(directory), arch, _learner(arch).abstract.params), directory


def _learner(arch):
    return Learner(arch, reference.one_device(), OptimizerSettings(0.1, "constant", 0, 1), LossSettings("nll"))


def _ids(arch, seed, *shape):
    return np.random.default_rng(seed).integers(0, arch.V, shape)


def _causal(q, k, v, cache):
    scores = jnp.einsum("tkgh,skh->kgts", q, k) * q.shape[-1] ** -0.5
    scores = jnp.where(jnp.tri(q.shape[0], dtype=bool), scores, -jnp.inf)
    return jnp.einsum("kgts,skh->tkgh", jax.nn.softmax(scores, -1), v), cache


def test_logits(pair):
    theirs, arch, ours, _ = pair
    ids = _ids(arch, 0, TOKENS)
    hidden, _ = jax.jit(llama.trunk, static_argnames=("arch", "attend"))(ours, arch, ids, jnp.arange(TOKENS), _causal)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)[None]).logits[0].numpy()
    assert expected.std() > 0.5, "flat logits would prove little"
    assert np.abs(np.asarray(hidden @ ours.unembed.T) - expected).max() <= 2e-4


def test_greedy_answers(pair):
    theirs, arch, ours, _ = pair
    engine = Engine(arch, EngineSettings(groups=1, samples=1, prefix_buckets=(160,), branch_buckets=(72,), stop_ids=(),
                                         ticks=64, temperature=0.0), reference.one_device())
    engine.load(ours, version=0)
    prompt = _ids(arch, 1, 150)
    engine.open(0, prompt.astype(np.int32), 1, max_branch_tokens=72)
    engine.draw(0, 0, 64)
    (_, _, turn), = engine.tick()
    with torch.no_grad():
        whole = theirs.generate(torch.tensor(prompt)[None], max_new_tokens=64, do_sample=False)[0].numpy()
    np.testing.assert_array_equal(turn.ids, whole[150:])


def test_gradients(pair, tmp_path):
    theirs, arch, ours, _ = pair
    prompt, answer = _ids(arch, 2, 140), _ids(arch, 3, 60)
    branch = Branch(answer.astype(np.int32), np.ones(60, bool), np.zeros(60, np.float32), 1.0, 1 / 60)
    batches = pack([Prefixed(prompt.astype(np.int32), [branch])], PackSettings((144,), (64,), 16, 64, rows=1))
    gradient, _ = _learner(arch).gradient(ours, batches)

    labels = torch.tensor(np.concatenate([np.full(140, -100), answer]))[None]
    theirs.zero_grad()
    theirs(torch.tensor(np.concatenate([prompt, answer]))[None], labels=labels).loss.backward()
    save_file({name: x.grad.numpy() for name, x in theirs.named_parameters()}, tmp_path / "model.safetensors")
    expected = hf_weights.load(str(tmp_path), arch, _learner(arch).abstract.params)  # in our layout
    for name, wanted in reference.parameters(expected).items():
        found = reference.parameters(gradient)[name]
        assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max(), name


def test_what_we_write_they_read(pair, tmp_path):
    theirs, arch, ours, directory = pair
    hf_weights.write(tmp_path, arch, ours, "float32", max_file_bytes=60_000)
    (tmp_path / "config.json").write_text(json.dumps(hf.config(arch, "float32")))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.state_dict().keys() == theirs.state_dict().keys()
    for name, x in theirs.state_dict().items():
        assert torch.equal(x, again.state_dict()[name]), name
    ids = torch.tensor(_ids(arch, 4, 1, TOKENS))
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, again(ids).logits)
