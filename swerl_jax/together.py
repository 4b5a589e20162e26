"""How the processes of a run begin: they find each other, and see that they are of the same run."""

from __future__ import annotations

import pathlib
import tempfile

import jax
import ml_collections

from swerl_jax import run_directory
from swerl_jax.learn import processes as processes_lib
from swerl_jax.learn.processes import JoinSettings, Processes
from swerl_jax.mirror import Mirror


def join(config: ml_collections.ConfigDict) -> Processes:
    """The processes of the run, this one among them; before any device is used. Raises as processes.join does."""
    d = config.distributed
    return processes_lib.join(JoinSettings(d.coordinator, d.processes, d.process, d.heartbeat_s, d.deadline_s))


def meet(config: ml_collections.ConfigDict, run: Mirror, processes: Processes, *, is_resumed: bool) -> None:
    """Makes the run's directory, and sees that all processes may work in it together; in a bucket, where each has a copy.

    Raises:
      ValueError: as run_directory.check; or the processes differ in settings or devices, or do not share the directory.
    """
    directory = run.local
    if processes.count > 1:
        _compare(config, processes)
    processes.first("checking the run's directory", lambda: run_directory.check(config, directory, is_resumed=is_resumed))
    if run.is_remote:
        return
    path = processes.first("marking the run's directory", lambda: _mark(directory))
    is_seen = processes.exchange("looking for the run's directory", path.exists)
    if processes.index == 0:
        path.unlink()
    if not all(is_seen):
        blind = [index for index, sees in enumerate(is_seen) if not sees]
        raise ValueError(f"{path}, written by process 0, is not seen by processes {blind}; --workdir must be on a file system "
                         "that all hosts share, or in a bucket (gs://…)")


def _mark(directory: pathlib.Path) -> pathlib.Path:
    """A new file in the directory, of a name that was never there."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=directory, prefix="meeting-", delete=False) as file:
        return pathlib.Path(file.name)


def _compare(config: ml_collections.ConfigDict, processes: Processes) -> None:
    settings = processes.exchange("comparing settings", lambda: run_directory.settings(config))
    other = sorted({name for one in settings for name in one if one[name] != settings[0][name]})
    if other:
        raise ValueError(f"the processes have different settings: {', '.join(other)}; give all of them the same")
    devices = processes.exchange("counting devices", jax.local_device_count)
    if len(set(devices)) > 1:
        raise ValueError(f"the processes have {devices} devices; all need equally many")
