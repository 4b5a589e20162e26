"""The whole way, stage by stage: sources → verdicts → near-duplicates → shards → what is to be said of them.

On the path: settings → **every stage over all its items** → shards, manifest, funnel, rejects.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import fsspec

from swerl_jax.curate import (
    archive_stage,
    candidates,
    clones as clones_lib,
    context,
    examples,
    filters,
    funnel as funnel_lib,
    git_names,
    git_source,
    git_stage,
    judge,
    outcomes,
    pull_requests,
    runs,
    shard_stage,
    swebench_source,
    swebench_stage,
)
from swerl_jax.curate.change import Reject
from swerl_jax.curate.clones import Clone
from swerl_jax.curate.contamination import Evaluation
from swerl_jax.curate.funnel import Funnel
from swerl_jax.curate.judge import JudgeSettings
from swerl_jax.curate.outcomes import Verdict
from swerl_jax.curate.work import Item, Result, Work
from swerl_jax.data import files

GIT, ARCHIVE, SWEBENCH = "git", "gharchive", "swebench"
MEANINGS: dict[tuple[str, str], str] = {
    (stage, reason): meaning for stage, reasons in (
        (git_source.STAGE, git_stage.REASONS | git_source.REASONS | archive_stage.REASONS | swebench_source.REASONS),
        (pull_requests.STAGE, archive_stage.PULL_REASONS), (judge.STAGE, judge.REASONS),
        (candidates.STAGE, candidates.REASONS), (filters.STAGE, filters.REASONS), (examples.STAGE, examples.REASONS),
        (shard_stage.STAGE, shard_stage.REASONS),
    ) for reason, meaning in reasons.items()
}  # fmt: skip
ORDER = tuple(MEANINGS)  # of the funnel
_NAMED_REPOSITORIES = 50  # of those that are evaluated on, the ones with most changes; all are among the rejects


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run is to do.

    Attributes:
      kind, place: of the source: one of GIT, ARCHIVE, SWEBENCH, and where it lies.
      out: directory of the shards.
      clones: a clone or a directory of clones, for the sources that are none; "" for none.
      issues: a file of issues for GIT, "" for none.
      judge: how to decide; `evaluation` is completed by what archive and clones tell.
      with_hints: of SWEBENCH.
      buckets: parts of repositories and of examples; no more shards than that.
      range_commits: of one clone in one item.
      shard_examples: rows of a shard, about.
      similarity: from which two examples are nearly alike.
      held_out_share: of the examples.
    """

    kind: str
    place: str
    out: str
    judge: JudgeSettings
    clones: str = ""
    issues: str = ""
    with_hints: bool = False
    buckets: int = 32
    range_commits: int = 1000
    shard_examples: int = 5000
    similarity: float = 0.8
    held_out_share: float = 0.1


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run found.

    Attributes:
      funnel: of the changes.
      shards: the manifest's entries.
      split_by: what train and held-out rows differ in: "repository" or "id".
      recall: k → mean share of the changed files among the first k by the issue alone.
      ranked: of how many changes.
      faults: of inputs, one line each: torn hours, unreadable clones, items that failed.
      evaluation: what was kept out.
      rejects: files of them, in order.
      failed: those for items without a result, which are in no file.
    """

    funnel: Funnel
    shards: tuple[Mapping[str, Any], ...]
    split_by: str
    recall: Mapping[int, float]
    ranked: int
    faults: tuple[str, ...]
    evaluation: Evaluation | None
    rejects: tuple[str, ...]
    failed: tuple[Verdict, ...] = ()


def run(settings: Settings, work: Work) -> Outcome:
    """Does everything that is not done yet.

    Raises:
      ValueError: there is nothing to read at `settings.place`.
      AllFailed: all items of a stage failed.
    """
    find = {GIT: _from_git, ARCHIVE: _from_archive, SWEBENCH: _from_swebench}[settings.kind]
    found, evaluation, faults = find(settings, work)
    faults += [f"{result.item.name}: {result.fault.strip().splitlines()[-1]}" for result in found if result.fault]
    faults += [fault for result in found if not result.fault for fault in result.value["faults"]]
    sources = merged(work, [result.out + outcomes.RUN for result in found if not result.fault])
    collected = _good(work.run("collect", shard_stage.collect, None, [
        Item(f"bucket {bucket}", (tuple(sources), bucket)) for bucket in range(settings.buckets)]))
    decided = _good(work.run("decide", shard_stage.decide, (settings.similarity, settings.held_out_share), [
        Item("near-duplicates", (tuple(result.out for result in collected),))]))[0]
    shards = _write_shards(settings, work, sources, collected, decided)
    funnel = _funnel(found, collected, decided)
    if funnel.kept != (rows := sum(shard["rows"] for shard in shards)):
        raise RuntimeError(f"{funnel.kept} examples were kept and {rows} are in the shards at {settings.out}; that is a bug, "
                           "report it")
    ranked = sum(result.value["ranked"] for result in found if not result.fault)
    return Outcome(
        funnel=funnel, shards=tuple(shards), split_by=decided.value["split_by"],
        recall={k: sum(result.value["found"].get(str(k), 0.0) for result in found if not result.fault) / ranked
                for k in context.RECALL_AT if ranked},
        ranked=ranked, faults=tuple(dict.fromkeys(faults)), evaluation=evaluation,
        rejects=tuple(result.out + outcomes.REJECTS for result in (*found, *collected, decided) if not result.fault),
        failed=tuple(_failed(found)),
    )  # fmt: skip


def merged(work: Work, urls: Sequence[str]) -> list[str]:
    """Merges runs until they are few enough to be read at once."""
    while len(urls) > runs.FAN_IN:
        groups = [tuple(urls[start:start + runs.FAN_IN]) for start in range(0, len(urls), runs.FAN_IN)]
        made = work.run("merge", archive_stage.merge, None, [Item(f"{len(group)} runs", (group,)) for group in groups])
        urls = [result.out + outcomes.RUN for result in _good(made)]
    return list(urls)


def _from_git(settings: Settings, work: Work) -> tuple[list[Result], Evaluation | None, list[str]]:
    clones = _clones(work, settings.place)
    evaluation = _with_clones(settings.judge.evaluation, clones)
    shared = (dataclasses.replace(settings.judge, evaluation=evaluation), settings.buckets)
    found = work.run("commits", git_stage.read_range, shared, git_stage.items(clones, settings.range_commits, settings.issues))
    return found, evaluation, []


def _from_swebench(settings: Settings, work: Work) -> tuple[list[Result], Evaluation | None, list[str]]:
    clones = _clones(work, settings.clones) if settings.clones else []
    evaluation = _with_clones(settings.judge.evaluation, clones)
    counted = _good(work.run("rows", swebench_stage.count, None, [
        Item(settings.place, (settings.place,), files.state(settings.place))], is_kept=False))[0].value
    shared = (dataclasses.replace(settings.judge, evaluation=evaluation), settings.buckets)
    items = swebench_stage.items(settings.place, counted["rows"], clones, settings.with_hints)
    return work.run("examples", swebench_stage.read_range, shared, items), evaluation, [counted["fault"]] * bool(counted["fault"])


def _from_archive(settings: Settings, work: Work) -> tuple[list[Result], Evaluation | None, list[str]]:
    clones = _clones(work, settings.clones or settings.place)
    joining = archive_stage.Joining(settings.buckets, tuple(clones))
    bare = archive_stage.Joining(settings.buckets)
    hours = work.run("hours", archive_stage.write_hour, bare, [
        Item(url, (url,), files.state(url)) for url in archive_files(settings.place)])
    faults = [f"{result.item.name}: {result.fault.strip().splitlines()[-1]}" for result in hours if result.fault]
    faults += [f"{result.item.name}: {result.value['fault']}" for result in hours if result.value and result.value["fault"]]
    facts = tuple(merged(work, [result.out + outcomes.RUN for result in hours if not result.fault]))
    evaluation = _seen(settings.judge.evaluation, facts, settings.buckets, work)
    evaluation = _with_clones(evaluation, clones)

    def step(name: str, function: Callable[..., Any], *more: tuple[str, ...]) -> tuple[str, ...]:
        shared = joining if name == "asks" else bare
        made = _good(work.run(name, function, shared, [
            Item(f"bucket {bucket}", (facts, *more, bucket)) for bucket in range(settings.buckets)]))
        return tuple(merged(work, [result.out + outcomes.RUN for result in made]))

    asks = step("asks", archive_stage.ask)
    resolved = step("names", archive_stage.resolve, asks)
    answers = step("answers", archive_stage.answer, tuple(merged(work, (*asks, *resolved))))
    shared = (dataclasses.replace(settings.judge, evaluation=evaluation), joining)
    found = work.run("pull_requests", archive_stage.read_bucket, shared, [
        Item(f"bucket {bucket}", (facts, answers, bucket)) for bucket in range(settings.buckets)])
    return found, evaluation, faults + [f"{clone.path}: {clone.fault}" for clone in clones if clone.fault]


def archive_files(place: str) -> list[str]:
    """The files of events in a directory, and in those below it.

    Raises:
      ValueError: there is none.
    """
    file_system, path = fsspec.core.url_to_fs(place)
    found = sorted(name for name in file_system.find(path) if name.endswith(".json.gz")) if file_system.exists(path) else []
    if not found:
        raise ValueError(f"found no hour of events at {place}; needed is a directory of .json.gz files, as GH Archive has them")
    return [file_system.unstrip_protocol(name) if not files.is_local(place) else name for name in found]


def _clones(work: Work, place: str) -> list[Clone]:
    items = [Item(path, (path,)) for path in git_names.find_repositories(place)]
    looked = work.run("clones", clones_lib.look_at, None, items, is_kept=False)
    return [clones_lib.from_json(result.value) if result.value else
            Clone(result.item.name, git_names.name_from_path(result.item.name), fault=result.fault) for result in looked]


def _with_clones(evaluation: Evaluation | None, clones: Iterable[Clone]) -> Evaluation | None:
    """An evaluation's clones tell their root commits, by which their forks are known."""
    return evaluation.with_clones((name, clone.roots) for clone in clones for name in clone.all_names) if evaluation else None


def _seen(evaluation: Evaluation | None, facts: tuple[str, ...], buckets: int, work: Work) -> Evaluation | None:
    """Adds the numbers that an archive saw under an evaluation's names, and then the other names of those."""
    shared, pairs = archive_stage.Joining(buckets), set()
    names, ids = tuple(sorted(evaluation.names)) if evaluation else (), ()
    for _ in range(2 if evaluation else 0):
        results = _good(work.run("evaluation", archive_stage.names_seen, shared, [
            Item(f"bucket {bucket}", (facts, bucket, names, ids)) for bucket in range(buckets)]))
        pairs |= {(name, number) for result in results for name, number in result.value}
        ids = tuple(sorted(evaluation.with_seen(pairs).ids))
    return evaluation.with_seen(sorted(pairs)) if evaluation else None


def _write_shards(settings: Settings, work: Work, sources: Sequence[str], collected: Sequence[Result], decided: Result,
                  ) -> list[Mapping[str, Any]]:
    """Writes what the shards hold, and removes those of another number."""
    starts = [0]
    for result in collected:
        starts.append(starts[-1] + result.value["rows"])
    items = []
    for split in (shard_stage.TRAIN, shard_stage.HELD_OUT):
        rows = decided.value[split]
        count = min(settings.buckets, -(-rows // settings.shard_examples))
        for number, name in enumerate(shard_stage.shard_names(split, count)):
            first, last = (settings.buckets * edge // count for edge in (number, number + 1))
            items.append(Item(name, (settings.out, tuple(sources), tuple(range(first, last)), decided.out, starts[first], split,
                                     name)))
    written = work.run("shards", shard_stage.write_shard, None, items, is_whole=lambda value: files.size_bytes(
        f"{settings.out}/{value['name']}") == value["bytes"])
    shards = [result.value for result in _good(written)]
    shard_stage.remove_others(settings.out, {shard["name"] for shard in shards})
    return shards


def _good(results: Sequence[Result]) -> Sequence[Result]:
    """The results of a stage without which nothing goes on."""
    for result in results:
        if result.fault:
            raise ValueError(f"{result.item.name} failed, and nothing can be made without it; start again to go on there:\n"
                             f"{result.fault}")
    return results


def _failed(results: Iterable[Result]) -> list[Verdict]:
    return [Verdict(Reject(result.item.name, git_source.STAGE, "failed", result.fault), changes=result.item.changes)
            for result in results if result.fault]


def _funnel(found: Sequence[Result], collected: Sequence[Result], decided: Result) -> Funnel:
    parts = [funnel_lib.from_json(result.value["funnel"]) for result in found if not result.fault]
    kinds: collections.Counter[str] = collections.Counter()
    kept_out: collections.Counter[str] = collections.Counter()
    for result in found:
        kinds.update(result.value["kinds"] if result.value else {})
        kept_out.update(result.value["kept_out"] if result.value else {})
    most = sorted(kept_out.items(), key=lambda pair: (-pair[1], pair[0]))[:_NAMED_REPOSITORIES]
    notes = {f"files of kind {kind}": count for kind, count in kinds.items()} | {f"kept out: {why}": count for why, count in most}
    failed = (verdict.outcome for verdict in _failed(found) for _ in range(verdict.changes))
    whole = funnel_lib.merge([*parts, funnel_lib.tally(failed, notes)])
    reasons = {"same_id": sum(result.value["same_id"] for result in collected), "near_duplicate": decided.value["near_duplicate"]}
    return funnel_lib.then(whole, shard_stage.STAGE, reasons)
