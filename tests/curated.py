"""Small clones, settings and an engine for the tests of curation."""

import importlib.util
import pathlib
import random

from clones import History, git

from swerl_jax import config as config_lib

ROOT = pathlib.Path(__file__).resolve().parents[1]
MIT = ("Permission is hereby granted, free of charge, to any person\nThe above copyright notice and this permission notice "
       "shall be included in all copies\n")
WORDS = ("river stone cloud ember field glass honey ivory lemon maple night ocean pearl quartz raven silver tiger umber velvet "
         "willow amber birch cedar delta eagle frost grove heron indigo jade").split()


def module(chance, name):
    """A module of some functions with names drawn by chance."""
    lines = [f'"""What {name} does."""', ""]
    for _ in range(4):
        verb, noun = chance.sample(WORDS, 2)
        lines += [f"def {verb}_{noun}({noun}, {verb}):", f'    """{" ".join(chance.choices(WORDS, k=6))}."""',
                  f"    return {noun}.{chance.choice(WORDS)}({verb}, {chance.randint(2, 999)})", ""]
    return lines


def fix(chance, files, number):
    """(path → text, message) of a fix: one function of one module returns something else."""
    path = chance.choice(sorted(files))
    lines = files[path]
    at = chance.choice([i for i, line in enumerate(lines) if line.startswith("    return ")])
    name = lines[at - 2].removeprefix("def ").partition("(")[0]
    words = " ".join(chance.choices(WORDS, k=12))
    lines[at] = f"    return {chance.choice(WORDS)}.{chance.choice(WORDS)}({', '.join(chance.sample(WORDS, 3))}, {number})"
    return ({path: "\n".join(lines)},
            f"Fix crash in {name} (#{number})\n\nCalling {name} raised ValueError, it is wrong: {words}.")


def make_clone(path, name="o/n", fixes=12, seed=0, modules=6):
    """A bare clone called `name` with a licence and so many fixes; returns what `History.write` does."""
    chance = random.Random(seed)
    files = {f"src/{word}.py": module(chance, word) for word in chance.sample(WORDS, modules)}
    history = History().commit("root", {**{path: "\n".join(lines) for path, lines in files.items()}, "LICENSE": MIT,
                                        "seed.txt": str(seed)})
    history.commit("docs", {"README.md": "Read me.\n"}, message="Say more in the README")
    for number in range(1, fixes + 1):
        changed, message = fix(chance, files, number)
        history.commit(number, changed, message=message)
    ids = history.write(path)
    if name:
        git(path, "config", "remote.origin.url", f"https://github.com/{name}.git")
    return ids


def config(source, out, **changes):
    """The settings of configs/curate.py with some changed; `__` stands for a dot."""
    spec = importlib.util.spec_from_file_location("config_curate", ROOT / "configs" / "curate.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    small = {"curate__buckets": 4, "curate__range_commits": 5, "prompt__max_tokens": 4096, "answer__max_tokens": 1024}
    plain = {name.replace("__", "."): value for name, value in (small | changes).items()}
    return config_lib.update(made.get_config(), {"source": source, "out": str(out), **plain})


class Inline:
    """An engine without processes; `order` turns the items round."""

    def __init__(self, order=1):
        self.order = order
        self.done = []

    def run(self, function, items):
        for index in list(range(len(items)))[::self.order]:
            function(items[index])
            self.done.append(items[index])
            yield index, ""

    def close(self):
        pass


def contents(out):
    """Name → bytes of what a run leaves beside its work."""
    return {path.name: path.read_bytes() for path in sorted(pathlib.Path(out).iterdir()) if path.is_file()}


def shards(out):
    return {name: data for name, data in contents(out).items() if name.endswith(".array_record")}
