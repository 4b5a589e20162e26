"""The supervised phase: its loss is the plain model's weighted mean, whatever shares a row."""

import dataclasses

import numpy as np
import pytest
import reference_llama as reference

from swerl_jax.data.loader import Drawn
from swerl_jax.learn.batch import PackSettings
from swerl_jax.learn.learner import Learner, OptimizerSettings
from swerl_jax.learn.loss import LossSettings
from swerl_jax.learn.sft import SftPhase, SftSettings

ARCH = reference.SMALL
FIRST = 7  # the id that every prompt begins with
PROMPTS, ANSWERS = (5, 9, 2, 6), (4, 12, 7, 1)  # tokens


@dataclasses.dataclass
class Stream:
    """The numbers 0, 1, 2, … as examples."""

    position: int = 0

    def take(self, count, encode):
        numbers = range(self.position, self.position + count)
        self.position += count
        return [Drawn(number, number, encode(number)) for number in numbers]


def ids(example, lengths):
    return np.random.default_rng(100 * example + lengths[0]).integers(0, ARCH.V, lengths[example]).astype(np.int32)


def prompt(example):
    return np.concatenate([[FIRST], ids(example, PROMPTS)]).astype(np.int32)


@pytest.mark.parametrize("weight, packing", [
    (0.0, PackSettings((16,), (12,), block=4, max_branch_tokens=12, rows=2)),
    pytest.param(0.25, PackSettings((0,), (48,), block=8, max_branch_tokens=24, rows=2), marks=pytest.mark.slow),
], ids=["answers", "documents"])
def test_the_loss_is_the_plain_models_weighted_mean(weight, packing):
    model = reference.random_model(ARCH)
    learner = Learner(ARCH, reference.one_device(), OptimizerSettings(0.1, "constant", 0, 1), LossSettings("nll"))
    phase = SftPhase(SftSettings(1, 4, weight), Stream(), prompt, lambda example: ids(example, ANSWERS), learner, packing)
    parameters, loss, total = reference.parameters(model), 0.0, 0.0
    for example in range(4):
        document = np.concatenate([prompt(example), ids(example, ANSWERS)])
        logp = reference.answer_logp(parameters, ARCH, document[:1], document[1:], 1.0)
        weights = np.where(np.arange(len(logp)) < PROMPTS[example], weight, 1.0)
        loss, total = loss - weights @ logp, total + weights.sum()
    state, metrics, rows = phase.step(learner.begin(model), 0)
    assert metrics["sft/loss"] == pytest.approx(loss / total, rel=1e-5)
    assert metrics["tokens/learned"] == sum(ANSWERS) + (sum(PROMPTS) if weight else 0)
    assert rows == [] and metrics["prompt/mean"] == np.mean(PROMPTS) + 1 and metrics["length/mean"] == np.mean(ANSWERS)
