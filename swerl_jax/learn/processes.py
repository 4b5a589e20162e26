"""The processes of one run: how they find each other, meet, and end together.

The learner's arrays span all processes, and what it compiles runs on all of them at once. Between its steps each process
samples, scores and evaluates on its own chips. They meet at *exchanges*: every process comes to the same ones in the same
order, brings what it made or what went wrong there, and leaves with what all brought. So all of them go on, stop, or fail
together, and none waits for ever: an exchange has a name and a deadline, and jax's runtime ends every process (code 134)
when one is not heard of for the time of a heartbeat.
"""

from __future__ import annotations

import dataclasses
import pickle
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed  # its client is the only way to wait with a deadline
from jax.experimental import multihost_utils

from swerl_jax.data.remote import is_outage

T = TypeVar("T")

AUTO, NONE = "auto", "none"
_SMALL_BYTES = 1 << 14  # what is larger goes over the devices' network and not through process 0
_SLICE_MS = 500  # of a wait; signals are handled between two
_MARGIN_S = 10.0  # process 0 tells who is late; the others wait a little longer to be told
_STOP_KEY = "swerl_jax/stop"


class StopRequested(Exception):
    """A signal asked the run to save and end."""


class ProcessError(RuntimeError):
    """Another process is late, elsewhere in the program, or failed; the message says which."""


@dataclasses.dataclass(frozen=True)
class JoinSettings:
    """See the distributed section of config.py."""

    coordinator: str
    processes: int
    process: int
    heartbeat_s: int
    deadline_s: float


@dataclasses.dataclass(frozen=True)
class _Report:
    """What a process brings: where it is, what went wrong there, and its value, pickled, if that is small."""

    name: str
    size: int
    fault: str = ""
    is_stopped: bool = False
    is_wrong_setup: bool = False
    value: bytes = b""


class Processes:
    """This process among all of the run. One thread calls `exchange` and `first`; `barrier` may be called by another.

    Attributes:
      index, count: 0 … count − 1.
      deadline_s: the longest wait at an exchange or a barrier.
    """

    def __init__(self, index: int, count: int, deadline_s: float):
        self.index, self.count, self.deadline_s = index, count, deadline_s
        self._number = 0  # of the last exchange

    def exchange(self, name: str, work: Callable[[], T]) -> list[T]:
        """What `work` returns on each process, in their order.

        Raises:
          What `work` raised. StopRequested: it did on another process. ValueError: `work` found a set-up wrong (a ValueError
          or OSError, but for outages) on another. ProcessError: it failed otherwise on another, or another did not come, or to
          another place.
        """
        if self.count == 1:
            return [work()]
        error, value = None, b""
        try:
            value = pickle.dumps(work())
        except Exception as raised:
            error = raised
        reports = self._meet(_Report(
            name, len(value), f"{type(error).__name__}: {error}" if error else "", isinstance(error, StopRequested),
            isinstance(error, ValueError | OSError) and not is_outage(error), value if len(value) <= _SMALL_BYTES else b""))
        self._raise_faults(reports, error)
        sizes = [report.size for report in reports]
        values = [report.value for report in reports] if max(sizes) <= _SMALL_BYTES else _gather(value, sizes)
        return [pickle.loads(one) for one in values]

    def first(self, name: str, work: Callable[[], T]) -> T:
        """What `work` returns on process 0, which alone does it; raises as `exchange` does."""
        return self.exchange(name, work if self.index == 0 else lambda: None)[0]

    def after_first(self, name: str, work: Callable[[], T]) -> T:
        """What `work` returns here; process 0 has done it before the others begin. Raises as `exchange` does."""
        made: list[T] = []
        self.exchange(name, lambda: made.append(work()) if self.index == 0 else None)
        return made[0] if made else work()

    def barrier(self, name: str) -> None:
        """Returns when all processes are here; each name is used once.

        Raises:
          ProcessError: not all came within the deadline.
        """
        if self.count == 1:
            return
        try:
            _client().wait_at_barrier(f"swerl_jax/{name}", int(1000 * self.deadline_s))
        except jax.errors.JaxRuntimeError as error:
            raise ProcessError(f"not all {self.count} processes came to '{name}' within {self.deadline_s:g} s: {error}"
                               ) from error

    def channel(self, name: str) -> Channel:
        """From one process to some others, who give the same name; each name is used once."""
        return Channel(f"swerl_jax/channel/{name}", self.deadline_s)

    def announce_stop(self) -> None:
        """Tells all processes that one is to stop."""
        if self.count > 1:
            _client().key_value_set(_STOP_KEY, str(self.index), allow_overwrite=True)

    def is_stop_announced(self) -> bool:
        """Whether any process announced it."""
        if self.count == 1:
            return False
        try:
            _client().key_value_try_get(_STOP_KEY)
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                return False
            raise
        return True

    def _meet(self, report: _Report) -> list[_Report]:
        """All processes' reports; process 0 collects them and hands them out."""
        self._number += 1
        place = f"swerl_jax/exchange/{self._number}"
        if self.index == 0:
            deadline = time.monotonic() + self.deadline_s
            others = [_take(f"{place}/{i}", deadline) for i in range(1, self.count)]
            late = [i for i, one in enumerate(others, 1) if one is None]
            fault = f"processes {late} of {self.count} did not come to '{report.name}' within {self.deadline_s:g} s"
            reports = [dataclasses.replace(report, fault=fault)] if late else [report, *map(pickle.loads, others)]
            _client().key_value_set_bytes(f"{place}/all", pickle.dumps(reports))
            _client().key_value_delete(f"swerl_jax/exchange/{self._number - 1}")  # all have left that one
        else:
            _client().key_value_set_bytes(f"{place}/{self.index}", pickle.dumps(report))
            joined = _take(f"{place}/all", time.monotonic() + self.deadline_s + _MARGIN_S)
            if joined is None:
                raise ProcessError(f"process 0 did not come to '{report.name}' within {self.deadline_s + _MARGIN_S:g} s")
            reports = pickle.loads(joined)
        if len(reports) < self.count:
            raise ProcessError(reports[0].fault)
        elsewhere = {i: one.name for i, one in enumerate(reports) if one.name != report.name}
        if elsewhere:
            raise ProcessError(f"process {self.index} is at '{report.name}' and others elsewhere: {elsewhere}; all need the "
                               "same code and settings")
        return reports

    def _raise_faults(self, reports: list[_Report], own: Exception | None) -> None:
        if own is not None and not isinstance(own, StopRequested):
            raise own
        for index, report in enumerate(reports):
            if report.fault and not report.is_stopped:
                text = f"process {index}, {report.name}: {report.fault}"
                raise ValueError(text) if report.is_wrong_setup else ProcessError(text)
        if any(report.is_stopped for report in reports):
            raise StopRequested


class Channel:
    """Words from one process that all who listen hear in its order, by way of process 0; see Processes.channel."""

    def __init__(self, place: str, deadline_s: float):
        self._place, self._deadline_s = place, deadline_s
        self._next, self._forgotten = 0, 0

    def tell(self, words: bytes) -> None:
        """To everyone who listens; does not wait."""
        _client().key_value_set_bytes(f"{self._place}/{self._next}", words)
        self._next += 1

    def hear(self) -> bytes:
        """What was told next.

        Raises:
          ProcessError: nothing was, within the deadline.
        """
        words = _take(f"{self._place}/{self._next}", time.monotonic() + self._deadline_s)
        if words is None:
            raise ProcessError(f"nothing was told over '{self._place}' for {self._deadline_s:g} s")
        self._next += 1
        return words

    def forget(self) -> None:
        """Frees what was told so far: everyone has heard it."""
        for number in range(self._forgotten, self._next):
            _client().key_value_delete(f"{self._place}/{number}")
        self._forgotten = self._next


ALONE = Processes(0, 1, 0.0)


def join(settings: JoinSettings) -> Processes:
    """Finds the other processes; no device may have been used before.

    Raises:
      ValueError: the settings do not describe the processes.
      ProcessError: they did not all come within the deadline.
    """
    if settings.coordinator == NONE:
        return ALONE
    given: dict[str, Any] = {} if settings.coordinator == AUTO else {
        "coordinator_address": settings.coordinator, "num_processes": settings.processes, "process_id": settings.process,
        "cluster_detection_method": "deactivate"}
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    try:
        jax.distributed.initialize(
            **given, initialization_timeout=int(settings.deadline_s), heartbeat_timeout_seconds=settings.heartbeat_s,
            shutdown_timeout_seconds=settings.heartbeat_s)
    except ValueError as error:
        if settings.coordinator == AUTO and str(error).startswith("coordinator_address"):
            return ALONE  # nothing here tells of others
        raise
    except RuntimeError as error:
        raise ProcessError(f"the processes did not find each other within {settings.deadline_s:g} s "
                           f"(distributed.coordinator={settings.coordinator}): {error}") from error
    return Processes(jax.process_index(), jax.process_count(), settings.deadline_s)


def _client() -> Any:
    return distributed.global_state.client


def _take(key: str, deadline: float) -> bytes | None:
    """The value of a key once it is set; None if that is not before `deadline` (of time.monotonic)."""
    while True:
        left_ms = int(1000 * (deadline - time.monotonic()))
        try:
            return _client().blocking_key_value_get_bytes(key, max(1, min(_SLICE_MS, left_ms)))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        if left_ms <= _SLICE_MS:
            return None


def _gather(value: bytes, sizes: list[int]) -> list[bytes]:
    """Every process's bytes, over the devices' network; padded to a power of two, so that few sizes are compiled."""
    length = 1 << (max(sizes) - 1).bit_length()
    rows = multihost_utils.process_allgather(np.frombuffer(value.ljust(length, b"\0"), np.uint8))
    return [rows[i, :size].tobytes() for i, size in enumerate(sizes)]
