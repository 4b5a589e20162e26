"""The one loop: phases in order, each step sampled or drawn, learnt, logged, evaluated and saved.

What is on disk after step k is what an uninterrupted run would have after step k, whatever killed the process: logs are
rewound to the checkpoint that a resumed run starts from, and every random number is folded from counters.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax

from swerl_jax.data.loader import Loader
from swerl_jax.env.progress import Progress
from swerl_jax.learn import evaluate
from swerl_jax.learn.checkpoint import Checkpoints
from swerl_jax.learn.evaluate import Evaluator
from swerl_jax.learn.learner import Learner, State, from_arrays, to_arrays
from swerl_jax.learn.metrics import EVALUATIONS_NAME, RL_COLUMNS, SFT_COLUMNS, MetricsLog, RolloutLog, terminal_line
from swerl_jax.learn.processes import ALONE, Processes, StopRequested
from swerl_jax.learn.rl import StepError, rollout_rows

_LOOK_S = 0.5  # between two looks whether another process was told to stop

COLUMNS = {"rl": RL_COLUMNS, "sft": SFT_COLUMNS}


class Phase(Protocol):
    """A source of steps. `name` is sft or rl; `steps` how many; `loader` its stream; `learner` what updates."""

    name: str
    steps: int
    loader: Loader
    learner: Learner
    compilations: int

    def step(self, state: State, step: int) -> tuple[State, dict[str, Any], list[dict[str, Any]]]:
        """One step: (state, metrics and, under "skips", which of its updates were skipped, rollout rows)."""


class StopSignal:
    """SIGTERM and SIGINT, at this process or another, as a flag that the loop looks at where nothing is half done.

    Args:
      grace_s: seconds after the signal at which the process ends even if the last finished step is not saved yet.
    """

    def __init__(self, grace_s: float, processes: Processes = ALONE):
        self._grace_s, self._processes = grace_s, processes
        self._looked_s = time.monotonic()
        self._is_set = threading.Event()
        self._timer: threading.Timer | None = None

    def install(self) -> None:
        """Takes over both signals; the main thread must call."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def poll(self) -> None:
        """Raises StopRequested once a signal has come; the other processes may learn of it later."""
        if not self._is_set.is_set() and time.monotonic() - self._looked_s > _LOOK_S:
            self._looked_s = time.monotonic()
            if self._processes.is_stop_announced():
                self.follow()
        if self._is_set.is_set():
            raise StopRequested

    def saved(self) -> None:
        """Says that all is on disk; the grace time no longer matters."""
        if self._timer is not None:
            self._timer.cancel()

    def _on_signal(self, number: int, frame: Any) -> None:
        del frame
        if self._is_set.is_set():
            return
        self._processes.announce_stop()
        self._begin(signal.Signals(number).name)

    def follow(self) -> None:
        """Another process stops: this one does, too, within the same time."""
        if not self._is_set.is_set():
            self._begin("another process was told to stop")

    def _begin(self, reason: str) -> None:
        self._is_set.set()
        print(f"\n{reason}: saving the last finished step, at most {self._grace_s:g} s", file=sys.stderr, flush=True)
        self._timer = threading.Timer(self._grace_s, _give_up, [self._grace_s])
        self._timer.daemon = True
        self._timer.start()


def _give_up(grace_s: float) -> None:
    print(f"not saved within {grace_s:g} s; the newest checkpoint on disk is what --resume will find", file=sys.stderr,
          flush=True)
    signal.raise_signal(signal.SIGKILL)


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """How often things happen, in steps.

    Attributes:
      eval_every: 0: only at the ends of phases (and before the first step, unless it starts from random parameters).
      checkpoint_every: and at the end. max_skipped: non-finite updates in a row that end the run.
      is_first_evaluated: evaluate before the first step.
    """

    eval_every: int
    checkpoint_every: int
    max_skipped: int
    is_first_evaluated: bool


class Loop:
    """Runs phases in `directory`. Give it a state and the step it belongs to, call `run`.

    Of several processes, which all run the same steps, the first alone writes logs.
    """

    def __init__(self, directory: pathlib.Path, phases: Sequence[Phase], evaluator: Evaluator, checkpoints: Checkpoints,
                 settings: LoopSettings, stop: StopSignal, *, tensorboard: bool, log_rollouts: bool,
                 say: Callable[[str], None] = print, processes: Processes = ALONE):
        self.phases, self.settings = phases, settings
        self.total = sum(phase.steps for phase in phases)
        self._evaluator, self._checkpoints, self._stop, self._say = evaluator, checkpoints, stop, say
        self._processes = processes
        is_first = processes.index == 0
        self._metrics = MetricsLog(directory, tensorboard) if is_first else None
        self._rollouts = RolloutLog(directory) if log_rollouts and is_first else None
        self._evaluations = RolloutLog(directory, EVALUATIONS_NAME) if is_first else None
        self._owner = 0  # index of the phase whose optimiser the state has
        self._skipped = 0  # updates in a row
        self._saving_s = 0.0  # since the last line
        self._saved_step = -1
        self._unlogged: dict[str, Any] | None = None  # metrics of the last finished step, while its line is not written

    def restore(self) -> tuple[State, int] | None:
        """(state, step) of the newest good checkpoint; the logs and streams are taken back to it.

        Returns:
          None if the run was stopped before its first checkpoint: it begins again.

        Raises:
          ValueError: there are checkpoints and none is good.
        """
        step = self._checkpoints.latest_good()
        if step is None and any(self._checkpoints.steps()):  # one of step 0 that was not finished is made again
            raise ValueError(f"no good checkpoint in {self._checkpoints.directory}: nothing to resume; start the run again "
                             "in another --workdir")
        for log in (self._metrics, self._rollouts, self._evaluations):
            if log is not None:
                log.rewind(-1 if step is None else step)
        if step is None:
            return None
        self._owner = self._checkpoints.host(step)["owner"]
        abstract = self.phases[self._owner].learner.abstract
        arrays, host = self._checkpoints.restore(step, to_arrays(abstract))
        for i, phase in enumerate(self.phases):
            phase.loader.restore(host["loaders"][i])
        self._skipped, self._saved_step = host["skipped"], step
        self._unlogged = json.loads(host["unlogged"])
        return from_arrays(abstract, arrays), step

    def run(self, state: State, step: int) -> State:
        """Takes the steps that are left; every one is on disk as the settings say.

        Raises:
          StopRequested: after saving, when a signal came. ValueError: numbers went wrong; names metric and step.
        """
        self._progress = Progress(self.total - step, "training")
        try:
            self._begin(state, step)
            while step < self.total:
                index = self._phase_index(step)
                phase = self.phases[index]
                if index != self._owner:
                    state, self._owner = phase.learner.begin(state.params), index
                self._processes.exchange(f"step {step}", self._stop.poll)  # all stop, or none
                state, metrics, rows = self._step(phase, state, step)
                step += 1
                self._log(phase, step, state, metrics, rows)
                self._progress.advance(note=phase.name)
                if step % self.settings.checkpoint_every == 0 or step == self.total:
                    self._save(state, step)
        except StopRequested:
            self._stop.follow()
            self._save(state, step)
            raise
        finally:
            self._checkpoints.wait()
            if self._metrics is not None:
                self._metrics.close()
            self._stop.saved()
        return state

    def _phase_index(self, step: int) -> int:
        """Which phase takes the step after `step` finished ones."""
        for index, phase in enumerate(self.phases):
            if step < phase.steps:
                return index
            step -= phase.steps
        raise AssertionError("no step is left")

    def _is_phase_end(self, step: int) -> bool:
        ends = [sum(phase.steps for phase in self.phases[:i + 1]) for i in range(len(self.phases))]
        return step in ends

    def _begin(self, state: State, step: int) -> None:
        """A line that a signal kept from being written, or what belongs to step 0."""
        if self._unlogged is not None:
            self._record(step, state, self._unlogged)
        elif step == 0 and self._saved_step < 0 and self.settings.is_first_evaluated:
            self._record(0, state, {"task": "eval"})
        self._save(state, step)  # so that a kill in the first step can be resumed

    def _step(self, phase: Phase, state: State, step: int) -> tuple[State, dict[str, Any], list[dict[str, Any]]]:
        started = time.perf_counter()
        positions = [p.loader.state() for p in self.phases]
        try:
            state, metrics, rows = phase.step(state, step)
        except StopRequested:
            for p, position in zip(self.phases, positions):
                p.loader.restore(position)  # the step did not happen
            raise
        except StepError as error:
            where = f"; its answers are in {self._rollouts.write(step + 1, error.rows)}" if self._rollouts and error.rows else ""
            raise ValueError(f"step {step + 1}: {error}{where}") from error
        metrics["seconds/step"] = time.perf_counter() - started
        return state, metrics, rows

    def _log(self, phase: Phase, step: int, state: State, metrics: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        if rows and self._rollouts is not None:
            self._rollouts.write(step, rows)
        counters = phase.loader.state()
        metrics |= {"task": phase.name, "data/position": counters["position"],
                    "data/dropped_over_budget": counters.get("dropped/over_budget", 0),
                    "data/not_expressible": counters.get("dropped/not_expressible", 0),
                    "data/malformed": counters.get("dropped/malformed", 0)}
        most = self._count_skipped(metrics.pop("skips"))
        self._record(step, state, metrics)
        if most >= self.settings.max_skipped:
            raise ValueError(f"grad_norm was not finite in {most} updates in a row, the last in step {step}; lower the "
                             "learning rate, or use a wider model.dtype")

    def _count_skipped(self, skips: Sequence[bool]) -> int:
        """The most in a row up to any of a step's updates, in their order."""
        most = 0
        for is_skipped in skips:
            self._skipped = self._skipped + 1 if is_skipped else 0
            most = max(most, self._skipped)
        return most

    def _record(self, step: int, state: State, metrics: dict[str, Any]) -> None:
        """Evaluates where it is due and writes the step's line; a signal in between leaves it to the resumed run."""
        self._unlogged = dict(metrics)
        every = self.settings.eval_every
        if self._is_phase_end(step) or step == 0 or (every and step % every == 0):
            metrics |= self._evaluate(state, step)
        metrics |= {"compilations": sum(p.compilations for p in self.phases) + self._evaluator.engine.compilations,
                    "memory/peak_gib": _peak_gib()}
        metrics["seconds/checkpoint"], self._saving_s = self._saving_s, 0.0
        self._unlogged = None
        if self._metrics is None:
            return
        self._metrics.write(step, metrics)
        self._progress.clear()
        self._say(terminal_line(step, self.total, metrics, COLUMNS.get(metrics["task"], RL_COLUMNS)))

    def _evaluate(self, state: State, step: int) -> dict[str, Any]:
        started = time.perf_counter()
        groups = self._evaluator.run(state.params, step)
        if self._evaluations is not None:
            self._evaluations.write(step, [row for group in groups for row in rollout_rows(group)])
        return {**evaluate.metrics(groups), "seconds/eval": time.perf_counter() - started}

    def _save(self, state: State, step: int) -> None:
        if step == self._saved_step:
            return
        started = time.perf_counter()
        host = {"step": step, "owner": self._owner, "loaders": [phase.loader.state() for phase in self.phases],
                "skipped": self._skipped, "unlogged": json.dumps(self._unlogged)}
        self._checkpoints.save(step, to_arrays(state), host)
        self._saved_step = step
        self._saving_s += time.perf_counter() - started


def _peak_gib() -> float:
    """Peak bytes of the busiest accelerator, or of this process on CPU, in GiB."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peak = max(s.get("peak_bytes_in_use", 0) for s in stats)
    if not peak:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak / 2**30


def read_evaluation(path: pathlib.Path) -> list[dict[str, Any]]:
    """The answer rows of one file of evaluations/, each with its group's row under "group"."""
    rows, group = [], None
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["kind"] == "group":
            group = row
        else:
            rows.append({**row, "group": group})
    return rows
