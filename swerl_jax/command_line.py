"""The command line of `main`: its flags, and what is wrong with it as one readable message and exit code 2."""

from __future__ import annotations

import contextlib
import difflib
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from absl import flags
from ml_collections import config_flags

from swerl_jax import config as config_lib
from swerl_jax.data.remote import is_outage

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file; single settings follow as --config.KEY=VALUE.")
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run, which all hosts see, or gs://BUCKET/RUN; else runs/NAME.")
RESUME = flags.DEFINE_bool("resume", False, "Go on with the run in --workdir.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would be done, and exit before any device work.")
PLAN = flags.DEFINE_string("plan", None, "Plan the run for a TPU topology (v5p:4x4x8, v6e:16x16, v5e:8x16:x2) with the TPU's "
                           "compiler, and exit; needs no TPU.")
PLAN_JSON = flags.DEFINE_string("plan_json", None, "With --plan: also write the plan to this file.")


def parse_flags(argv: list[str]) -> list[str]:
    """Reads the command line; what is wrong with it is one readable message and exit code 2.

    Returns:
      What is left of it, the program's name first.
    """
    argv[:] = map(_shards_flag, argv)  # in place: ml_collections reads sys.argv
    for argument in argv[1:]:
        name = argument.lstrip("-").partition("=")[0]
        if argument.startswith("-") and name.startswith("config.") and name.removeprefix("config.") not in config_lib.KEYS:
            fail(config_lib.unknown(name.removeprefix("config.")))
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        fail(_unknown(error.flagname))
    except flags.Error as error:
        fail(_cause(error))
    except OSError as error:  # the config file, read for the settings that follow it
        fail(str(error))


def is_given(name: str) -> bool:
    """Whether the command line sets it."""
    return name in config_flags.get_override_values(flags.FLAGS["config"])


def resume_command(place: str) -> str:
    """What to type to go on with the run in the directory `place`: this command with --workdir and --resume."""
    kept, is_value = [], False
    for argument in sys.argv[1:]:
        name, equals, _ = argument.lstrip("-").partition("=")
        if not is_value and name not in ("workdir", "resume", "noresume"):
            kept.append(argument)
        is_value = not is_value and name == "workdir" and not equals
    return shlex.join([sys.executable, "-m", "swerl_jax.main", *kept, f"--workdir={place}", "--resume"])


@contextlib.contextmanager
def readable_errors(named: Callable[[str], str] = str) -> Iterator[None]:
    """Set-up errors as one message, without a traceback; `named` says it in the user's names. An outage is none."""
    try:
        yield
    except (ValueError, OSError) as error:
        if is_outage(error):
            raise
        fail(named(str(error)))


def tell(text: str) -> None:
    """One line for the person who watches."""
    print(text, file=sys.stderr, flush=True)


def fail(message: str) -> NoReturn:
    """Ends the program with a message and exit code 2."""
    print(f"swerl_jax: {message}", file=sys.stderr)
    sys.exit(2)


def _shards_flag(argument: str) -> str:
    """`--config.data=SHARDS`, though `data` is a section, means the setting `data.shards`."""
    name, equals, value = argument.partition("=")
    return f"{name}.shards{equals}{value}" if name in ("--config.data", "-config.data") else argument


def _unknown(name: str) -> str:
    """The error text for a flag that does not exist."""
    own = [flag.name for flag in (CONFIG, WORKDIR, RESUME, DRY_RUN, PLAN, PLAN_JSON)]
    near = [f"config.{name}"] if name in config_lib.KEYS else difflib.get_close_matches(name, [*own, *flags.FLAGS], n=1)
    hint = f" (did you mean --{near[0]}?)" if near else ""
    return (f"--{name} is not a flag{hint}; there are {', '.join(f'--{one}' for one in own)}, and settings like "
            "--config.rl.steps=10")


def _cause(error: BaseException) -> str:
    """What a config file said when it refused: ml_collections shows it as a traceback."""
    if "Traceback" in str(error):
        while error.__context__ is not None:
            error = error.__context__
    return str(error)
