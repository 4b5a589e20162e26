"""The plain Llama that tests compare with: one sequence, every head in a loop, dense causal attention, no caches.

Written from the papers, in the order in which they define things, with nothing of the project's own model but the
layout of its parameters. Runs on numpy in float64; with `xp=jax.numpy` it can be differentiated.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from swerl_jax.policy.arch import Arch, Llama3Scaling, YarnScaling
from swerl_jax.policy.llama import Llama
from swerl_jax.policy.mesh import make_mesh

# Odd sizes; positions beyond 16 fall into every regime of the frequency scaling.
SMALL = Arch(V=61, D=32, L=2, N=4, K=2, H=16, F=48, rope_theta=1000.0,
             rope_scaling=Llama3Scaling(factor=4.0, low=1.0, high=4.0, original_context=64))


def one_device():
    return make_mesh({"fsdp": 1}, jax.devices()[:1])


def random_model(arch, seed=0, spread=0.18, lora=None):
    """A model in which no parameter is 0 or 1; matrices have the standard deviation `spread`, embeddings thrice that.

    At 0.18 ≈ 32^-0.5 logits of SMALL spread by about 1.
    """
    rng = np.random.default_rng(seed)

    def fill(path, x):
        name = jax.tree_util.keystr(path)
        centre, scale = (1.0, 0.1) if "norm" in name else (0.0, 3 * spread if "embed" in name else spread)
        return jnp.asarray(centre + scale * rng.normal(size=x.shape), x.dtype)

    with jax.set_mesh(one_device()):
        return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(lambda: Llama(arch, jax.random.key(0), lora=lora)))


def parameters(model, dtype=np.float64):
    """{name: array}, layers stacked."""
    names = ("attention_norm", "qkv", "out", "mlp_norm", "gate_up", "down", "qkv_bias", "query_norm", "key_norm")
    tree = {name: getattr(model.layers, name) for name in names if getattr(model.layers, name) is not None}
    tree |= {"embed": model.embed, "final_norm": model.final_norm}
    if model.head is not None:
        tree["head"] = model.head
    return {name: np.asarray(x[...], dtype) for name, x in tree.items()}


def frequencies(arch):
    """Radians per position of every rotated pair, the scaling as the Llama 3.1 model card states it."""
    result = []
    for i in range(arch.H // 2):
        frequency = arch.rope_theta ** (-2 * i / arch.H)
        scaling = arch.rope_scaling
        if isinstance(scaling, YarnScaling):
            # The pair whose frequency turns it r times: theta^(-2i/H) · context = 2πr.
            first, last = (arch.H / 2 * math.log(scaling.original_context / (2 * math.pi * r), arch.rope_theta)
                           for r in (scaling.fast, scaling.slow))
            first, last = max(0, math.floor(first)), min(arch.H - 1, math.ceil(last))
            ramp = min(1, max(0, (i - first) / (last - first)))
            frequency = (1 - ramp) * frequency + ramp * frequency / scaling.factor
        elif scaling is not None:
            wavelength = 2 * math.pi / frequency
            if wavelength > scaling.original_context / scaling.low:
                frequency = frequency / scaling.factor
            elif wavelength >= scaling.original_context / scaling.high:
                smooth = (scaling.original_context / wavelength - scaling.low) / (scaling.high - scaling.low)
                frequency = (1 - smooth) * frequency / scaling.factor + smooth * frequency
        result.append(frequency)
    return np.array(result)


def _norm(x, scale, epsilon, xp):
    return x / xp.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * scale


def _rotated(x, arch, xp):
    """Pairs (i, i + H/2) as complex numbers, turned by position × frequency."""
    turn = np.exp(1j * np.arange(x.shape[0])[:, None] * frequencies(arch))
    if isinstance(arch.rope_scaling, YarnScaling):
        turn = turn * (1 + 0.1 * math.log(arch.rope_scaling.factor))
    z = (x[:, : arch.H // 2] + 1j * x[:, arch.H // 2:]) * turn
    return xp.concatenate([z.real, z.imag], -1)


def _softmax(x, xp):
    weight = xp.exp(x - x.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True)


def _attention(h, p, l, arch, xp):
    def project(k, y):
        x = h @ p["qkv"][l][:, k, y]
        if "qkv_bias" in p:
            x = x + p["qkv_bias"][l][k, y]
        if "query_norm" in p and y <= arch.G:
            x = _norm(x, p["key_norm" if y == arch.G else "query_norm"][l], arch.norm_epsilon, xp)
        return x if y > arch.G else _rotated(x, arch, xp)

    hidden = ~np.tri(h.shape[0], dtype=bool)
    result = 0.0
    for k in range(arch.K):
        key, value = project(k, arch.G), project(k, arch.G + 1)
        for g in range(arch.G):
            scores = project(k, g) @ key.T / math.sqrt(arch.H)
            result = result + _softmax(xp.where(hidden, -np.inf, scores), xp) @ value @ p["out"][l][k, g]
    return result


def logits(p, arch, ids, xp=np):
    """float64 [T V] for a whole sequence of ids [T]."""
    x = p["embed"][ids]
    for l in range(arch.L):
        h = _norm(x, p["attention_norm"][l], arch.norm_epsilon, xp)
        x = x + _attention(h, p, l, arch, xp)
        h = _norm(x, p["mlp_norm"][l], arch.norm_epsilon, xp)
        gate, up = h @ p["gate_up"][l][:, 0], h @ p["gate_up"][l][:, 1]
        x = x + (gate / (1 + xp.exp(-gate)) * up) @ p["down"][l]
    return _norm(x, p["final_norm"], arch.norm_epsilon, xp) @ p.get("head", p["embed"]).T


def log_softmax(x, xp=np):
    x = x - x.max(-1, keepdims=True)
    return x - xp.log(xp.exp(x).sum(-1, keepdims=True))


def answer_logp(p, arch, prompt, answer, temperature=1.0):
    """float64 [T]: log-probability of every id of `answer` after `prompt`, the sequence taken whole."""
    ids = np.concatenate([prompt, answer])
    table = log_softmax(logits(p, arch, ids[:-1]) / temperature)[len(prompt) - 1:]
    return table[np.arange(len(answer)), answer]


def sequence_logp(p, arch, ids):
    """[A T−1]: log-probability of every id but the first of the sequences ids [A T], in jax; padding goes at the end,
    where causal attention cannot see it."""
    table = log_softmax(jax.vmap(lambda row: logits(p, arch, row, jnp))(ids[:, :-1]), jnp)
    return jnp.take_along_axis(table, ids[:, 1:, None], -1)[..., 0]
