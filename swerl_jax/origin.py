"""What a run keeps of the model in Hugging Face's layout that it began with, and what its export says as that one did.

The parameters are in the run's checkpoints; `config.json`, `generation_config.json` and the tokenizer's files, a few MB, are
copied to RUN/model at the start, so that the run can be gone on with, evaluated and exported when the model has moved.
"""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

from swerl_jax import run_directory
from swerl_jax.env.tokenizer import load_tokenizer
from swerl_jax.env.vocabulary import BEGIN_OF_TEXT, PAD, Tokenizer
from swerl_jax.models import shipped
from swerl_jax.policy import hf, stored

NAME = run_directory.MODEL_NAME
_FILES = {"tiktoken": shipped.TOKENIZER_NAME, "sentencepiece": shipped.TOKENIZER_NAME, "json": shipped.JSON_TOKENIZER_NAME}
_MADE = ("byte", "train", "embedded")  # kinds of tokenizers that need no copy


def keep(directory: pathlib.Path, init: str, tokenizer: str) -> None:
    """Copies what the settings `init` and `tokenizer` name into the run's directory, all or nothing.

    Raises:
      ValueError: they name what cannot be read, or there is something where it would go.
    """
    model, kind = _source(init), tokenizer.partition(":")[0]
    texts = {name: _read(model, name) for name in (hf.CONFIG_NAME, hf.GENERATION_NAME)}
    is_file = kind in _FILES or kind not in _MADE
    if not is_file and not any(texts.values()):
        return
    if (directory / NAME).exists():
        raise ValueError(f"{directory / NAME} is there already, where this run would keep the description of its model; choose "
                         "another --workdir, or move it away")
    partial = directory / f"{NAME}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a start that was cut off
    partial.mkdir()
    for name, text in texts.items():
        if text:
            (partial / name).write_text(text, encoding="utf-8")
    if is_file:
        load_tokenizer(tokenizer).save(partial)
    partial.rename(directory / NAME)


def kept(directory: pathlib.Path, tokenizer: str) -> dict[str, str]:
    """The settings `init` and `tokenizer` that read what `keep` copied; none for what it did not."""
    copy, kind = directory / NAME, tokenizer.partition(":")[0]
    found = {"init": f"hf:{copy}"} if (copy / hf.CONFIG_NAME).exists() else {}
    if kind in _FILES and (copy / _FILES[kind]).exists():
        found["tokenizer"] = f"{kind}:{copy / _FILES[kind]}"
    elif kind not in _MADE and shipped.has_tokenizer(str(copy)):
        found["tokenizer"] = f"hf:{copy}"
    return found


def token_ids(init: str, tokenizer: Tokenizer, stop_ids: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(keys for config.json, generation_config.json) of an export: those of the model that `init` names, else the tokenizer's.

    What ends an answer here ends it there, too.
    """
    model = _source(init)
    config, generation = (json.loads(_read(model, name) or "{}") for name in (hf.CONFIG_NAME, hf.GENERATION_NAME))
    own = {"bos_token_id": tokenizer.special.get(BEGIN_OF_TEXT), "eos_token_id": list(stop_ids),
           "pad_token_id": tokenizer.special.get(PAD)}
    ids = {name: config.get(name, index) for name, index in own.items()}
    generation = generation or {"do_sample": True, "temperature": 1.0, **ids}
    ends = generation.get("eos_token_id") or []
    ends = [*(ends if isinstance(ends, list) else [ends]), *stop_ids]
    return ids, generation | {"eos_token_id": list(dict.fromkeys(ends))}


def _source(init: str) -> str | None:
    """The directory of the model that a run with this `init` began with, before all others; None: there is none to copy."""
    return None if init.startswith("embedded:") else run_directory.model_directory(init)


def _read(model: str | None, name: str) -> str | None:
    try:
        return None if model is None else stored.read_text(stored.join(model, name))
    except FileNotFoundError:
        return None
