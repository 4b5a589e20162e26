"""Times GRPO steps of a random tiny Llama through the project's own engine, packer and learner; prints one JSON line.

    python tests/bench/grpo.py --prompts 8 --group 8 --prompt_len 256 --resp_len 128 --steps 4

Every answer has its full length (no id stops it) and a trivial reward, so that only sampling and learning are timed; a
step ends with one AdamW update of all parameters. The first step compiles and is left out of the means.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import sys
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from swerl_jax.data.records import Turn  # noqa: E402: the checkout comes first
from swerl_jax.learn.advantage import group_advantages, token_weights  # noqa: E402
from swerl_jax.learn.batch import Branch, PackSettings, Prefixed, pack  # noqa: E402
from swerl_jax.learn.learner import Learner, OptimizerSettings  # noqa: E402
from swerl_jax.learn.loss import LossSettings  # noqa: E402
from swerl_jax.policy.arch import Arch  # noqa: E402
from swerl_jax.policy.engine import Engine, EngineSettings  # noqa: E402
from swerl_jax.policy.mesh import make_mesh  # noqa: E402

SIZES = {"prompts": 8, "group": 8, "prompt_len": 256, "resp_len": 128, "steps": 4, "dim": 256, "layers": 6, "heads": 8,
         "kv": 4, "ffn": 768, "vocab": 4096}


def sample(engine: Engine, first: int, prompts: list[np.ndarray], group: int, tokens: int,
           ) -> dict[tuple[int, int], Turn]:
    """{(prompt, sample): turn} of `group` answers of `tokens` ids to every prompt; groups are numbered from `first`."""
    for p, prompt in enumerate(prompts):
        engine.open(first + p, prompt, group, max_branch_tokens=tokens)
        for r in range(group):
            engine.draw(first + p, r, tokens)
    turns = {}
    while not engine.is_idle:
        for number, r, turn in engine.tick():
            turns[number - first, r] = turn
            engine.close(number, r)
    return turns


def groups_of(prompts: list[np.ndarray], turns: dict[tuple[int, int], Turn], group: int) -> list[Prefixed]:
    """What the learner sees, with GRPO's advantages of the reward len(set(answer)) % 7."""
    lengths = [len(turns[p, r].ids) for p in range(len(prompts)) for r in range(group)]
    weights = iter(token_weights("sequence_mean", lengths))
    groups = []
    for p, prompt in enumerate(prompts):
        answers = [turns[p, r] for r in range(group)]
        advantages = group_advantages("grpo", [float(len(set(a.ids.tolist())) % 7) for a in answers])
        groups.append(Prefixed(prompt, [
            Branch(a.ids, np.ones(len(a.ids), bool), a.logp, advantage, next(weights))
            for a, advantage in zip(answers, advantages, strict=True)]))
    return groups


def main() -> None:
    """Parses the sizes, runs the steps, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    a = parser.parse_args()
    arch = Arch(V=a.vocab, D=a.dim, L=a.layers, N=a.heads, K=a.kv, H=a.dim // a.heads, F=a.ffn, is_tied=True)
    mesh = make_mesh()
    learner = Learner(arch, mesh, OptimizerSettings(1e-6, "constant", 0, 100), LossSettings(), remat="dots")
    state = learner.init(0)
    engine = Engine(arch, EngineSettings(a.prompts, a.group, (a.prompt_len,), (a.resp_len,), stop_ids=()), mesh)
    block = a.resp_len if a.resp_len <= 256 else 128
    padded = -(-a.resp_len // block) * block
    packing = PackSettings((a.prompt_len - 1,), (a.group * padded,), block, a.resp_len, len(jax.devices()))
    random = np.random.default_rng(0)
    marks = []
    for step in range(a.steps + 1):
        prompts = [random.integers(4, a.vocab, a.prompt_len).astype(np.int32) for _ in range(a.prompts)]
        start = time.perf_counter()
        engine.load(state.params, step)
        turns = sample(engine, step * a.prompts, prompts, a.group, a.resp_len)
        sampled = time.perf_counter()
        gradient, _ = learner.gradient(state.params, pack(groups_of(prompts, turns, a.group), packing))
        state, _ = learner.update(state, gradient)
        jax.block_until_ready(state)
        marks.append((sampled - start, time.perf_counter() - start))
    gen_s, step_s = (float(np.mean([mark[i] for mark in marks[1:]])) for i in range(2))
    tokens = a.prompts * a.group * a.resp_len
    print(json.dumps({
        "peer": f"swerl_jax jax {jax.__version__}", "params": arch.parameters, "step_s": round(step_s, 3),
        "gen_s": round(gen_s, 3), "rest_s": round(step_s - gen_s, 3), "gen_tok_s": round(tokens / gen_s, 1),
        "step_tok_s": round(tokens / step_s, 1), "first_gen_s": round(marks[0][0], 1),
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "compilations": engine.compilations + learner.compilations, **vars(a)}))


if __name__ == "__main__":
    main()
