"""Directories of a model with its tokenizer: those beside this file ship with the project, others `export` wrote.

A directory holds what `policy.hf` writes, the tokenizer, and the settings that the model was trained with.
"""

import pathlib

_HERE = pathlib.Path(__file__).resolve().parent
TOKENIZER_NAME = "tokenizer.model"
SETTINGS_NAME = "settings.json"


def find(spec: str) -> pathlib.Path | None:
    """The directory that "embedded:NAME" (shipped) or "hf:DIR" names; None for a text of another kind.

    Raises:
      ValueError: no such model ships, naming those that do; or there is no such directory.
    """
    kind, _, name = spec.partition(":")
    if kind == "embedded":
        known = sorted(path.parent.name for path in _HERE.glob("*/config.json"))
        if name not in known:
            raise ValueError(f"no model {name!r} ships with the project; there is {', '.join(known) or 'none'}")
        return _HERE / name
    if kind == "hf":
        if not pathlib.Path(name).is_dir():
            raise ValueError(f"{spec}: there is no directory {name}")
        return pathlib.Path(name)
    return None
