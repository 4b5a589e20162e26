"""tests/small.py, where a trainer can be met at a chosen place: `--config=tests/paced.py:DIRECTORY`.

PACED=PLACE,… in a process's environment names the places: train:N and eval:N are the engine's ticks with the weights after N
steps, learn:N is the update after N updates. The process comes to each of them once, leaves a file of that name in the
directory PACED_MARKS, and then takes its time. A process that finds the file there already hurries through.
"""

import os
import pathlib
import time

import small

from swerl_jax.learn.learner import Learner
from swerl_jax.policy.engine import Engine

PAUSES_S = {"train": 2.0, "eval": 2.0, "learn": 20.0}  # of each tick, and of the one update


def get_config(variant=""):
    marks = pathlib.Path(os.environ.get("PACED_MARKS", ""))
    places = {place for place in os.environ.get("PACED", "").split(",") if place and not (marks / place).exists()}

    def pause(place):
        if place in places:
            (marks / place).touch()
            time.sleep(PAUSES_S[place.partition(":")[0]])

    if places:
        _before(Engine, "tick", lambda engine: pause(f"{engine.settings.purpose}:{engine.version}"))
        _before(Learner, "update", lambda learner, state, gradient: pause(f"learn:{int(state.step)}"))
    return small.get_config(variant)


def _before(owner, name, call):
    """Calls `call` with the same arguments before each call of the method."""
    method = getattr(owner, name)

    def both(*arguments):
        call(*arguments)
        return method(*arguments)

    setattr(owner, name, both)


def environment(marks, *places):
    """What makes a process stop by at these places."""
    marks.mkdir(exist_ok=True)
    return {"PACED": ",".join(places), "PACED_MARKS": str(marks)}
