"""Supervised fine-tuning as a phase of the same loop: one branch a prompt, the oracle's answer, every advantage 1."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from swerl_jax.data.loader import Loader
from swerl_jax.data.records import Example
from swerl_jax.learn.advantage import token_weights
from swerl_jax.learn.batch import Branch, PackSettings, Prefixed, pack, padding_fraction
from swerl_jax.learn.learner import Learner, State


@dataclasses.dataclass(frozen=True)
class SftSettings:
    """steps: optimiser steps. examples: prompts with one answer each, a step.

    prompt_weight: loss weight of a prompt's token, an answer's being 1. Above 0 a branch is the whole document, prompt
    and answer, behind the prompt's first id.
    """

    steps: int
    examples: int
    prompt_weight: float = 0.0


class SftPhase:
    """One phase: `step` draws examples and takes one optimiser step on the mean token NLL of answers, or of documents.

    Args:
      prompt_ids, answer_ids: example → int32 [S] and int32 [T]; the answer ends with its stop id.
    """

    name = "sft"

    def __init__(self, settings: SftSettings, loader: Loader, prompt_ids: Callable[[Example], np.ndarray],
                 answer_ids: Callable[[Example], np.ndarray], learner: Learner, packing: PackSettings):
        self.settings, self.loader, self.learner = settings, loader, learner
        self.steps = settings.steps
        self._prompt_ids, self._answer_ids, self._packing = prompt_ids, answer_ids, packing

    @property
    def compilations(self) -> int:
        """Of the learner."""
        return self.learner.compilations

    def step(self, state: State, step: int) -> tuple[State, dict[str, Any], list[dict[str, Any]]]:
        """Returns (state, metrics and, under "skips", whether its update was skipped, no rollout rows)."""
        del step
        started = time.perf_counter()
        drawn = self.loader.take(self.settings.examples, lambda example: (self._prompt_ids(example), self._answer_ids(example)))
        prompts, answers = zip(*(one.encoded for one in drawn), strict=True)
        batches = pack(self._groups(prompts, answers), self._packing)
        gradient, sums = self.learner.gradient(state.params, batches)
        state, report = self.learner.update(state, gradient)
        seconds = time.perf_counter() - started
        valid = sum(int(b.is_valid.sum()) for b in batches)
        return state, {
            "skips": [report["skipped"] > 0],
            "sft/loss": sums["loss"], "loss": sums["loss"], "entropy": sums["entropy"] / sums["tokens"],
            "grad_norm": report["grad_norm"], "lr": report["lr"], "update/count": 1, "update/skipped": report["skipped"],
            "padding_frac": padding_fraction(batches), "tokens/learned": sums["tokens"],
            "length/mean": float(np.mean([len(ids) for ids in answers])),
            "prompt/mean": float(np.mean([len(ids) for ids in prompts])),
            "seconds/learn": seconds, "tokens_per_s/learn": valid / seconds}, []

    def _groups(self, prompts: Sequence[np.ndarray], answers: Sequence[np.ndarray]) -> list[Prefixed]:
        """Every answer behind its prompt; or, where prompts are learnt too, whole documents behind the first id."""
        if not self.settings.prompt_weight:
            weights = token_weights("token_mean", [len(ids) for ids in answers])
            return [Prefixed(prompt, [_branch(ids, weight)]) for prompt, ids, weight in zip(prompts, answers, weights)]
        parts = [np.repeat(np.float32([self.settings.prompt_weight, 1]), [len(prompt) - 1, len(answer)])
                 for prompt, answer in zip(prompts, answers)]
        total = sum(float(part.sum()) for part in parts)
        return [Prefixed(prompt[:1], [_branch(np.concatenate([prompt[1:], answer]), part / total)])
                for prompt, answer, part in zip(prompts, answers, parts)]


def _branch(ids: np.ndarray, weight: float | np.ndarray) -> Branch:
    return Branch(ids, np.ones(len(ids), bool), np.zeros(len(ids), np.float32), 1.0, weight)
