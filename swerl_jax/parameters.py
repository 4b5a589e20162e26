"""Where the parameters of a run come from: a model's directory, what `export` wrote, or another run."""

from __future__ import annotations

import dataclasses
import pathlib

from swerl_jax import run_directory
from swerl_jax.learn.checkpoint import Checkpoints, load_arrays
from swerl_jax.learn.learner import Learner, State, from_arrays, params_to_arrays, to_arrays
from swerl_jax.learn.processes import ALONE, Processes
from swerl_jax.models import shipped
from swerl_jax.policy import hf, hf_weights
from swerl_jax.policy.llama import Llama, Lora, is_low_rank


def load(spec: str, learner: Learner, processes: Processes = ALONE) -> Llama:
    """Parameters on the learner's mesh: of a model's directory (see `shipped.find`), or a run's newest good checkpoint.

    Raises:
      ValueError: there is none, or it has other sizes than the learner's model, or another low-rank change.
    """
    directory = shipped.find(spec)
    if directory is None:
        return _of_run(spec, learner, processes)
    found, wanted = (dataclasses.asdict(one) for one in (hf.read_arch(directory), learner.arch))
    other = [f"{name} is {found[name]} and not {wanted[name]}" for name in wanted
             if found[name] != wanted[name] and name != "context"]
    if other:
        raise ValueError(f"{spec} has other sizes than the configured model: {'; '.join(other)}; set model.arch and "
                         "tokenizer to its own")
    if shipped.is_orbax(directory):
        return from_arrays(learner.base, load_arrays(
            pathlib.Path(directory, shipped.PARAMS_NAME), params_to_arrays(learner.base)))
    return hf_weights.load(directory, learner.arch, learner.base)


def _of_run(directory: str, learner: Learner, processes: Processes) -> Llama:
    checkpoints = Checkpoints.open(directory, processes=processes)
    saved = checkpoints.paths(checkpoints.newest)
    is_changed = any(map(is_low_rank, saved))
    if is_changed:
        _check_change(directory, learner.lora)
    model = learner.abstract.params if is_changed else learner.base
    arrays, _ = checkpoints.restore(checkpoints.newest, to_arrays(State(None, model, None)), is_part=True)  # whatever optimiser
    return from_arrays(State(None, model, None), arrays).params


def _check_change(directory: str, lora: Lora | None) -> None:
    """Refuses to go on with a low-rank change that another rank, alpha or targets would make another one of."""
    settings = run_directory.read_settings(directory)
    its = [settings.get(f"lora.{name}") for name in ("rank", "alpha", "targets")]
    here = [0, None, None] if lora is None else [lora.rank, lora.alpha, list(lora.targets)]
    if its != here:
        told = (f"lora.rank {rank}, lora.alpha {alpha}, lora.targets {targets}" for rank, alpha, targets in (its, here))
        raise ValueError(f"{directory} learnt a low-rank change, {next(told)}, and here it would be another, {next(told)}; give "
                         "its settings, or export it, which merges the change into the matrices")
