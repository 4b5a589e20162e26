"""The directory of a run: begun with its settings in it, or found fit to be gone on with. Free of jax."""

from __future__ import annotations

import json
import os
import pathlib
import platform
import sys
from collections.abc import Sequence
from typing import Any

import ml_collections

from swerl_jax import __version__, config as config_lib, mirror
from swerl_jax.data import remote
from swerl_jax.data.atomic_file import write_atomically
from swerl_jax.mirror import CONFIG_NAME, MODEL_NAME
from swerl_jax.models import shipped

FileSize = tuple[str, int, int]  # name, rows, bytes
OF_PROCESS = "distributed."  # settings of one process or of one start, not of the run
# Settings that a resumed run may change.
RESUMABLE = ("checkpoints.", "log.", "reward.workers", "mesh.", "engine.devices", OF_PROCESS)


def settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The settings by dotted name as JSON gives them back, without those of a single process."""
    plain = json.loads(json.dumps(dict(config_lib.flat(config))))
    return {name: value for name, value in plain.items() if not name.startswith(OF_PROCESS)}


def find(place: str | os.PathLike[str]) -> pathlib.Path:
    """The directory of the run that `place` is, or lies in; of one in a bucket a copy here, without logs and checkpoints.

    Raises:
      ValueError: as mirror.of_run.
    """
    if remote.is_remote(os.fspath(place)):
        return mirror.of_run(os.fspath(place)).local
    directory = pathlib.Path(place)
    return directory if (directory / CONFIG_NAME).exists() else directory.parent


def is_there(place: str) -> bool:
    """Whether there is such a directory, in a bucket one of a run; raises ValueError as `find`."""
    return (find(place) / CONFIG_NAME).exists() if remote.is_remote(place) else pathlib.Path(place).is_dir()


def read_settings(place: str | os.PathLike[str]) -> dict[str, Any]:
    """What `settings` gave when the run that `place` is, or lies in, began; {} where no file says.

    Raises:
      ValueError: the file there is another one than a run's, or as `find`.
    """
    path = find(place) / CONFIG_NAME
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))["config"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not hold a run's settings; of a model in Hugging Face's layout give hf:{place}"
                         ) from error


def model_directory(init: str) -> str | None:
    """The directory whose `config.json` has the sizes of what `init` names, None where there is none.

    As shipped.find; of a run, what it keeps of the model that it began with, or that model's directory.

    Raises:
      ValueError: as shipped.find and `read_settings`; or `init` is no directory.
    """
    found = shipped.find(init)
    if found is not None or init == "random":
        return found
    if not is_there(init):
        raise ValueError(f"init is {init}, and there is no such directory; give that of a run, hf:DIR, embedded:NAME or random")
    run = find(init)
    if (run / CONFIG_NAME).exists() and (run / MODEL_NAME / CONFIG_NAME).exists():
        return str(run / MODEL_NAME)
    began = read_settings(run)
    return model_directory(began["init"]) if began.get("model.arch") == "init" else None


def check(config: ml_collections.ConfigDict, directory: pathlib.Path, *, is_resumed: bool) -> None:
    """Sees that a run may begin in the directory, or that the one there may be gone on with.

    Raises:
      ValueError: there is a run already, or none to go on with, or one with other settings.
    """
    path = directory / CONFIG_NAME
    if is_resumed:
        if not path.exists():
            raise ValueError(f"--resume: there is no run in {directory} ({CONFIG_NAME} is missing); give its --workdir, or "
                             "leave --resume out to start one")
        wanted, saved = settings(config), settings(config_lib.default()) | read_settings(directory)
        free = RESUMABLE + (("rl.steps",) if config.rl.schedule == "constant" else ())  # a cosine would change its shape
        changed = [f"  {name}: was {saved[name]!r}, is {value!r}" for name, value in wanted.items()
                   if saved[name] != value and not name.startswith(free)]
        if changed:
            raise ValueError("--resume: these settings differ from the run's, which could then not continue exactly:\n"
                             + "\n".join(changed) + "\nGive the same ones, or start a new run in another --workdir "
                             f"with --config.init={directory}")
    elif path.exists():
        raise ValueError(f"{directory} holds a run already; go on with it (--resume), choose another --workdir, or delete "
                         "it yourself")


def check_data(directory: pathlib.Path, found: Sequence[FileSize]) -> None:
    """Sees that a run that is gone on with reads what it began with.

    Args:
      found: the files of examples that it would read, in order.

    Raises:
      ValueError: there are others, or they changed.
    """
    began = [tuple(one) for one in _saved(directory / CONFIG_NAME).get("data", found)]  # older runs did not note it
    if list(found) != began:
        raise ValueError(f"--resume: the run began with other examples than there are now, and could not continue exactly: it had "
                         f"{_told(began, found)}, there is {_told(found, began)}; put its files back, or start a new run in "
                         f"another --workdir with --config.init={directory}")


def begin(config: ml_collections.ConfigDict, directory: pathlib.Path, data: Sequence[FileSize], *, is_resumed: bool) -> None:
    """Writes down that the run begins, or goes on, with all that it needs set up: from now on the directory is its own.

    Raises:
      ValueError: as `check`: another run began here in the meantime.
    """
    check(config, directory, is_resumed=is_resumed)
    about = {"version": __version__, "python": platform.python_version(), "command": sys.argv, "data": data,
             "config": settings(config)}
    write_atomically(directory / CONFIG_NAME, json.dumps(about, indent=1) + "\n")


def _saved(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _told(files: Sequence[FileSize], others: Sequence[FileSize]) -> str:
    """Those that the others lack."""
    return ", ".join(f"{one[0]} with {one[1]:,} rows in {one[2]:,} bytes" for one in files if one not in others) \
        or "them in another order"
