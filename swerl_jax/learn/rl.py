"""Reinforcement learning as a phase of the loop: sample groups, turn rewards into advantages, take optimiser steps."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from swerl_jax.data.loader import Loader
from swerl_jax.data.records import FORMAT_REASONS, INFRA_FAULT, LENGTH, Example, Group, Rollout
from swerl_jax.env.collector import Collector
from swerl_jax.env.episode import Task
from swerl_jax.learn import advantage, deal, importance
from swerl_jax.learn.batch import Batch, Branch, PackSettings, Prefixed, pack, padding_fraction
from swerl_jax.learn.learner import Learner, State
from swerl_jax.learn.processes import ALONE, Processes
from swerl_jax.policy.engine import Engine
from swerl_jax.policy.llama import Llama


@dataclasses.dataclass(frozen=True)
class RlSettings:
    """See the rl section of config.py for every meaning and source."""

    steps: int
    prompts: int
    samples: int
    minibatches: int
    epochs: int
    advantage: str
    aggregation: str
    constant_length: int
    learn_truncated: bool
    drop_constant_groups: bool
    max_draws: int
    max_logp_diff: float
    importance_cap: float
    max_fault_frac: float


class StepError(ValueError):
    """A step that ends the run.

    Attributes:
      rows: the rollout rows of what it drew.
    """

    def __init__(self, problem: str, rows: list[dict[str, Any]]):
        super().__init__(problem)
        self.rows = rows


class RlPhase:
    """One phase: `step` samples a batch of groups and learns from it.

    Args:
      loader: the stream of examples. prompt_ids: example → prompt, int32 [S].
      scorer_retries: how often scoring was tried again so far.
      reference: parameters for the k3 penalty, or None.
      processes: deal the answers of a step among themselves; each then packs all of them and feeds its own rows.
    """

    name = "rl"

    def __init__(self, settings: RlSettings, loader: Loader, prompt_ids: Callable[[Example], np.ndarray],
                 engine: Engine, collector: Collector, learner: Learner, packing: PackSettings,
                 reference: Llama | None = None, scorer_retries: Callable[[], int] = lambda: 0, processes: Processes = ALONE):
        self.settings, self.loader, self.learner, self.engine = settings, loader, learner, engine
        self.steps = settings.steps
        self.reference = reference
        self._prompt_ids, self._collector, self._packing = prompt_ids, collector, packing
        self._scorer_retries, self._processes = scorer_retries, processes

    @property
    def compilations(self) -> int:
        """Of the engine and the learner together."""
        return self.engine.compilations + self.learner.compilations

    def step(self, state: State, step: int) -> tuple[State, dict[str, Any], list[dict[str, Any]]]:
        """Samples, scores, learns.

        Returns:
          (state, metrics and, under "skips", which of its updates were skipped, rollout rows).

        Raises:
          StepError: too many faults of ours, too few groups to learn from, sampler and learner disagree, or wrong examples.
        """
        groups: list[Group] = []
        try:
            state, metrics = self._step(state, step, groups)
        except ValueError as error:
            raise StepError(str(error), _rows(groups)) from error
        return state, metrics, _rows(groups)

    def _step(self, state: State, step: int, groups: list[Group]) -> tuple[State, dict[str, Any]]:
        """(state, metrics); `groups` gets all that are drawn."""
        started, retries, waiting = time.perf_counter(), self._scorer_retries(), self._collector.seconds_waiting
        self.engine.load(state.params, step)
        loaded, weight_bytes = time.perf_counter(), self.engine.weight_bytes
        kept = self._sample(step, groups)
        sampled = time.perf_counter()
        metrics = rollout_metrics(groups) | {"seconds/weights": loaded - started, "weights/bytes": weight_bytes}
        metrics["scorer/retries"] = self._scorer_retries() - retries
        metrics["seconds/score"] = self._collector.seconds_waiting - waiting
        metrics["group/dropped"] = len(groups) - len(kept)
        self._check_faults(metrics["infra_faults"], sum(len(g.rollouts) for g in groups))
        state, learned = self._learn(state, kept)
        ended = time.perf_counter()
        metrics |= learned
        metrics["seconds/sample"], metrics["seconds/learn"] = sampled - started, ended - sampled
        metrics["tokens_per_s/sample"] = metrics["tokens/sampled"] / (sampled - started)
        metrics["tokens_per_s/learn"] = metrics.pop("valid_tokens") / (ended - sampled)
        return state, metrics

    def _sample(self, step: int, drawn: list[Group]) -> list[Group]:
        """The groups to learn from; `drawn` gets all, both in source order."""
        settings = self.settings
        kept: list[Group] = []
        while len(kept) < settings.prompts:
            need = settings.prompts - len(kept)
            if len(drawn) + need > settings.prompts * settings.max_draws:
                raise ValueError(
                    f"{len(drawn)} groups were drawn and only {len(kept)} have unequal rewards, "
                    f"{settings.prompts} are needed; raise rl.max_draws or rl.samples, choose examples that are neither too "
                    "easy nor too hard, or set rl.drop_constant_groups=False")
            tasks = [Task(one.index, one.example, one.encoded, settings.samples)
                     for one in self.loader.take(need, self._prompt_ids)]
            groups = deal.answer(f"answers of step {step}, {len(drawn)} groups before", tasks, self.engine, self._collector,
                                 self._processes)
            drawn += groups
            kept += [g for g in groups if not (settings.drop_constant_groups and advantage.is_constant(_rewards(g)))]
        self.engine.unload()
        return kept

    def _check_faults(self, faults: float, answers: int) -> None:
        limit = self.settings.max_fault_frac
        if faults > limit * answers:
            raise ValueError(f"{faults:.0f} of {answers} answers have no verdict because scoring failed, more than the "
                             f"{limit:.0%} that reward.max_fault_frac allows; their reasons are in their rows")

    def _learn(self, state: State, groups: Sequence[Group]) -> tuple[State, dict[str, Any]]:
        """rl.epochs × rl.minibatches optimiser steps; each normalises its weights over its own minibatch."""
        settings = self.settings
        size = len(groups) // settings.minibatches
        starts = range(0, len(groups), size)
        minibatches = [pack(self._prefixed(groups[start:start + size]), self._packing) for start in starts]
        minibatches = [batches for batches in minibatches if batches]
        agreement: dict[str, float] = {}
        if settings.importance_cap and not self.learner.loss.importance_cap and minibatches:
            minibatches, agreement = self._corrected(state.params, minibatches)
        sums, reports = [], []
        for batches in minibatches * settings.epochs:
            gradient, total = self.learner.gradient(state.params, batches, self._reference(batches))
            agreement = agreement or total  # before the first update the parameters are the sampler's
            self._check_agreement(agreement)
            state, report = self.learner.update(state, gradient)
            sums.append(total)
            reports.append(report)
        packed = sum(minibatches * settings.epochs, [])
        metrics = _learner_metrics(sums, reports, packed, agreement)
        if self.learner.loss.kl_coefficient and sums:
            metrics["kl_ref"] = sum(s["kl"] for s in sums) / max(sum(s["tokens"] for s in sums), 1)
        return state, metrics

    def _corrected(self, params: Llama, minibatches: list[list[Batch]]) -> tuple[list[list[Batch]], dict[str, float]]:
        """(the minibatches as if the learner had sampled them, how far it is from the sampler); costs a forward pass."""
        cap = self.settings.importance_cap
        logps = [[self.learner.logp(params, batch) for batch in batches] for batches in minibatches]
        agreement = importance.differences(sum(minibatches, []), sum(logps, []), cap)
        return [[importance.corrected(batch, logp, cap) for batch, logp in zip(*pair, strict=True)]
                for pair in zip(minibatches, logps, strict=True)], agreement

    def _reference(self, batches: Sequence[Batch]) -> list[np.ndarray] | None:
        if not self.learner.loss.kl_coefficient:
            return None
        return [self.learner.logp(self.reference, batch) for batch in batches]

    def _check_agreement(self, sums: dict[str, float]) -> None:
        """Numbers that are not finite pass: they make the gradient so, too, and its update is skipped and counted."""
        mean = sums["logp_diff"] / max(sums["tokens"], 1)
        if mean > self.settings.max_logp_diff:
            raise ValueError(f"logp_diff/mean is {mean:.4g} nats, above rl.max_logp_diff={self.settings.max_logp_diff}: "
                             "sampler and learner disagree about the same tokens, so the gradient would be wrong; "
                             "use a wider model.dtype, or report this as a bug")

    def _prefixed(self, groups: Sequence[Group]) -> list[Prefixed]:
        """Branches with advantages and token weights; answers without a verdict are left out.

        So are those whose advantage is 0, after they were counted in the weights: their gradient is exactly 0, unless a k3
        penalty holds them to the reference.
        """
        settings = self.settings
        chosen = []
        for group in groups:
            advantages = advantage.group_advantages(settings.advantage, _rewards(group))
            chosen += [(group, r, a) for r, a in zip(group.rollouts, advantages) if a is not None and self._learns(r)]
        lengths = [int(r.is_sampled.sum()) for _, r, _ in chosen]
        weights = advantage.token_weights(settings.aggregation, lengths, settings.constant_length) if chosen else []
        branches: dict[int, list[Branch]] = {}
        for (group, r, a), weight in zip(chosen, weights):
            if a == 0 and not self.learner.loss.kl_coefficient:
                continue
            branches.setdefault(group.index, []).append(Branch(r.ids, r.is_sampled, r.logp, a, weight))
        return [Prefixed(g.prompt, branches[g.index]) for g in groups if g.index in branches]

    def _learns(self, rollout: Rollout) -> bool:
        return self.settings.learn_truncated or rollout.stop_reason != LENGTH


def _rewards(group: Group) -> list[float | None]:
    return [r.outcome.reward for r in group.rollouts]


def _learner_metrics(sums: list[dict[str, float]], reports: list[dict[str, float]], packed: list[Batch],
                     agreement: dict[str, float]) -> dict[str, Any]:
    """Means over the updates of a step; `agreement` holds what sampler and learner differ by before the first."""
    if not sums:
        return {"skips": [], "update/count": 0, "update/skipped": 0, "tokens/learned": 0, "valid_tokens": 0}
    tokens = max(sum(s["tokens"] for s in sums), 1)
    mean = {name: sum(s[key] for s in sums) / tokens for name, key in (
        ("entropy", "entropy"), ("clip/low_frac", "clip_low"), ("clip/high_frac", "clip_high"))}
    return {**mean,
            "logp_diff/mean": agreement["logp_diff"] / max(agreement["tokens"], 1), "logp_diff/max": agreement["logp_diff_max"],
            "importance/capped_frac": agreement.get("capped", 0) / max(agreement["tokens"], 1),
            "loss": float(np.mean([s["loss"] for s in sums])),
            "grad_norm": float(np.mean([r["grad_norm"] for r in reports])), "lr": reports[-1]["lr"],
            "skips": [r["skipped"] > 0 for r in reports],
            "update/count": len(reports), "update/skipped": sum(r["skipped"] for r in reports),
            "padding_frac": padding_fraction(packed), "tokens/learned": sum(s["tokens"] for s in sums),
            "valid_tokens": sum(int(b.is_valid.sum()) for b in packed)}


def rollout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """What the answers of one step were like; see metrics.METRICS for names and units."""
    rollouts = [r for g in groups for r in g.rollouts]
    known = [r for r in rollouts if r.outcome.status != INFRA_FAULT]
    rewards = np.array([r.outcome.reward for r in known] or [np.nan])
    formed = [r.outcome.reward for r in known if r.outcome.is_well_formed]
    lengths = np.array([len(r.ids) for r in rollouts])
    count = len(known) or math.nan  # without a verdict there is no number
    reasons = {f"format/{reason}_frac": sum(r.outcome.reason == reason for r in known) / count
               for reason in FORMAT_REASONS}
    return {"reward/mean": float(rewards.mean()), "reward/std": float(rewards.std()),
            "reward/well_formed_mean": float(np.mean(formed)) if formed else float("nan"),
            "exact_frac": sum(r.outcome.is_exact for r in known) / count,
            "format/correct_frac": len(formed) / count, **reasons,
            "group/zero_std_frac": float(np.mean([advantage.is_constant(_rewards(g)) for g in groups])),
            "group/drawn": len(groups),
            "length/mean": float(lengths.mean()), "length/p95": float(np.percentile(lengths, 95)),
            "length/max": int(lengths.max()),
            "length/clipped_frac": float(np.mean([r.stop_reason == LENGTH for r in rollouts])),
            "prompt/mean": float(np.mean([len(g.prompt) for g in groups])),
            "tokens/sampled": int(sum(r.is_sampled.sum() for r in rollouts)),
            "infra_faults": len(rollouts) - len(known)}


def _rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    return [row for group in groups for row in rollout_rows(group)]


def rollout_rows(group: Group) -> list[dict[str, Any]]:
    """The group as JSON rows for rollouts/: one of the group, then one an answer; the score task reads them again."""
    example = group.example
    head = {"kind": "group", "example_id": example.id, "index": group.index, "prompt_tokens": len(group.prompt),
            "issue": example.issue, "code_context": dict(example.files), "oracle_new_content": dict(example.oracle)}
    rows = [{"kind": "rollout", "example_id": example.id, "sample": r.sample, "output": r.text,
             "reward": r.outcome.reward, "status": r.outcome.status, "reason": r.outcome.reason,
             "detail": r.outcome.detail, "is_well_formed": r.outcome.is_well_formed, "is_exact": r.outcome.is_exact,
             "stop_reason": r.stop_reason,
             "tokens": len(r.ids), "logp": float(r.logp[r.is_sampled].sum(dtype=np.float64)),
             "version": int(r.version.max(initial=-1)),
             "similarities": [{"path": s.path, "similarity": s.ratio} for s in r.outcome.similarities]}
            for r in group.rollouts]
    return [head, *rows]
