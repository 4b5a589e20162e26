"""Models that ship with the project: one directory beside this file each, as `policy.hf` writes them, with the tokenizer beside."""

import pathlib

_HERE = pathlib.Path(__file__).resolve().parent
TOKENIZER_NAME = "tokenizer.model"


def directory(name: str) -> pathlib.Path:
    """Where the model `name` is.

    Raises:
      ValueError: none is called so; names those there are.
    """
    known = sorted(path.parent.name for path in _HERE.glob("*/config.json"))
    if name not in known:
        raise ValueError(f"no model {name!r} ships with the project; there is {', '.join(known) or 'none'}")
    return _HERE / name
