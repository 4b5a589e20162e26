"""Several processes that meet: what they exchange, and how they end when one does not come."""

import json
import signal
import time

import joined
import numpy as np
import pytest

from swerl_jax.learn import loop
from swerl_jax.learn.deal import parts
from swerl_jax.learn.processes import ALONE, NONE, JoinSettings, ProcessError, Processes, StopRequested, join


def meets(directory, here):
    """Small and large values, work of the first alone, and every way to fail: each on all processes alike."""
    seen = {"ranks": here.exchange("ranks", lambda: here.index), "first": here.first("first", lambda: f"from {here.index}")}
    size = 50_000 * (here.index + 1)
    big = here.exchange("large", lambda: np.random.default_rng(here.index).integers(0, 99, size))
    seen["large"] = [int(array.sum()) for array in big]
    seen["order"] = here.after_first("after", lambda: (directory / "made").exists() or (directory / "made").write_text("x"))
    here.barrier("a barrier")
    for error in (ValueError("wrong"), FileNotFoundError("gone"), KeyError("bug"), StopRequested()):
        def fail(error=error):
            if here.index == 1:
                raise error
        try:
            here.exchange("fails", fail)
        except Exception as raised:
            seen[repr(error)] = [type(raised).__name__, str(raised)]
    seen["before"] = here.is_stop_announced()
    here.exchange("all have looked", lambda: None)
    if here.index == 1:
        here.announce_stop()
        here.announce_stop()  # a second signal
    here.exchange("announced", lambda: None)
    seen["after"] = here.is_stop_announced()
    (directory / f"{here.index}.json").write_text(json.dumps(seen))


@pytest.mark.slow
def test_three_processes_meet(tmp_path):
    joined.run(__file__, "meets", tmp_path, count=3, devices=1)
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    sums = [int(np.random.default_rng(i).integers(0, 99, 50_000 * (i + 1)).sum()) for i in range(3)]
    for rank, one in enumerate(seen):
        assert one["ranks"] == [0, 1, 2] and one["first"] == "from 0" and one["large"] == sums
        assert one["order"] == (1 if rank == 0 else True)  # only the first wrote
        assert (one["before"], one["after"]) == (False, True)
        told = "" if rank == 1 else "process 1, fails: "
        assert one["ValueError('wrong')"] == ["ValueError", "wrong" if rank == 1 else f"{told}ValueError: wrong"]
        assert one["FileNotFoundError('gone')"] == (
            ["FileNotFoundError", "gone"] if rank == 1 else ["ValueError", f"{told}FileNotFoundError: gone"])
        assert one["KeyError('bug')"] == (["KeyError", "'bug'"] if rank == 1 else ["ProcessError", f"{told}KeyError: 'bug'"])
        assert one["StopRequested()"][0] == "StopRequested"


def late(directory, here):
    """Process 1 does not come; then it comes elsewhere."""
    here.deadline_s = 2.0
    try:
        if here.index == 1:
            time.sleep(6)
        here.exchange("in time", lambda: None)
    except ProcessError as error:
        (directory / f"{here.index}.txt").write_text(str(error))
    here.deadline_s = 60.0
    try:
        here.exchange("there" if here.index == 1 else "here", lambda: None)
    except ProcessError as error:
        (directory / f"{here.index}.elsewhere").write_text(str(error))


@pytest.mark.slow
def test_a_late_process_is_named(tmp_path):
    joined.run(__file__, "late", tmp_path, count=2, devices=1)
    for rank in range(2):
        assert (tmp_path / f"{rank}.txt").read_text() == "processes [1] of 2 did not come to 'in time' within 2 s"
        assert "others elsewhere" in (tmp_path / f"{rank}.elsewhere").read_text()


def waits(directory, here):
    """Comes to a place where the others do not come, for longer than a heartbeat."""
    here.exchange("ready", lambda: None)
    (directory / f"{here.index}.ready").write_text("")
    here.exchange("never", lambda: time.sleep(3600) if here.index == 1 else None)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_others(tmp_path, killed):
    started = joined.start_all(__file__, "waits", tmp_path, count=2, devices=1)
    while not all((tmp_path / f"{rank}.ready").exists() for rank in range(2)):
        assert all(process.poll() is None for process in started), [process.communicate()[0] for process in started]
        time.sleep(0.1)
    started[killed].send_signal(signal.SIGKILL)
    killed_s = time.monotonic()
    output, _ = started[1 - killed].communicate(timeout=60)
    assert time.monotonic() - killed_s < 2 * joined.HEARTBEAT_S + 5
    assert started[1 - killed].returncode == -signal.SIGABRT
    assert "distributed service detected fatal errors" in output
    started[killed].communicate()


def breaks(directory, here):
    """Process 1 ends with an error of its own while the other waits."""
    del directory
    if here.index == 1:
        raise RuntimeError("a bug")
    here.exchange("never", lambda: None)


@pytest.mark.slow
def test_an_error_of_one_ends_the_others(tmp_path):
    started = joined.start_all(__file__, "breaks", tmp_path, count=2, devices=1)
    outputs = [process.communicate(timeout=90)[0] for process in started]
    assert "RuntimeError: a bug" in outputs[1]
    assert all(process.returncode for process in started)


def test_alone_nothing_is_exchanged():
    assert ALONE.exchange("here", lambda: 3) == [3] and ALONE.first("here", lambda: 4) == 4
    assert ALONE.after_first("here", lambda: 5) == 5
    with pytest.raises(KeyError):
        ALONE.exchange("here", lambda: {}["no"])
    ALONE.barrier("here")
    ALONE.announce_stop()
    assert not ALONE.is_stop_announced()


class Told(Processes):
    """Another one of two was told to stop."""

    def is_stop_announced(self):
        return True


def test_a_stop_announced_elsewhere_is_followed_in_the_same_time(monkeypatch, capsys):
    monkeypatch.setattr(loop, "_LOOK_S", -1)
    stop = loop.StopSignal(60, Told(0, 2, 1.0))
    for _ in range(2):
        with pytest.raises(StopRequested):
            stop.poll()
    assert capsys.readouterr().err == "\nanother process was told to stop: saving the last finished step, at most 60 s\n"
    stop.saved()


def test_alone_because_told_so():
    assert join(JoinSettings(NONE, 1, 0, 10, 10.0)) is ALONE


@pytest.mark.parametrize(("groups", "samples", "processes", "expected"), [
    (32, 16, 1, 1), (32, 16, 16, 1), (32, 16, 64, 2), (2, 8, 4, 2), (1, 8, 8, 8), (3, 4, 4, 4), (3, 4, 2, 2), (1, 16, 3, 2),
    (5, 3, 4, 1), (1, 1, 4, 1)])
def test_parts_of_a_group(groups, samples, processes, expected):
    """By hand: as few as make equal shares; where that cannot be, as few as give every process something."""
    assert parts(groups, samples, processes) == expected


if __name__ == "__main__":
    joined.main(globals())
