"""What a run says of itself: one JSON line a step, TensorBoard scalars, one terminal line, and every rollout's text.

Beside the path: the loop hands over plain numbers and rows; nothing here reads them back into training.
A resumed run first rewinds these files to its checkpoint, so that they end as those of a run never interrupted.
"""

from __future__ import annotations

import json
import logging
import math
import numbers
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import tensorboardX

from swerl_jax.data import atomic_file

METRICS_NAME = "metrics.jsonl"
ROLLOUTS_NAME = "rollouts"
EVALUATIONS_NAME = "evaluations"
TENSORBOARD_NAME = "tensorboard"

_ROLLOUT_FILE = re.compile(r"step_(\d{6,})\.jsonl(\.partial)?")
_log = logging.getLogger(__name__)


class Metric(NamedTuple):
    """What one name stands for: `unit` is one of UNITS, `meaning` a phrase."""

    unit: str
    meaning: str


UNITS = ("fraction", "reward", "tokens", "tokens/s", "s", "GiB", "bytes", "count", "nats", "number", "text")

# Every name that may be written, with its unit and meaning. Names are stable: dashboards and readers depend on them.
METRICS: dict[str, Metric] = {
    "task": Metric("text", "what the step trained on: sft or rl"),
    "reward/mean": Metric("reward", "mean reward of the step's scored answers, malformed ones (−1) included"),
    "reward/std": Metric("reward", "population standard deviation of the same rewards"),
    "reward/well_formed_mean": Metric("reward", "mean reward of the well-formed answers only"),
    "exact_frac": Metric("fraction", "answers whose edited files equal the oracle's"),
    "format/correct_frac": Metric("fraction", "answers that could be parsed and applied"),
    "format/tag_count_frac": Metric("fraction", "answers without exactly one of each thought and answer tag"),
    "format/empty_thought_frac": Metric("fraction", "answers whose thought is empty"),
    "format/no_blocks_frac": Metric("fraction", "answers without a search/replace block"),
    "format/no_change_frac": Metric("fraction", "answers whose edits change nothing"),
    "format/search_not_found_frac": Metric("fraction", "answers whose search text is not in the named file"),
    "group/zero_std_frac": Metric("fraction", "groups whose rewards are all equal, hence without gradient"),
    "group/dropped": Metric("count", "groups dropped for equal rewards"),
    "group/drawn": Metric("count", "groups sampled for the step, dropped ones included"),
    "length/mean": Metric("tokens", "mean length of an answer"),
    "length/p95": Metric("tokens", "95th percentile of the answers' lengths"),
    "length/max": Metric("tokens", "longest answer"),
    "length/clipped_frac": Metric("fraction", "answers cut by the length limit"),
    "prompt/mean": Metric("tokens", "mean length of a prompt"),
    "entropy": Metric("nats", "mean entropy of the policy over the tokens learnt from"),
    "kl_ref": Metric("nats", "mean k3 estimate of KL(policy ‖ reference) over the sampled tokens"),
    "clip/low_frac": Metric("fraction", "tokens whose ratio is clipped from below"),
    "clip/high_frac": Metric("fraction", "tokens whose ratio is clipped from above"),
    "logp_diff/mean": Metric("nats", "mean |learner − sampler| log-probability of a token learnt from"),
    "logp_diff/max": Metric("nats", "largest |learner − sampler| log-probability of a token learnt from"),
    "importance/capped_frac": Metric("fraction", "tokens whose importance weight is cut by rl.importance_cap"),
    "loss": Metric("number", "the loss that was minimised, mean over the step's updates"),
    "sft/loss": Metric("nats", "mean negative log-likelihood of a target token"),
    "grad_norm": Metric("number", "global gradient norm before clipping, mean over the step's updates"),
    "lr": Metric("number", "learning rate of the step's last update"),
    "update/count": Metric("count", "optimiser updates in the step, skipped ones included"),
    "update/skipped": Metric("count", "updates skipped because loss or gradient was not finite"),
    "padding_frac": Metric("fraction", "positions of the learner's rows that hold no token"),
    "weights/bytes": Metric("bytes", "weights that each of an engine's devices gets in a step"),
    "tokens/sampled": Metric("tokens", "tokens the policy sampled in the step"),
    "tokens/learned": Metric("tokens", "tokens that carried loss in the step; of answers whose advantage is not 0, in RL"),
    "tokens_per_s/sample": Metric("tokens/s", "sampled tokens per second of sampling"),
    "tokens_per_s/learn": Metric("tokens/s", "valid row positions per second of learning"),
    "seconds/weights": Metric("s", "handing the learner's weights to the engine"),
    "seconds/sample": Metric("s", "sampling, the engine's new weights included"),
    "seconds/score": Metric("s", "waiting for rewards after sampling"),
    "seconds/learn": Metric("s", "packing, loss, gradient and update"),
    "seconds/eval": Metric("s", "held-out evaluation"),
    "seconds/checkpoint": Metric("s", "waiting for saving, since the line before"),
    "seconds/step": Metric("s", "the whole step"),
    "compilations": Metric("count", "XLA compilations since the process began"),
    "memory/peak_gib": Metric("GiB", "peak memory of the busiest device, or of the process on CPU"),
    "infra_faults": Metric("count", "answers without a verdict because our machinery failed; outside the gradient"),
    "scorer/retries": Metric("count", "answers scored a second time after a scorer died or overran"),
    "data/position": Metric("count", "next index of the example stream"),
    "data/dropped_over_budget": Metric("count", "examples dropped so far because the prompt exceeds its budget"),
    "data/not_expressible": Metric("count", "examples dropped so far because no edits say their fix, in supervised steps"),
    "data/malformed": Metric("count", "rows skipped so far because they could not be read"),
    "eval/reward": Metric("reward", "held-out: mean reward"),
    "eval/well_formed_reward": Metric("reward", "held-out: mean reward of the well-formed answers"),
    "eval/format_frac": Metric("fraction", "held-out: answers that could be parsed and applied"),
    "eval/exact_frac": Metric("fraction", "held-out: answers whose edited files equal the oracle's"),
    "eval/clipped_frac": Metric("fraction", "held-out: answers cut by the length limit"),
    "eval/length_mean": Metric("tokens", "held-out: mean length of an answer"),
    "eval/answers": Metric("count", "held-out: answers evaluated"),
    "eval/infra_faults": Metric("count", "held-out: answers without a verdict"),
}

# What may differ between a resumed and an uninterrupted run: it measures the machine, not the learning.
TIMING_KEYS: frozenset[str] = frozenset({
    "seconds/weights", "seconds/sample", "seconds/score", "seconds/learn", "seconds/eval", "seconds/checkpoint", "seconds/step",
    "tokens_per_s/sample", "tokens_per_s/learn", "compilations", "memory/peak_gib", "scorer/retries",
})  # fmt: skip

# Terminal columns, most important first: label → metric.
RL_COLUMNS: dict[str, str] = {
    "reward": "reward/mean", "format": "format/correct_frac", "exact": "exact_frac", "held-out": "eval/reward",
    "len": "length/mean", "entropy": "entropy", "kl": "kl_ref", "Δlogp": "logp_diff/mean", "|g|": "grad_norm",
    "time": "seconds/step",
}  # fmt: skip
SFT_COLUMNS: dict[str, str] = {
    "loss": "sft/loss", "held-out": "eval/reward", "|g|": "grad_norm", "lr": "lr",
    "tok/s": "tokens_per_s/learn", "time": "seconds/step",
}  # fmt: skip


def is_timing(name: str) -> bool:
    """Whether a metric measures the machine, so that an exactly resumed run may differ in it."""
    return name in TIMING_KEYS


class MetricsLog:
    """`metrics.jsonl` and TensorBoard scalars of one run.

    A non-empty file is continued only after `rewind`, so that no step is ever written twice.
    """

    def __init__(self, directory: str | os.PathLike[str], tensorboard: bool = True) -> None:
        """Opens the log of the run in `directory` (made if needed); `tensorboard` adds `tensorboard/` to it."""
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / METRICS_NAME
        self._tensorboard_directory = directory / TENSORBOARD_NAME if tensorboard else None
        self._file = None
        self._writer: tensorboardX.SummaryWriter | None = None
        self._last_step: int | None = None

    def write(self, step: int, values: Mapping[str, float | int | str]) -> None:
        """Appends one line, "step" first, the rest in the order of METRICS, and flushes it.

        Args:
          step: greater than that of the line before.
          values: numbers (NumPy's too) or text by metric name; non-finite numbers become "nan", "inf", "-inf".

        Raises:
          ValueError: an unknown name, a value that is neither number nor text, a step out of order, or an old file
            that was not rewound.
        """
        if self._file is None:
            self._open(purge_step=None)
        if self._last_step is not None and step <= self._last_step:
            raise ValueError(f"metrics of step {step} after those of step {self._last_step}: one line a step, in order")
        unknown = sorted(set(values) - METRICS.keys())
        if unknown:
            raise ValueError(f"unknown metrics {unknown}: add them with unit and meaning to METRICS")
        plain = {name: _plain_number(name, values[name]) for name in METRICS if name in values}
        self._file.write(json_line({"step": step, **plain}))
        self._file.flush()
        self._last_step = step
        if self._writer is not None:
            for name, value in plain.items():
                if not isinstance(value, str) and math.isfinite(value):
                    self._writer.add_scalar(name, value, step)

    def rewind(self, step: int) -> None:
        """Drops every line after `step` and a torn last line, atomically; TensorBoard hides the later scalars.

        Raises:
          ValueError: a line before the last is not a metrics line; names it.
        """
        self.close()
        kept = [row for row in _complete_rows(self._path) if row["step"] <= step]
        self._last_step = kept[-1]["step"] if kept else None
        if (self._last_step or 0) < step:
            _log.warning("%s ends at step %s, but the run resumes at step %d", self._path, self._last_step, step)
        atomic_file.write_atomically(self._path, "".join(json_line(row) for row in kept))
        self._open(purge_step=step + 1)

    def close(self) -> None:
        """Flushes and closes the files; a later `write` goes on after the last line."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, purge_step: int | None) -> None:
        if self._last_step is None and self._path.exists() and self._path.stat().st_size and purge_step is None:
            raise ValueError(f"{self._path} is of an earlier run: rewind(step) to continue it, or write elsewhere")
        self._file = open(self._path, "a", encoding="utf-8", newline="")
        if self._tensorboard_directory is not None:
            self._writer = tensorboardX.SummaryWriter(
                logdir=str(self._tensorboard_directory), purge_step=purge_step, flush_secs=10
            )


class RolloutLog:
    """`rollouts/step_NNNNNN.jsonl` of one run: every prompt and answer of a step with its verdict."""

    def __init__(self, directory: str | os.PathLike[str], name: str = ROLLOUTS_NAME) -> None:
        """Opens the log of the run in `directory`; makes the folder `name` in it."""
        self.directory = pathlib.Path(directory) / name
        self.directory.mkdir(parents=True, exist_ok=True)

    def write(self, step: int, rows: Iterable[Mapping[str, Any]]) -> pathlib.Path:
        """Writes all rows of one step, one JSON line each, atomically; equal rows give equal bytes.

        Returns:
          The file.

        Raises:
          TypeError: a row holds something that is not JSON.
        """
        path = self.directory / f"step_{step:06d}.jsonl"
        atomic_file.write_atomically(path, "".join(json_line(row) for row in rows))
        return path

    def rewind(self, step: int) -> None:
        """Removes the files of the steps after `step`, and what a kill left half written."""
        for path in self.directory.iterdir():
            match = _ROLLOUT_FILE.fullmatch(path.name)
            if match and (match[2] or int(match[1]) > step):
                path.unlink()


def json_line(row: Mapping[str, Any]) -> str:
    """One line of strict JSON in ASCII (so that any text, lone surrogates too, survives), keys in their given order."""
    return json.dumps(_strict(row), allow_nan=False) + "\n"


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, a torn last one left out; non-finite numbers are floats again.

    Raises:
      OSError: it cannot be read.
      ValueError: a line before the last is not a metrics line; names it.
    """
    pathlib.Path(path).stat()
    return [{name: _number_again(name, value) for name, value in row.items()} for row in _complete_rows(path)]


def terminal_line(step: int, total: int, values: Mapping[str, float | int | str], columns: Mapping[str, str]) -> str:
    """One line for people, e.g. `step  7/200 | reward    0.312 | format    87.5%`, of a width that does not jump.

    Args:
      step, total: this step and the last one of the run.
      values: as given to `MetricsLog.write`.
      columns: label → metric, most important first; a metric without value shows as –.
    """
    cells = [f"{label} {_cell(name, values.get(name)):>8}" for label, name in columns.items()]
    return " | ".join([f"step {step:>{len(str(total))}}/{total}", *cells])


def _cell(name: str, value: float | int | str | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, str) or not math.isfinite(value):
        return str(value)[:8]
    unit = METRICS[name].unit
    if unit == "fraction" and abs(value) < 10:
        return f"{100 * value:.1f}%"
    if unit == "s" and abs(value) < 1e5:
        return f"{value:.1f}s"
    if unit in ("tokens", "tokens/s", "count") and abs(value) < 1e7:
        return f"{value:.0f}"
    return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 1e3 else f"{value:.1e}"


def _plain_number(name: str, value: Any) -> float | int | str:
    if METRICS[name].unit == "text" and isinstance(value, str):
        return value
    if METRICS[name].unit == "text" or not isinstance(value, numbers.Real):
        raise ValueError(f"metric {name} ({METRICS[name].unit}) got {value!r}: give a Python or NumPy number or text")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _strict(value: Any) -> Any:
    """The same value with non-finite numbers as text: JSON has no word for them, and NaN must not break a reader."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, Mapping):
        return {key: _strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    return value


def _number_again(name: str, value: Any) -> Any:
    is_text = name not in METRICS or METRICS[name].unit == "text"
    return value if is_text or not isinstance(value, str) else float(value)


def _complete_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    if not pathlib.Path(path).exists():
        return []
    lines = pathlib.Path(path).read_bytes().split(b"\n")
    last = max((number for number, line in enumerate(lines) if line), default=-1)
    rows = []
    for number, line in enumerate(lines[: last + 1]):
        try:
            row = json.loads(line)
            row["step"] = int(row["step"])
        except (ValueError, TypeError, KeyError) as error:
            if number == last and number == len(lines) - 1:  # no newline after it: the writer was stopped in it
                break
            raise ValueError(f"{path}, line {number + 1} is not a metrics line: {line[:80]!r}") from error
        rows.append(row)
    return rows
