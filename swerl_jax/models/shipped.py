"""Directories of a model with its tokenizer: those beside this file ship with the project, others `export` wrote.

A directory holds what `policy.hf` writes, the tokenizer, and the settings that the model was trained with; in Orbax's format
its parameters are in PARAMS_NAME.
"""

import pathlib

_HERE = pathlib.Path(__file__).resolve().parent
TOKENIZER_NAME, JSON_TOKENIZER_NAME = "tokenizer.model", "tokenizer.json"
SETTINGS_NAME = "settings.json"
PARAMS_NAME = "params"  # Orbax's directory


def find(spec: str) -> str | None:
    """The directory that "embedded:NAME" (shipped), "hf:DIR", or the path of an Orbax export names; None for any other text.

    DIR may be remote ("hf:gs://bucket/model"), and is then not looked at.

    Raises:
      ValueError: no such model ships, naming those that do; there is no such directory; or "hf:" is missing before one.
    """
    kind, _, name = spec.partition(":")
    if kind == "embedded":
        known = sorted(path.parent.name for path in _HERE.glob("*/config.json"))
        if name not in known:
            raise ValueError(f"no model {name!r} ships with the project; there is {', '.join(known) or 'none'}")
        return str(_HERE / name)
    if kind == "hf":
        if "://" not in name and not pathlib.Path(name).is_dir():
            raise ValueError(f"{spec}: there is no directory {name}")
        return name
    if any(pathlib.Path(spec).glob("model*.safetensors")):
        raise ValueError(f"{spec} is a model's directory; give hf:{spec}")
    return spec if is_orbax(spec) else None


def is_orbax(directory: str) -> bool:
    """Whether a directory holds a model in Orbax's format."""
    return pathlib.Path(directory, PARAMS_NAME).is_dir()


def has_tokenizer(directory: str) -> bool:
    """Whether a directory of a model, on this machine, holds a tokenizer's file."""
    return any(pathlib.Path(directory, name).is_file() for name in (TOKENIZER_NAME, JSON_TOKENIZER_NAME))
