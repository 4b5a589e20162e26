"""How fast the whole way is: a clone made here, by the real task with processes, to shards; at one and four times the input.

    python tests/bench/curate.py [--commits 2500] [--files 600] [--workers 2] [--scales 1 4]

Prints one JSON line a scale. `…_per_s` is by the clock; `…_per_cpu_s` by the processor time of all processes, gits included,
times the workers: what so many idle cores would do. Memory is the sum over all processes, sampled, and the largest of them.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import threading
import time

import psutil

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "bench")]

import curate_git  # noqa: E402: the checkout comes first
from curated import config  # noqa: E402

from swerl_jax.curate import tasks  # noqa: E402


class Memory:
    """The largest sum of the resident memory of this process and all below it."""

    def __init__(self):
        self.peak_bytes = 0
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self):
        me = psutil.Process()
        while not self._is_done.wait(0.3):
            total = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    pass
            self.peak_bytes = max(self.peak_bytes, total)

    def stop(self):
        self._is_done.set()
        self._thread.join()
        return self.peak_bytes


def measure(commits, files, workers):
    """{what: number} of one run."""
    with tempfile.TemporaryDirectory() as directory:
        clone = os.path.join(directory, "clone.git")
        curate_git.make(clone, commits, files)
        settings = config(f"git:{clone}", os.path.join(directory, "out"), curate__licences=("any",), curate__workers=workers,
                          curate__buckets=32, curate__range_commits=max(1, commits // 10), prompt__max_tokens=12_288,
                          answer__max_tokens=4096)
        memory, wall_s, cpu_s = Memory(), time.perf_counter(), sum(os.times()[:4])
        tasks.curate(settings, tasks.local_engine(settings))
        wall_s, cpu_s = time.perf_counter() - wall_s, sum(os.times()[:4]) - cpu_s
        manifest = json.loads(pathlib.Path(directory, "out", "manifest.json").read_text())
        size = sum(shard["bytes"] for shard in manifest["shards"])
    examples = sum(manifest["examples"].values())
    return {"commits": commits, "files": files, "workers": workers, "examples": examples, "wall_s": round(wall_s, 1),
            "cpu_s": round(cpu_s, 1), "commits_per_s": round(commits / wall_s, 1),
            "commits_per_cpu_s": round(workers * commits / cpu_s, 1), "examples_per_s": round(examples / wall_s, 1),
            "examples_per_cpu_s": round(workers * examples / cpu_s, 1), "bytes_an_example": size // max(1, examples),
            "recall": manifest["recall_from_issue_alone"], "dropped": manifest["funnel"]["dropped"],
            "peak_rss_gib": round(memory.stop() / 2**30, 3)}  # fmt: skip


def main():
    """Measures each scale, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commits", type=int, default=2_500)
    parser.add_argument("--files", type=int, default=600)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scales", type=int, nargs="+", default=[1, 4])
    flags = parser.parse_args()
    for scale in flags.scales:
        print(json.dumps({"bench": "curate", "scale": scale, **measure(scale * flags.commits, flags.files, flags.workers)}))


if __name__ == "__main__":
    main()
