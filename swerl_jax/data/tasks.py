"""Repair tasks made on this machine: functions of the standard library with one injected bug each.

On the path: standard library → here → shards; deterministic from a seed, without a network.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import platform
import random
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from swerl_jax.data import atomic_file, drills, mutate, operators, pieces, rename, reword, stdlib, symptoms, syntax
from swerl_jax.data.records import Example
from swerl_jax.data.shards import write_examples

FUNCTION = "function"  # a file is one function
MODULE = "module"  # a file is a whole module
MANIFEST = "tasks.json"

# Draws in a row that give no new task before the corpus counts as exhausted.
_PATIENCE = 2_000


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """Which tasks to make.

    Attributes:
      seed: decides everything that is drawn; the split does not depend on it.
      train_count, held_out_count: tasks of each split.
      min_function_bytes, max_function_bytes: of the function that holds the bug, both included.
      min_statements: in that function, nested ones counted, its docstring not.
      scope: FUNCTION or MODULE: how much of the module the file is.
      max_module_bytes: modules above it are left out.
      distractor_files: further files of the same scope from the same split, shown and not to be changed.
      drill_count: drills written before the training tasks, see `drills`; read in order, they are a curriculum.
      told_share: 0 … 1: of the training tasks, those whose issue gives the repair away.
      babbled_share: 0 … 1: of the training tasks, those whose issue says nothing, see `symptoms.babble`.
      misled_share: 0 … 1: of the training tasks, those whose issue is a user's who is mistaken: it is about a bug that the
        function might as well have had, drawn by chance (the true one, at times), of another kind, at another place, or both.
      overheard_share: 0 … 1: of the training tasks, those whose issue is a user's and true, whatever the voice.
      guessed_share: 0 … 1: of the training tasks, those whose oracle is a guess: an edit by chance, of the kinds `operators`,
        which repairs the bug only by luck. Demonstrations of mixed quality, for a supervised phase; a reward from them means little.
      reworded_share: 0 … 1: of the training tasks, those whose function gets other words throughout, see `reword`; with
        FUNCTION and is_renamed.
      voice: whose words the issues are in, a name in `symptoms.VOICES`: a maintainer's, who names the kind of fault, or a
        user's, who has not read the code.
      operators: kinds of bugs, names in `operators.OPERATORS`; empty: all.
      min_choices: functions that admit fewer bugs of these kinds are left out: where there is one place for a bug, the code alone
        tells the repair, and the issue nothing.
      is_cut: functions above `max_function_bytes` give pieces within the bounds, see `pieces`; with FUNCTION.
      is_renamed: give local variables other names each time, and, if it stands alone, the function, its parameters and
        the file as well; without it the number of different tasks is limited.
    """

    seed: int = 0
    train_count: int = 4000
    held_out_count: int = 200
    min_function_bytes: int = 60
    max_function_bytes: int = 600
    min_statements: int = 2
    scope: str = FUNCTION
    max_module_bytes: int = 1_000_000
    distractor_files: int = 0
    is_renamed: bool = True
    drill_count: int = 0
    told_share: float = 0.0
    babbled_share: float = 0.0
    misled_share: float = 0.0
    overheard_share: float = 0.0
    guessed_share: float = 0.0
    reworded_share: float = 0.0
    voice: str = "maintainer"
    operators: tuple[str, ...] = ()
    min_choices: int = 1
    is_cut: bool = False

    def __post_init__(self):
        if self.scope not in (FUNCTION, MODULE):
            raise ValueError(f"scope is {self.scope!r}; needed is {FUNCTION!r} or {MODULE!r}")
        if min(self.train_count, self.held_out_count, self.distractor_files, self.min_statements, self.min_choices,
               self.drill_count) < 0:
            raise ValueError(f"got {self}; needed are counts of at least 0")
        of_issues = ("told_share", "babbled_share", "misled_share", "overheard_share")
        for name in (*of_issues, "guessed_share", "reworded_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; needed is 0 to 1")
        if sum(getattr(self, name) for name in of_issues) > 1:
            got = ", ".join(f"{name} {getattr(self, name)}" for name in of_issues)
            raise ValueError(f"{got} are of the same whole; needed is a sum of at most 1")
        if self.reworded_share and not (self.is_renamed and self.scope == FUNCTION):
            raise ValueError(f"reworded_share needs is_renamed and scope {FUNCTION!r}")
        if self.voice not in symptoms.VOICES:
            raise ValueError(f"voice is {self.voice!r}; needed is one of {', '.join(symptoms.VOICES)}")
        mutate.check_operators(self.operators)
        if self.is_cut and self.scope == MODULE:
            raise ValueError(f"is_cut needs scope {FUNCTION!r}; a module is shown whole")


@dataclasses.dataclass(frozen=True)
class TaskPaths:
    """The two shards of a set of tasks."""

    train: pathlib.Path
    held_out: pathlib.Path


def task_paths(directory: str | os.PathLike[str]) -> TaskPaths:
    """Where `make_tasks` writes; nothing is looked at."""
    return TaskPaths(pathlib.Path(directory, "train.array_record"), pathlib.Path(directory, "held_out.array_record"))


def make_tasks(
    spec: TaskSpec, directory: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None
) -> TaskPaths:
    """Writes the tasks of both splits with a manifest, or finds them made already.

    Args:
      spec: what to make.
      directory: gets `train.array_record`, `held_out.array_record` and MANIFEST; tasks there that were made from the
        same spec by the same Python and generator are used again, others replaced.
      progress: called with tasks made and tasks wanted.

    Raises:
      ValueError: the library has too few functions within the bounds.
    """
    directory, paths = pathlib.Path(directory), task_paths(directory)
    manifest = directory / MANIFEST
    identity = _identity(spec)
    if _is_made(manifest, identity) and paths.train.exists() and paths.held_out.exists():
        return paths
    directory.mkdir(parents=True, exist_ok=True)
    manifest.unlink(missing_ok=True)  # it vouches for the shards, so it goes first and comes last
    total, made = spec.drill_count + spec.train_count + spec.held_out_count, 0
    if progress is not None:
        progress(0, total)  # the scan that follows takes seconds
    corpus = scan(spec)
    counts: dict[str, Any] = {}
    for split, path in ((stdlib.TRAIN, paths.train), (stdlib.HELD_OUT, paths.held_out)):
        histogram: collections.Counter[str] = collections.Counter()
        tasks = iter_tasks(spec, split, corpus)
        if split == stdlib.TRAIN:
            tasks = itertools.chain(iter_drills(spec), tasks)
        tasks = _watched(tasks, histogram, made, total, progress)
        made += write_examples(path, tasks)
        counts[split] = {
            "tasks": histogram.total(),
            "functions": len(corpus.of(split)),
            "operators": dict(sorted(histogram.items())),
        }
    atomic_file.write_atomically(manifest, json.dumps({**identity, **counts}, indent=1) + "\n")
    return paths


def iter_tasks(spec: TaskSpec, split: str, corpus: stdlib.Corpus | None = None) -> Iterator[Example]:
    """Yields the tasks of one split, each different from the others.

    Args:
      spec: what to make; the first tasks of a larger count are those of a smaller one.
      split: "train" or "held_out".
      corpus: what `scan(spec)` returns, where it is at hand.

    Raises:
      ValueError: the split is unknown, or the library has too few functions within the bounds.
    """
    if split not in stdlib.SPLITS:
        raise ValueError(f"got the split {split!r}; needed is one of {stdlib.SPLITS}")
    count = spec.train_count if split == stdlib.TRAIN else spec.held_out_count
    corpus = corpus or scan(spec)
    functions = [each for each in corpus.of(split) if mutate.has_choices(each.text, spec.operators, spec.min_choices)]
    module_count = len({function.path for function in functions})
    if count and module_count <= spec.distractor_files:
        raise ValueError(
            f"{spec.distractor_files} distractor files were asked for and {split} has functions in {module_count} "
            "modules; needed are fewer, or wider bounds"
        )
    used: collections.Counter[str] = collections.Counter()
    seen: set[bytes] = set()
    attempt = last = 0
    while len(seen) < count:
        attempt += 1
        if attempt - last > _PATIENCE:
            raise ValueError(
                f"found {len(seen)} different tasks of the {count} for {split} in {len(functions)} functions; needed "
                "are wider bounds, is_renamed, or a smaller count"
            )
        # Seeded with a text, which hashes the same in every process.
        rng = random.Random(f"{spec.seed}/{split}/{attempt}")
        task = _task(spec, corpus, functions, rng, used)
        texts = [*task.files.values(), *task.oracle.values()] if task else []
        digest = hashlib.sha256(repr(texts).encode()).digest()
        if task and digest not in seen:
            used[task.meta["operator"]] += 1
            last = attempt
            yield dataclasses.replace(task, id=f"{split}-{len(seen):06d}")
            seen.add(digest)


def iter_drills(spec: TaskSpec) -> Iterator[Example]:
    """Yields the drills of the training split, ever longer ones."""
    for number in range(spec.drill_count):
        rng = random.Random(f"{spec.seed}/drill/{number}")
        longest = 1 + drills.MAX_STATEMENTS * number // spec.drill_count
        drill = drills.drill(rng, rng.randint(1, longest))
        yield dataclasses.replace(drill, id=f"drill-{number:06d}")


def scan(spec: TaskSpec) -> stdlib.Corpus:
    """Returns the functions of the library within the bounds of `spec`."""
    bounds = (spec.min_function_bytes, spec.max_function_bytes, spec.min_statements, spec.max_module_bytes)
    return stdlib.scan(*bounds, are_modules_shown=spec.scope == MODULE, are_cut=spec.is_cut)


def _task(
    spec: TaskSpec,
    corpus: stdlib.Corpus,
    functions: list[stdlib.StdlibFunction],
    rng: random.Random,
    used: collections.Counter[str],
) -> Example | None:
    function = rng.choice(functions)
    alone = spec.scope == FUNCTION
    source = function.text if alone else corpus.modules[function.path]
    span = (1, source.count("\n")) if alone else function.span
    is_training = function.split == stdlib.TRAIN
    if spec.is_renamed:
        source, names = rename.rename(source, span, rng, is_public=alone)
        if is_training and rng.random() < spec.reworded_share:
            source = reword.reword(source, corpus.words, rng, [name.removeprefix(".") for name in names.values()])
    bug = mutate.mutate(source, span, rng, spec.operators, used)
    if bug is None:
        return None
    repaired = source
    if is_training and rng.random() < spec.guessed_share:
        repaired = _guess(bug.text, source, span, rng, spec.operators)
    issue = _issue(rng, spec.voice, bug)
    texts = [(function.path, bug.text), *_distractors(spec, corpus, functions, function.path, rng)]
    shown = _names([path for path, _ in texts], rng if spec.is_renamed and alone else None)
    files = [(shown[path], text) for path, text in texts]
    rng.shuffle(files)
    return Example(
        id="",
        repo="python/cpython",
        commit=f"v{platform.python_version()}",
        issue=_training_issue(spec, corpus, bug, source, repaired, span, issue, rng) if is_training else issue,
        files=dict(files),
        oracle={shown[function.path]: repaired},
        meta={"operator": bug.operator, "module": function.path, "function": function.name, "line": bug.line},
    )


def _issue(rng: random.Random, voice: str, bug: mutate.Mutation) -> str:
    return symptoms.describe(rng, voice, bug.operator, bug.function, bug.subject, bug.removed)


def _training_issue(
    spec: TaskSpec, corpus: stdlib.Corpus, bug: mutate.Mutation, source: str, repaired: str, span: tuple[int, int], issue: str,
    rng: random.Random,
) -> str:
    """Returns `issue`, or what the shares of `spec` put in its place."""
    share = rng.random()
    told, babbled, misled, overheard = itertools.accumulate(
        (spec.told_share, spec.babbled_share, spec.misled_share, spec.overheard_share))
    if share < told:
        return symptoms.tell(rng, bug.text, repaired)
    if share < babbled:
        return symptoms.babble(rng, bug.function, corpus.words)
    if share < misled:
        other = mutate.mutate(source, span, rng, spec.operators) or bug
        about = other.subject if other.subject in bug.text else ""  # that bug's own code stands nowhere
        return _issue(rng, "user", dataclasses.replace(bug, operator=other.operator, subject=about))
    if share < overheard:
        return _issue(rng, "user", bug)
    return issue


def _guess(text: str, source: str, span: tuple[int, int], rng: random.Random, kinds: Collection[str]) -> str:
    """Returns the faulty file `text` with one more edit by chance; `source` where there is none."""
    first, last = span
    guess = mutate.mutate(text, (first, last + text.count("\n") - source.count("\n")), rng, kinds)
    return guess.text if guess else source


def _names(paths: list[str], rng: random.Random | None) -> dict[str, str]:
    """Returns the path that a task shows for each module: a made-up one each, or without `rng` its own."""
    while rng is not None:
        made = [rename.path(rng) for _ in paths]
        if len(set(made)) == len(made):
            return dict(zip(paths, made, strict=True))
    return {path: path for path in paths}


def _distractors(
    spec: TaskSpec,
    corpus: stdlib.Corpus,
    functions: list[stdlib.StdlibFunction],
    path: str,
    rng: random.Random,
) -> Iterator[tuple[str, str]]:
    shown = {path}
    while len(shown) <= spec.distractor_files:
        other = rng.choice(functions)
        if other.path not in shown:
            shown.add(other.path)
            yield other.path, other.text if spec.scope == FUNCTION else corpus.modules[other.path]


def _identity(spec: TaskSpec) -> dict[str, Any]:
    """Returns all that decides what the tasks are."""
    digest = hashlib.sha256()
    for module in (drills, mutate, operators, pieces, rename, reword, stdlib, symptoms, syntax):
        digest.update(pathlib.Path(module.__file__).read_bytes())
    digest.update(pathlib.Path(__file__).read_bytes())
    spec_as_read = json.loads(json.dumps(dataclasses.asdict(spec)))  # where a tuple is a list
    return {"spec": spec_as_read, "python": platform.python_version(), "generator": digest.hexdigest()}


def _is_made(manifest: pathlib.Path, identity: dict[str, Any]) -> bool:
    try:
        found = json.loads(manifest.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return isinstance(found, dict) and {key: found.get(key) for key in identity} == identity


def _watched(
    tasks: Iterable[Example],
    histogram: collections.Counter[str],
    before: int,
    total: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Example]:
    for number, task in enumerate(tasks, start=1):
        histogram[task.meta["operator"]] += 1
        if progress is not None:
            progress(before + number, total)
        yield task
