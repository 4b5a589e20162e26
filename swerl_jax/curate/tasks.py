"""The tasks `curate` and `inspect`: from a config to a run, and from a run to what a person and a trainer read.

On the path: config → settings → pipeline → **shards' manifest, funnel, rejects**; shards → a page.
"""

from __future__ import annotations

import collections
import gzip
import hashlib
import os
import pathlib
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from swerl_jax import __version__, config as config_lib
from swerl_jax.curate import contamination, funnel as funnel_lib, funnel_plot, look, outcomes, pipeline, shard_stage
from swerl_jax.curate.engine import Engine, LocalEngine
from swerl_jax.curate.examples import ExampleSettings, TokenCounter
from swerl_jax.curate.filters import FilterSettings
from swerl_jax.curate.judge import Judge, JudgeSettings
from swerl_jax.curate.pipeline import ORDER, Outcome, Settings
from swerl_jax.curate.shard_stage import MANIFEST_NAME
from swerl_jax.curate.work import Work
from swerl_jax.data import files
from swerl_jax.data.records import Example
from swerl_jax.data.shards import MalformedRow, open_examples
from swerl_jax.env.chat import Chat
from swerl_jax.env.reward import PAPER, RewardSpec
from swerl_jax.env.tokenizer import load_tokenizer, tokenizer_file

FORMAT = 2  # of the manifest
TEXT_SETTINGS = ("tokenizer", "chat", "prompt.style")  # by which lengths were counted
_SAID = ("source", "keep_rejects", "held_out_share", "beam", "curate.", "tokenizer", "chat", "prompt.", "answer.", "reward.")
_NOT_SAID = ("reward.truncated", "reward.workers", "reward.deadline_s", "reward.max_fault_frac")
_FREE = ("keep_rejects", "beam", "curate.workers", "curate.item_timeout_s", "curate.worker_memory_gb")  # change no shard


def settings_of(config: ml_collections.ConfigDict) -> Settings:
    """What a config asks for, checked as far as can be before the work begins.

    Raises:
      ValueError: what is missing or wrong, and what to do.
    """
    kind, _, place = config.source.partition(":")
    if kind not in (pipeline.GIT, pipeline.ARCHIVE, pipeline.SWEBENCH) or not place:
        raise ValueError(f"source is {config.source!r}; needed is git:PATH, gharchive:DIRECTORY or swebench:FILE")
    if not files.exists(place):
        raise ValueError(f"source: there is no {place}")
    c, r = config.curate, config.reward
    if config.tokenizer.startswith("train:"):
        raise ValueError(f"tokenizer is {config.tokenizer}; to count tokens one that exists is needed, such as embedded:tiny, "
                         "hf:DIRECTORY or json:FILE")
    if r.name != PAPER.name:
        raise ValueError(f"reward.name is {r.name}; an example is proven by its oracle's own answer in search/replace edits, which "
                         f"needs {PAPER.name}. Give another reward to the training")
    tokenizer = tokenizer_file(config.tokenizer)
    is_rows = kind == pipeline.SWEBENCH
    filters = FilterSettings(
        bots=c.bots, bug_fix={"auto": "any" if is_rows else "words"}.get(c.bug_fix, c.bug_fix), needs_issue=c.needs_issue,
        min_issue_words=c.min_issue_words, max_files=c.max_files, max_changed_lines=c.max_changed_lines,
        max_file_chars=c.max_file_chars, max_fix_share=c.max_fix_share, languages=tuple(c.languages),
        licences=_licences(tuple(c.licences), is_rows and not c.clones), oracle_roles=tuple(c.oracle_roles))
    examples = ExampleSettings(
        oracle_roles=filters.oracle_roles, max_prompt_tokens=config.prompt.max_tokens, max_answer_tokens=config.answer.max_tokens,
        reward=RewardSpec(r.name, r.similarity, r.line_autojunk, r.discrete), keep_conversation=c.keep_conversation)
    judge = JudgeSettings(
        filters, examples, config.tokenizer, config.chat, config.prompt.style, c.context_files,
        contamination.load() if c.decontaminate else None, tuple(c.evaluation_files),
        " ".join(map(files.state, c.evaluation_files)),
        hashlib.sha256(tokenizer.read_bytes()).hexdigest() if tokenizer else "")
    Judge(judge)  # loads the tokenizer and the evaluation's rows: what cannot be read is said now
    return Settings(
        kind, files.absolute(place), files.absolute(config.out), judge, c.clones and files.absolute(c.clones),
        c.issues and files.absolute(c.issues), c.hints, c.buckets, c.range_commits, c.shard_examples, c.similarity,
        config.held_out_share)


def local_engine(config: ml_collections.ConfigDict) -> LocalEngine:
    """Processes of this machine."""
    c = config.curate
    return LocalEngine(c.workers or len(os.sched_getaffinity(0)), c.item_timeout_s, int(c.worker_memory_gb * 2**30))


def curate(config: ml_collections.ConfigDict, engine: Engine) -> str:
    """Makes the shards, or goes on making them; returns what to print.

    Raises:
      ValueError: the settings cannot work, or `out` holds shards made with others or cannot be written to.
    """
    settings = settings_of(config)
    said = _said(config)
    _check_free(settings.out, said)
    try:
        files.write_json(f"{settings.out}/work/settings.json", said)
    except OSError as error:
        raise ValueError(f"out: nothing can be written to {settings.out} ({error}); make room or choose another "
                         "--config.out") from error
    try:
        outcome = pipeline.run(settings, Work(f"{settings.out}/work", engine))
    finally:
        engine.close()
    order = list(ORDER)
    table = funnel_lib.table(outcome.funnel, order, pipeline.MEANINGS)
    files.write_json(f"{settings.out}/funnel.json", funnel_lib.to_json(outcome.funnel))
    with files.written(f"{settings.out}/funnel.txt") as path:
        pathlib.Path(path).write_text(table, encoding="utf-8")
    with files.written(f"{settings.out}/funnel.png") as path:
        funnel_plot.plot_funnel(outcome.funnel, path, order)
    if config.keep_rejects:
        _write_rejects(f"{settings.out}/rejects.jsonl.gz", outcome)
    manifest = manifest_of(settings, outcome, said)
    files.write_json(f"{settings.out}/{MANIFEST_NAME}", manifest)  # last: where it is, everything is
    return f"{table}\n{_told(settings.out, manifest)}"


def manifest_of(settings: Settings, outcome: Outcome, said: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be known of the shards: counts, checksums, settings, versions, licences, what was kept out."""
    evaluation = outcome.evaluation
    counts: dict[str, dict[str, int]] = {}
    for shard in outcome.shards:
        for key, values in shard["counts"].items():
            merged = counts.setdefault(key, {})
            for value, count in values.items():
                merged[value] = merged.get(value, 0) + count
    ordered = {key: dict(sorted(values.items(), key=lambda pair: (-pair[1], pair[0]))) for key, values in counts.items()}
    return {
        "format": FORMAT,
        "examples": {split: sum(shard["rows"] for shard in outcome.shards if shard["split"] == split)
                     for split in (shard_stage.TRAIN, shard_stage.HELD_OUT)},
        "split_by": outcome.split_by,
        "shards": [{key: shard[key] for key in ("name", "split", "rows", "bytes", "sha256")} for shard in outcome.shards],
        "licences": ordered.get("licences", {}),
        "languages": ordered.get("languages", {}),
        "flags": ordered.get("flags", {}),
        "prompt_tokens": _lengths(counts.get("prompt_tokens", {})),
        "answer_tokens": _lengths(counts.get("answer_tokens", {})),
        "recall_from_issue_alone": {"of": outcome.ranked, **{f"at_{k}": round(value, 4) for k, value in outcome.recall.items()}},
        "funnel": funnel_lib.to_json(outcome.funnel),
        "faults": list(outcome.faults),
        "contamination": {
            "repositories": sorted(evaluation.names), "ids": sorted(evaluation.ids), "root_commits": sorted(evaluation.roots),
            "files": list(settings.judge.evaluation_files),
        } if evaluation or settings.judge.evaluation_files else {},
        "config": dict(said),
        "versions": {"swerl_jax": __version__, "python": platform.python_version(), "numpy": np.__version__, "git": _git_version()},
    }  # fmt: skip


def shards_at(path: str) -> tuple[str, str]:
    """(pattern of the training shards, of the held-out ones) of a directory that `curate` made, "" for what is not there.

    Raises:
      ValueError: it holds none, or they are not all there yet.
    """
    made = _finished(path)
    count = collections.Counter(shard["split"] for shard in made["shards"]) if made else {}
    if not count.get(shard_stage.TRAIN):
        raise ValueError(f"data: {path} has no examples to learn from; needed is a directory that --config=configs/curate.py made")
    train, held_out = (os.path.join(path, f"{split}-?????-of-{count[split]:05d}.array_record") if count[split] else ""
                       for split in (shard_stage.TRAIN, shard_stage.HELD_OUT))
    return train, held_out


def with_shards(config: ml_collections.ConfigDict, given: Callable[[str], bool],
                context: Callable[[], int]) -> ml_collections.ConfigDict:
    """The settings with what `data.shards` stands for.

    Training learns from the train shards and is judged by the held-out ones. Where lengths were counted with the tokenizer
    and template of this config, its prompts may be as long as half of the examples need and the model's context allows beside
    an answer, unless the user says how long; how many fit is printed.

    Args:
      config: of any task; unchanged where `data.shards` is not set.
      given: whether the user set a setting of this name. context: of the model [tokens].

    Raises:
      ValueError: there are no such shards, none is held out, or other files are named besides.
    """
    path = config.data.shards
    if not path or config.task == "inspect":
        return config
    if config.data.train or config.data.held_out:
        raise ValueError("data and data.train or data.held_out are both given; name the shards or the files, not both")
    train, held_out = shards_at(path)
    if not held_out:
        raise ValueError(f"{path} holds out no example; make it with --config.held_out_share above 0, or name both sets: "
                         "--config.data.train=\"('FILE',)\" --config.data.held_out=FILE")
    config = config_lib.update(config, {"data.train": (train,), "data.held_out": held_out})
    made = _finished(path)
    flat = dict(config_lib.flat(config))
    if any(made["config"][name] != flat[name] for name in TEXT_SETTINGS):
        return config
    lengths = made["prompt_tokens"]
    longest = min(lengths["median"], context() - config.answer.max_tokens)
    if config.prompt.max_tokens < longest and not given("prompt.max_tokens"):
        changes: dict[str, Any] = {"prompt.max_tokens": longest}
        config_lib.update(config, changes | ({} if given("engine.prefix_buckets") else {"engine.prefix_buckets": ()}))
    longest, counts = config.prompt.max_tokens, lengths["counts"]
    share = sum(count for length, count in counts.items() if int(length) <= longest) / sum(counts.values())
    print(f"prompt.max_tokens is {longest}: {share:.0%} of the examples of {path} fit")
    return config


def inspect(config: ml_collections.ConfigDict, given: Callable[[str], bool], *, colour: bool) -> str:
    """A page of one example, and numbers of the whole set.

    Raises:
      ValueError: there is no such example, or the shards are not all there yet.
    """
    path = config.data.shards
    made = _finished(path)
    text = {name: made["config"][name] if made and not given(name) else dict(config_lib.flat(config))[name]
            for name in TEXT_SETTINGS}
    counter = TokenCounter(Chat(load_tokenizer(text["tokenizer"]), text["chat"]), text["prompt.style"])
    r = config.reward
    reward = RewardSpec(r.name, r.similarity, r.line_autojunk, r.discrete)
    examples = open_examples(os.path.join(path, "*-?????-of-?????.array_record") if made else path)
    index = config.inspect.index
    if not 0 <= index < len(examples):
        raise ValueError(f"inspect.index is {index}; {path} has the examples 0 to {len(examples) - 1}")
    malformed: list[str] = []
    numbers = look.summary(_readable(examples, malformed), counter)
    lines = [f"{len(malformed)} rows are no examples; the first: {malformed[0]}\n"] if malformed else []
    return "\n".join([look.page(examples[index], counter, reward, colour=colour),
                      f"{path}, of which the above is number {index}:", numbers, *lines])


def _readable(examples: Sequence[Example], malformed: list[str]) -> Iterator[Example]:
    for number in range(len(examples)):
        try:
            yield examples[number]
        except MalformedRow as error:
            malformed.append(str(error))


def _licences(named: tuple[str, ...], is_unknown: bool) -> tuple[str, ...]:
    if named == ("auto",):
        return () if is_unknown else FilterSettings.licences
    return () if named == ("any",) else named


def _said(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The settings that count, as JSON values."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in config_lib.flat(config)
            if name.startswith(_SAID) and name not in _NOT_SAID}


def _check_free(out: str, said: Mapping[str, Any]) -> None:
    """Raises ValueError where there are shards that were made with other settings."""
    made = _manifest(out)
    if not made:
        return
    changed = [f"  {name}: was {made['config'].get(name)!r}, is {value!r}" for name, value in said.items()
               if made["config"].get(name) != value and name not in _FREE]
    if changed:
        raise ValueError(f"{out} holds shards that were made with other settings:\n" + "\n".join(changed)
                         + "\nGive the same ones, choose another --config.out, or delete it yourself")


def _manifest(path: str) -> Any:
    url = f"{path}/{MANIFEST_NAME}"
    return files.read_json(url) if files.exists(url) else None


def _finished(path: str) -> Any:
    """The manifest of a directory of shards, None where there are none; raises ValueError where they are not those it names."""
    made, names = _manifest(path), set(files.names(path))
    if made and made.get("format") != FORMAT:
        raise ValueError(f"{path}/{MANIFEST_NAME} is of format {made.get('format')}; needed is {FORMAT}: give the "
                         "--config=configs/curate.py command again")
    missing = [shard["name"] for shard in made["shards"] if shard["name"] not in names] if made else []
    if missing or (not made and any(map(shard_stage.SHARD_NAME.fullmatch, names))):
        raise ValueError(f"{path} is unfinished: it lacks {missing[0] if missing else MANIFEST_NAME}; give the same "
                         "--config=configs/curate.py command again to complete it")
    return made


def _write_rejects(url: str, outcome: Outcome) -> None:
    with files.written(url) as path, open(path, "wb") as file:
        for one in outcome.rejects:  # compressed files one behind the other are a compressed file
            files.append_to(file, one)
        with gzip.GzipFile("", "wb", 6, file, mtime=0) as last:
            for verdict in outcome.failed:
                outcomes.write_reject(last, verdict.outcome, verdict.changes)


def _lengths(counts: Mapping[str, int]) -> dict[str, Any]:
    """Median, maximum and counts of all lengths, in steps of `shard_stage.TOKEN_STEP`, rounded up."""
    lengths = sorted((int(length), count) for length, count in counts.items())
    if not lengths:
        return {"median": 0, "max": 0, "counts": {}}
    below = np.cumsum([count for _, count in lengths])
    median = lengths[int(np.searchsorted(below, (below[-1] + 1) // 2))][0]
    return {"median": median, "max": lengths[-1][0], "counts": {str(length): count for length, count in lengths}}


def _told(out: str, manifest: Mapping[str, Any]) -> str:
    recall = manifest["recall_from_issue_alone"]
    found = ", ".join(f"{recall[f'at_{k}']:.3f} at {k}" for k in (1, 3, 5, 10)) if recall["of"] else "nothing was ranked"
    number = {split: sum(shard["split"] == split for shard in manifest["shards"]) for split in ("train", "held_out")}
    lines = [f"{out}: {manifest['examples']['train']:,} examples to learn from in {number['train']} shards, "
             f"{manifest['examples']['held_out']:,} held out (by {manifest['split_by']}) in {number['held_out']}",
             f"recall of changed files from the issue alone ({recall['of']:,} changes): {found}"]
    lines += [f"fault: {fault}" for fault in manifest["faults"][:20]]
    lines += [f"… and {len(manifest['faults']) - 20} more in {MANIFEST_NAME}"] if len(manifest["faults"]) > 20 else []
    return "\n".join(lines)


def _git_version() -> str:
    done = subprocess.run(["git", "--version"], capture_output=True, text=True, check=False)
    return done.stdout.strip().removeprefix("git version ")
