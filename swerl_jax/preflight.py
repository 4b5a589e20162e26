"""What a run's settings name outside themselves, looked at before the first task is made and the first device is touched.

On the path: config → here → tasks, tokenizer, model. Free of jax: `--dry_run` looks, too.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

import ml_collections

from swerl_jax.data import remote
from swerl_jax.data.shards import find_files
from swerl_jax.data.tasks import TaskSpec
from swerl_jax.env.chat import Chat
from swerl_jax.env.tokenizer import load_tokenizer, tokenizer_file
from swerl_jax.models import shipped
from swerl_jax.policy.arch import Arch, YarnScaling


@dataclasses.dataclass(frozen=True)
class Faults:
    """What keeps a run from working, one sentence each.

    Attributes:
      wrong: on any machine. absent: on this one, which lacks a file; remote ones are not looked for.
    """

    wrong: tuple[str, ...]
    absent: tuple[str, ...]


def look(config: ml_collections.ConfigDict, *, is_resumed: bool = False) -> Faults:
    """Looks for the examples, the tokenizer and the model to begin with, and whether the tasks asked for can be made.

    Args:
      config: of task train or eval, as config.check lets it pass; for other tasks nothing is looked at.
      is_resumed: the run goes on: its parameters are in its own directory.
    """
    wrong: list[str] = []
    absent: list[str] = []
    if config.task not in ("train", "eval"):
        return Faults((), ())
    paths = [("data.train", path) for path in config.data.train if config.task == "train"]
    for name, path in [*paths, ("data.held_out", config.data.held_out)]:
        if path and not remote.is_remote(path):
            _note(absent, name, lambda path=path: find_files(path))
    if config.task == "train" and not config.data.train:
        _note(wrong, "tasks", lambda: task_spec(config))
    place = config.init.removeprefix("hf:")
    if config.task == "train" and not is_resumed and config.init != "random":
        if config.init.startswith("embedded:") or pathlib.Path(place).is_dir():
            _note(wrong, "init", lambda: shipped.find(config.init))
        elif not remote.is_remote(place):
            absent.append(f"init is {config.init}, and there is no such directory; give that of a run, hf:DIR, embedded:NAME or "
                          "random")
    kind = config.tokenizer.partition(":")[0]
    if kind != "train" and _note(wrong if kind == "embedded" else absent, "tokenizer", lambda: tokenizer_file(config.tokenizer)):
        _note(wrong, "tokenizer", lambda: Chat(load_tokenizer(config.tokenizer), config.chat))
    return Faults(tuple(wrong), tuple(absent))


def require(config: ml_collections.ConfigDict, *, is_resumed: bool = False) -> None:
    """As `look`; raises ValueError with every fault, one a line."""
    faults = look(config, is_resumed=is_resumed)
    remedy = ("put there what is missing on this machine, or name what it has",) if faults.absent else ()
    if faults.wrong or faults.absent:
        raise ValueError("\n".join(faults.wrong + faults.absent + remedy))


def task_spec(config: ml_collections.ConfigDict) -> TaskSpec:
    """The tasks that are made where no training examples are named; raises ValueError as TaskSpec does."""
    t = config.tasks
    return TaskSpec(seed=config.seed, train_count=t.train_count, held_out_count=max(t.held_out_count, config.eval.examples),
                    max_function_bytes=t.max_function_bytes, scope=t.scope, distractor_files=t.distractor_files,
                    is_renamed=t.is_renamed, drill_count=t.drill_count, told_share=t.told_share,
                    babbled_share=t.babbled_share, misled_share=t.misled_share, overheard_share=t.overheard_share,
                    guessed_share=t.guessed_share, reworded_share=t.reworded_share, voice=t.voice,
                    operators=tuple(t.operators), min_choices=t.min_choices, is_cut=t.is_cut)


def beyond_context(config: ml_collections.ConfigDict, arch: Arch) -> str:
    """What to tell where prompt and answer may be longer than the model was made for; "" where they may not.

    Parameters that began at random have no such bound. YaRN stretches the original context by its factor, which the
    max_position_embeddings of some files leave out; that of Llama 3.1 has its scaling in it already.
    """
    context, scaling = arch.context, arch.rope_scaling
    if isinstance(scaling, YarnScaling):
        context = max(context, int(scaling.factor * scaling.original_context))
    longest = config.prompt.max_tokens + config.answer.max_tokens
    if longest <= context or config.init == "random":
        return ""
    model = config.init if config.model.arch == "init" else config.model.arch
    return (f"prompt.max_tokens {config.prompt.max_tokens} + answer.max_tokens {config.answer.max_tokens} are {longest} positions, "
            f"and {model} was made for {context} (max_position_embeddings): it knows none beyond; lower one of the two, or take a "
            "model of a longer context (for Qwen: rope_scaling of type yarn in its config.json)")


def _note(faults: list[str], name: str, attempt: Callable[[], object]) -> bool:
    """Whether the attempt succeeds; what it refuses is added to the faults."""
    try:
        attempt()
    except (ValueError, OSError) as error:
        faults.append(f"{name}: {error}")
        return False
    return True
