"""From the examples of all items to shards: near-duplicates out, repositories split, rows in an order of chance.

On the path: runs of examples → rows of a bucket → what becomes of each row → **shards**. The order of rows is that of a
number made of each id, so it does not depend on how the work was divided; of examples nearly alike the first in it is kept.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from swerl_jax.curate import near_duplicates, outcomes, runs
from swerl_jax.curate.change import Reject
from swerl_jax.curate.outcomes import EXAMPLE, FAMILY
from swerl_jax.data import files, shards
from swerl_jax.data.records import Example

STAGE = "near_duplicates"
REASONS = {
    "same_id": "another example of the same id was found before",
    "near_duplicate": "its issue and change are nearly those of another",
}
TRAIN, HELD_OUT = "train", "held_out"
MANIFEST_NAME = "manifest.json"  # beside the shards, once all are there
SHARD_NAME = re.compile(rf"(?:{TRAIN}|{HELD_OUT})-\d{{5}}-of-\d{{5}}\.array_record")
_LEFT_BEHIND = re.compile(rf"\.?{SHARD_NAME.pattern}(?:\.\d+\.partial(?:\.array_record)?)?")
_DROPPED, _CODE = 0, {TRAIN: 1, HELD_OUT: 2}
_SIGNATURES, _DRAWS, _IDS, _FATES = ".signatures", ".draws", ".ids", ".fates"
_BINS = 1 << 16
_FATES_AT_ONCE = 1 << 12
_MOST_SHARES = 2  # held out by repository are at most so many times what was asked for
TOKEN_STEP = 128  # lengths are counted in steps of so many


def collect(shared: None, sources: Sequence[str], bucket: int, out: str) -> Any:
    """Makes the signatures of a bucket's rows and draws their lots; a stage's function.

    Returns:
      "rows", and "same_id": of how many others there was one before.
    """
    del shared
    rows = same = 0
    last = None
    with (files.written(out + _SIGNATURES) as signatures, files.written(out + _DRAWS) as draws, files.written(out + _IDS) as ids,
          outcomes.rejects_file(out + outcomes.REJECTS) as rejects, open(signatures, "wb") as signature_file,
          open(draws, "wb") as draw_file, open(ids, "w", encoding="utf-8") as id_file):
        for row in runs.read_bucket(sources, bucket):
            if row[1] == last:
                same += 1
                outcomes.write_reject(rejects, Reject(row[1], STAGE, "same_id", str(row[2])))
                continue
            last = row[1]
            rows += 1
            signature_file.write(near_duplicates.signature(shards.example_from_json(row[EXAMPLE])).astype("<u4").tobytes())
            lots = outcomes.place_of(f"family {row[FAMILY]}") % _BINS, outcomes.place_of(f"id {row[1]}") % _BINS
            draw_file.write(np.array(lots, "<u2").tobytes())
            id_file.write(json.dumps(row[1]) + "\n")
    return {"rows": rows, "same_id": same}


def decide(settings: tuple[float, float], collected: Sequence[str], out: str) -> Any:
    """Decides what becomes of every row of all buckets; a stage's function.

    Args:
      settings: the similarity from which two are nearly alike, and the share to be held out.

    Returns:
      How many rows are "near_duplicate", "train" and "held_out", and what they were "split_by": "repository", or "id" where
      there is one repository, or so few that the smallest is more than _MOST_SHARES times the share.
    """
    threshold, share = settings
    with tempfile.TemporaryDirectory() as directory:
        first = _first_of(collected, os.path.join(directory, "signatures"), threshold)
    draws = np.frombuffer(b"".join(files.read_bytes(url + _DRAWS) for url in collected), "<u2").reshape(-1, 2)
    is_kept = first == np.arange(len(first))
    for column, split_by in enumerate(("repository", "id")):
        lots = draws[:, column]
        is_held_out = is_kept & _held_out_bins(lots[is_kept], share)[lots]
        if len(np.unique(lots[is_kept])) > 1 and is_held_out.sum() <= _MOST_SHARES * share * is_kept.sum():
            break
    fates = np.where(is_held_out, _CODE[HELD_OUT], np.where(is_kept, _CODE[TRAIN], _DROPPED)).astype(np.uint8)
    with files.written(out + _FATES) as path, open(path, "wb") as file:
        file.write(fates.tobytes())
    _write_rejects(out + outcomes.REJECTS, collected, first)
    return {"near_duplicate": int(np.sum(~is_kept)), TRAIN: int(np.sum(fates == _CODE[TRAIN])),
            HELD_OUT: int(np.sum(fates == _CODE[HELD_OUT])), "split_by": split_by}


def shard_names(split: str, count: int) -> list[str]:
    """The names of so many shards of a split."""
    return [f"{split}-{number:05d}-of-{count:05d}.array_record" for number in range(count)]


def remove_others(directory: str, wanted: Collection[str]) -> None:
    """Removes shards of another number, and what killed processes left of one; no file of another name."""
    for name in files.names(directory):
        if _LEFT_BEHIND.fullmatch(name) and name not in wanted:
            files.remove(f"{directory}/{name}")


def write_shard(shared: None, directory: str, sources: Sequence[str], buckets: Sequence[int], fates: str, start: int,
                split: str, name: str, out: str) -> Any:
    """Writes the rows of some buckets that belong to a split as one shard; a stage's function.

    The manifest, which tells of other shards, goes first: without it nobody takes old and new ones for one set.

    Args:
      directory: where the shard goes.
      sources: runs of examples.
      buckets: of the shard, in order.
      fates: what `decide` wrote.
      start: number of the first row of these buckets among all.
      name: of the shard.

    Returns:
      The manifest's entry, and counts of the rows' "flags", "languages", "licences" and lengths.
    """
    del shared, out
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)

    def examples() -> Iterator[Example]:
        for example in _chosen(sources, buckets, fates + _FATES, start, _CODE[split]):
            for key, value in _facts(example).items():
                counts[key][value] += 1
            counts["flags"].update(example.flags)
            yield example

    files.remove(f"{directory}/{MANIFEST_NAME}")
    with files.written(f"{directory}/{name}") as path:
        whole = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.array_record")  # the ending names the form
        rows = shards.write_examples(whole, examples())
        os.replace(whole, path)
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": name, "split": split, "rows": rows, "bytes": size, "sha256": digest,
            "counts": {key: dict(sorted(counts[key].items())) for key in sorted(counts)}}


def _first_of(collected: Sequence[str], path: str, threshold: float) -> np.ndarray:
    """int64 [rows]: the row that is kept in each one's place; the signatures are read from a file as they are needed."""
    with open(path, "wb") as file:
        for url in collected:
            files.append_to(file, url + _SIGNATURES)
    if not os.path.getsize(path):
        return np.zeros(0, np.int64)
    signatures = np.memmap(path, "<u4", "r").reshape(-1, near_duplicates.HASHES)
    return near_duplicates.first_of(signatures, threshold)


def _held_out_bins(lots: np.ndarray, share: float) -> np.ndarray:
    """bool [_BINS]: lots that are held out, as many as fit into the share; if none does the smallest, but never all."""
    sizes = np.bincount(lots, minlength=_BINS)
    is_held_out = np.zeros(_BINS, bool)
    there = np.flatnonzero(sizes)
    if share <= 0 or len(there) < 2:
        return is_held_out
    left = share * len(lots)
    for one in there:
        if sizes[one] <= left:
            is_held_out[one] = True
            left -= sizes[one]
    if not is_held_out.any():
        is_held_out[there[np.argmin(sizes[there])]] = True
    return is_held_out


def _write_rejects(url: str, collected: Sequence[str], first: np.ndarray) -> None:
    dropped = {int(row): int(first[row]) for row in np.flatnonzero(first != np.arange(len(first)))}
    wanted = {*dropped, *dropped.values()}
    ids: dict[int, str] = {}
    number = 0
    for one in collected:
        for line in files.read_bytes(one + _IDS).splitlines() if wanted else ():
            if number in wanted:
                ids[number] = json.loads(line)
            number += 1
    with outcomes.rejects_file(url) as file:
        for row, kept in dropped.items():
            outcomes.write_reject(file, Reject(ids[row], STAGE, "near_duplicate", f"like {ids[kept]}"))


def _chosen(sources: Sequence[str], buckets: Sequence[int], fates: str, start: int, code: int) -> Iterator[Example]:
    """The rows of the buckets whose fate is `code`; `collect` counted them in the same way."""
    for bucket in buckets:
        last = None
        known = b""
        for row in runs.read_bucket(sources, bucket):
            if row[1] == last:
                continue
            last = row[1]
            if not known:
                known = files.read_bytes(fates, start, start + _FATES_AT_ONCE)
            fate, known, start = known[0], known[1:], start + 1
            if fate == code:
                yield shards.example_from_json(row[EXAMPLE])


def _facts(example: Example) -> Mapping[str, str]:
    meta = example.meta
    return {
        "languages": meta.get("language") or "unknown", "licences": meta.get("licence") or "unknown",
        "prompt_tokens": f"{-(-meta['prompt_tokens'] // TOKEN_STEP) * TOKEN_STEP}",
        "answer_tokens": f"{-(-meta['answer_tokens'] // TOKEN_STEP) * TOKEN_STEP}",
    }  # fmt: skip
