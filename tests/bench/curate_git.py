"""How fast a clone is read: a history made here, walked commit by commit in one process.

    python tests/bench/curate_git.py [COMMITS] [FILES]        4000 commits of a tree of 600 files by default

Prints one JSON line. `…_per_s` is by the clock, `…_per_cpu_s` by the processor time of this process and its gits, which
is what to compare on a machine that is busy. A commit is considered once it is a candidate with its texts, or rejected.
"""

import json
import os
import pathlib
import random
import resource
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from swerl_jax.curate import candidates, context, git_source, ranking  # noqa: E402: the checkout comes first
from swerl_jax.curate.change import Candidate, Change  # noqa: E402
from swerl_jax.curate.repository import Repository  # noqa: E402

VERBS = "read write parse merge load store find check build resolve open close send fetch update remove".split()
NOUNS = "index tree branch token field schema buffer record query widget header cache socket report module value".split()
WORDS = [f"{a}_{b}" for a in VERBS for b in NOUNS]


def module(chance, number):
    """The lines of one module: imports, and functions that call each other."""
    lines = [f'"""Module {number}."""', "", f"from package_{number % 25}.{chance.choice(WORDS)} import *", ""]
    for _ in range(chance.randint(5, 40)):
        name = chance.choice(WORDS)
        lines += [f"def {name}_{chance.randint(0, 99)}({chance.choice(NOUNS)}, {chance.choice(VERBS)}=None):",
                  f'    """{chance.choice(VERBS)} the {chance.choice(NOUNS)} of a {chance.choice(NOUNS)}."""',
                  f"    {chance.choice(NOUNS)} = {chance.choice(WORDS)}({chance.choice(NOUNS)}, {chance.randint(0, 9999)})",
                  f"    return {chance.choice(WORDS)}({chance.choice(NOUNS)})", ""]
    return lines


class History:
    """Writes a stream for git fast-import."""

    def __init__(self, out, files):
        self.out = out
        self.chance = random.Random(0)
        self.texts = {f"package_{i % 25}/part_{i % 5}/{WORDS[i % len(WORDS)]}_{i}.py": module(self.chance, i)
                      for i in range(files)}
        self.paths = list(self.texts)
        self.mark = 0
        self.time_s = 1_500_000_000

    def commit(self, ref, message, parents, paths):
        self.mark += 1
        self.time_s += 60
        data = message.encode()
        self.out.write(f"commit {ref}\nmark :{self.mark}\ncommitter A <a@example.org> {self.time_s} +0000\n"
                       f"data {len(data)}\n".encode() + data + b"\n")
        for word, parent in zip(["from", *["merge"] * len(parents)], parents):
            self.out.write(f"{word} :{parent}\n".encode())
        for path in paths:
            text = "\n".join(self.texts[path]).encode()
            self.out.write(f"M 100644 inline {path}\ndata {len(text)}\n".encode() + text + b"\n")
        self.out.write(b"\n")
        return self.mark

    def edit(self):
        paths = self.chance.sample(self.paths, self.chance.choice([1, 1, 1, 2, 3]))
        for path in paths:
            lines = self.texts[path]
            places = [at for at in range(4, len(lines)) if not lines[at].startswith("def ")]  # messages name functions
            lines[self.chance.choice(places)] = f"    {self.chance.choice(NOUNS)} = {self.chance.randint(0, 10**6)}"
        return paths

    def message(self, paths, number):
        name = next(line for line in self.texts[paths[0]] if line.startswith("def "))[4:].partition("(")[0]
        return (f"Fix crash of {name} when the {self.chance.choice(NOUNS)} is empty{number}\n\n"
                f"Calling `{name}()` raised ValueError: the {self.chance.choice(NOUNS)} could not {self.chance.choice(VERBS)}.")

    def write(self, commits):
        main = self.commit("refs/heads/main", "Begin", [], self.paths)
        for number in range(1, commits):
            paths = self.edit()
            message = self.message(paths, f" (#{number})" if number % 4 else "")
            if number % 4:
                main = self.commit("refs/heads/main", message, [main], paths)
                continue
            tip = self.commit("refs/heads/topic", message, [main], paths)
            main = self.commit("refs/heads/main", f"Merge pull request #{number} from a/topic\n\n{message}", [main, tip], paths)


def make(directory, commits, files):
    subprocess.run(["git", "init", "-q", "--bare", directory], check=True)
    git = subprocess.Popen(["git", f"--git-dir={directory}", "fast-import", "--quiet"], stdin=subprocess.PIPE)
    History(git.stdin, files).write(commits)
    git.stdin.close()
    if git.wait():
        raise RuntimeError("git fast-import failed")


class Clock:
    """Wall and processor seconds since it was made; those of a child count once it has ended."""

    def __init__(self):
        self.start = self.now()

    @staticmethod
    def now():
        return time.perf_counter(), sum(os.times()[:4])

    def rates(self, name, count):
        wall_s, cpu_s = (now - start for now, start in zip(self.now(), self.start))
        return {f"{name}_per_s": round(count / wall_s, 1), f"{name}_per_cpu_s": round(count / max(cpu_s, 1e-3), 1)}


def consider(directory):
    clock = Clock()
    found, considered = [], 0
    with Repository(directory) as repository:
        for change in git_source.changes(repository):
            considered += 1
            made = candidates.candidate(repository, change) if isinstance(change, Change) else change
            found += [change] if isinstance(made, Candidate) else []
    return found, {"considered": considered, **clock.rates("considered", considered),
                   "candidates": len(found), **clock.rates("candidates", len(found))}


def rank(directory, changes):
    """Both rankings of every change, and the choice of what is shown: all that an example needs of the tree."""
    ranker = ranking.StaticRanker()
    recalled = dict.fromkeys(context.RECALL_AT, 0.0)
    clock = Clock()
    with Repository(directory) as repository:
        for change in changes:
            made = candidates.candidate(repository, change)
            before = {file.path: file.before for file in made.files}
            tree = context.snapshot(repository, made.commit, lambda path: path.endswith(".py"))
            issue = f"{change.title}\n{change.body}"
            alone = ranker.rank(issue, tree)
            for k in recalled:
                recalled[k] += context.recall(alone, before, k)
            context.choose(before, ranker.rank(issue, tree, list(before)), tree, context.Budget(14_000),
                           lambda path, text: len(text) // 3)
    return {"ranked": len(changes), **clock.rates("ranked", len(changes)),
            "recall": {k: round(value / len(changes), 3) for k, value in recalled.items()}}


def main(commits=4000, files=600):
    with tempfile.TemporaryDirectory() as temporary:
        directory = os.path.join(temporary, "clone.git")
        make(directory, int(commits), int(files))
        changes, considered = consider(directory)
        ranked = rank(directory, changes[-1000:])
    rss_mb = {"rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
              "git_rss_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024}
    print(json.dumps({**considered, **ranked, **{key: round(value, 1) for key, value in rss_mb.items()}}))


if __name__ == "__main__":
    main(*sys.argv[1:])
