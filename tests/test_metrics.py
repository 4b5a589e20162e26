"""Metrics and rollout files: strict JSON, one line a step, and a rewound file equals one never interrupted."""

import json
import math
import pathlib

import numpy as np
import pytest
from tensorboardX import proto

from swerl_jax.data import atomic_file, records
from swerl_jax.learn import metrics


def _write(directory, steps):
    log = metrics.MetricsLog(directory, tensorboard=False)
    for step in steps:
        log.write(step, {"reward/mean": step / 3, "seconds/step": 1.5, "infra_faults": 0})
    log.close()
    return directory / "metrics.jsonl"


def test_every_line_is_strict_json_in_the_order_of_the_table(tmp_path):
    log = metrics.MetricsLog(tmp_path, tensorboard=False)
    log.write(0, {"loss": float("nan"), "reward/mean": np.float32(0.5), "task": "rl", "group/drawn": np.int64(8)})
    log.write(5, {"grad_norm": float("-inf"), "lr": 1e-7})
    text = (tmp_path / "metrics.jsonl").read_text()  # before close: each line is flushed
    assert text == (
        '{"step": 0, "task": "rl", "reward/mean": 0.5, "group/drawn": 8, "loss": "nan"}\n'
        '{"step": 5, "grad_norm": "-inf", "lr": 1e-07}\n'
    )
    first, second = metrics.read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(first.pop("loss")) and first == {"step": 0, "task": "rl", "reward/mean": 0.5, "group/drawn": 8}
    assert second == {"step": 5, "grad_norm": float("-inf"), "lr": 1e-7}


def test_what_cannot_be_logged_is_named(tmp_path):
    log = metrics.MetricsLog(tmp_path, tensorboard=False)
    with pytest.raises(ValueError, match="reward/meen"):
        log.write(1, {"reward/meen": 1.0})
    with pytest.raises(ValueError, match="loss"):
        log.write(1, {"loss": "high"})
    with pytest.raises(ValueError, match="loss"):
        log.write(1, {"loss": np.ones(1)})
    log.write(1, {})
    with pytest.raises(ValueError, match="step 1 after"):
        log.write(1, {})
    with pytest.raises(ValueError, match="rewind"):
        metrics.MetricsLog(tmp_path, tensorboard=False).write(2, {})


@pytest.mark.parametrize("torn", ["", '{"step": 6, "rew', '{"step": 6, "reward/mean": 0.1', "\x00\x00"])
@pytest.mark.parametrize("resumed_from", [0, 3, 5])
def test_a_rewound_file_equals_an_uninterrupted_one(tmp_path, torn, resumed_from):
    whole = _write(tmp_path / "whole", range(1, 9)).read_bytes()
    path = _write(tmp_path / "resumed", range(1, 6))
    path.write_text(path.read_text() + torn)
    log = metrics.MetricsLog(tmp_path / "resumed", tensorboard=False)
    log.rewind(resumed_from)
    for step in range(resumed_from + 1, 9):
        log.write(step, {"reward/mean": step / 3, "seconds/step": 1.5, "infra_faults": 0})
    assert path.read_bytes() == whole


def test_damage_before_the_last_line_stops_with_its_number(tmp_path):
    path = _write(tmp_path, [1, 2, 3])
    path.write_text(path.read_text().replace('{"step": 2', "{step 2"))
    with pytest.raises(ValueError, match="line 2"):
        metrics.MetricsLog(tmp_path, tensorboard=False).rewind(3)


def test_a_log_shorter_than_the_checkpoint_is_reported(tmp_path, caplog):
    _write(tmp_path, [1, 2])
    metrics.MetricsLog(tmp_path, tensorboard=False).rewind(2)
    assert not caplog.records
    metrics.MetricsLog(tmp_path, tensorboard=False).rewind(4)
    assert "ends at step 2" in caplog.text and "step 4" in caplog.text


def test_the_table_is_whole():
    assert {f"format/{reason}_frac" for reason in records.FORMAT_REASONS} | {"format/correct_frac"} == {
        name for name in metrics.METRICS if name.startswith("format/")
    }
    assert all(metric.unit in metrics.UNITS and metric.meaning for metric in metrics.METRICS.values())
    assert metrics.TIMING_KEYS <= metrics.METRICS.keys()
    assert {name for name, metric in metrics.METRICS.items() if metric.unit in ("s", "tokens/s", "GiB")} | {
        "compilations", "scorer/retries"
    } == metrics.TIMING_KEYS
    assert {*metrics.RL_COLUMNS.values(), *metrics.SFT_COLUMNS.values()} <= metrics.METRICS.keys()
    assert metrics.is_timing("seconds/step") and not metrics.is_timing("reward/mean")


def test_terminal_line_reads_well_and_keeps_its_width():
    columns = {"reward": "reward/mean", "format": "format/correct_frac", "|g|": "grad_norm", "time": "seconds/step"}
    line = metrics.terminal_line(7, 200, {"reward/mean": -0.3125, "format/correct_frac": 0.875}, columns)
    assert line == "step   7/200 | reward   -0.312 | format    87.5% | |g|        – | time        –"
    for number in (0, -1, 1e-9, -123.456, -1e30, float("nan"), float("-inf"), 1):
        filled = metrics.terminal_line(199, 200, dict.fromkeys(columns.values(), number), columns)
        assert len(filled) == len(line), filled


def test_rollout_files_survive_any_text_and_rewind(tmp_path):
    log = metrics.RolloutLog(tmp_path)
    rows = [{"kind": "group", "index": 1}, {"kind": "rollout", "output": "a\ud800\0\n\u2028é", "reward": float("nan")}]
    path = log.write(2, rows)
    assert path == tmp_path / "rollouts" / "step_000002.jsonl"
    lines = path.read_bytes().split(b"\n")
    assert len(lines) == 3 and lines[2] == b""
    assert [json.loads(line) for line in lines[:2]] == [rows[0], {**rows[1], "reward": "nan"}]
    log.write(3, rows)
    log.write(1_000_001, rows)
    (tmp_path / "rollouts" / ("step_000001.jsonl" + atomic_file.PARTIAL_SUFFIX)).write_text("{")
    (tmp_path / "rollouts" / "notes.txt").write_text("mine")
    log.rewind(2)
    assert sorted(file.name for file in path.parent.iterdir()) == ["notes.txt", "step_000002.jsonl"]


def _tensorboard_scalars(directory):
    """(step, tag, value) of every scalar, read from the event files' record framing."""
    found = []
    for path in sorted(pathlib.Path(directory).glob("events.*"), key=lambda file: file.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = proto.event_pb2.Event.FromString(data[12 : 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            data = data[16 + length :]
    return found


def test_tensorboard_gets_the_numbers(tmp_path):
    log = metrics.MetricsLog(tmp_path)
    log.write(1, {"reward/mean": 0.25, "task": "rl"})
    log.write(2, {"reward/mean": 0.5, "group/drawn": 8})
    log.close()
    assert _tensorboard_scalars(tmp_path / "tensorboard") == [
        (1, "reward/mean", 0.25),
        (2, "reward/mean", 0.5),
        (2, "group/drawn", 8.0),
    ]


def test_a_failed_atomic_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    atomic_file.write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        atomic_file.write_atomically(path, "new\ud800")
    assert path.read_text() == "old"
    with pytest.raises(OSError, match="absent"):
        atomic_file.write_atomically(tmp_path / "absent" / "file", "")
