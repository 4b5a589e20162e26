"""A run keeps a description of the model that it began with, and its export says as that model did."""

import json
import shutil

import pytest
import reference_llama as reference

from swerl_jax import assemble, config as config_lib, origin
from swerl_jax.env.tokenizer import ByteTokenizer, load_tokenizer
from swerl_jax.models import shipped
from swerl_jax.policy import hf

GENERATION = {"temperature": 0.6, "top_p": 0.9, "eos_token_id": 5}
IDS = {"bos_token_id": 9, "eos_token_id": 5, "pad_token_id": None}


@pytest.fixture
def model(tmp_path):
    """A directory with everything but parameters."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(hf.config(reference.SMALL, "float32") | IDS))
    (directory / "generation_config.json").write_text(json.dumps(GENERATION))
    shutil.copyfile(shipped.find("embedded:tiny") + "/tokenizer.model", directory / "tokenizer.model")
    return directory


@pytest.mark.parametrize("kind", ["hf:{}", "sentencepiece:{}/tokenizer.model"])
def test_a_run_outlives_its_models_directory(tmp_path, model, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    run, init, tokenizer = tmp_path / "run", "hf:model", kind.format("model")
    run.mkdir()
    origin.keep(run, init, tokenizer)
    assert sorted(path.name for path in (run / "model").iterdir()) == ["config.json", "generation_config.json", "tokenizer.model"]
    with pytest.raises(ValueError, match="is there already"):  # it may be anyone's
        origin.keep(run, init, tokenizer)
    shutil.rmtree(model)
    found = origin.kept(run, tokenizer)
    assert found == {"init": f"hf:{run / 'model'}", "tokenizer": kind.format(run / "model")}
    config = config_lib.update(config_lib.default(), found | {"model.arch": "init"})
    text = assemble.text(config_lib.update(config, {"chat": "compact"}), run, ())
    assert text.tokenizer.vocab_size == load_tokenizer("embedded:tiny").vocab_size
    with pytest.raises(ValueError, match="has 1024 ids and init only 61"):
        assemble.arch(config, text.tokenizer)
    (run / "config.json").touch()
    (tmp_path / "next").mkdir()  # a run that begins with this one
    origin.keep(tmp_path / "next", str(run), "byte")
    found = origin.kept(tmp_path / "next", "byte")
    assert found.keys() == {"init"} and origin.token_ids(found["init"], ByteTokenizer(), (1,))[0] == IDS


def test_nothing_is_kept_of_what_ships_or_is_made(tmp_path, model, monkeypatch):
    monkeypatch.chdir(model.parent)  # where a directory is called model
    tmp_path = tmp_path / "run"
    tmp_path.mkdir()
    for init, tokenizer in (("embedded:tiny", "embedded:tiny"), ("random", "train:500"), (str(tmp_path), "byte")):
        origin.keep(tmp_path, init, tokenizer)
        assert not list(tmp_path.iterdir()) and origin.kept(tmp_path, tokenizer) == {}


def test_token_ids_are_the_models_else_the_tokenizers(model):
    assert origin.token_ids(f"hf:{model}", ByteTokenizer(), (7, 5)) == (IDS, GENERATION | {"eos_token_id": [5, 7]})
    own = {"bos_token_id": 256, "eos_token_id": [261, 257], "pad_token_id": 258}
    (model / "generation_config.json").unlink()
    assert origin.token_ids(f"hf:{model}", ByteTokenizer(), (7,))[1]["eos_token_id"] == [5, 7]
    assert origin.token_ids("random", ByteTokenizer(), (261, 257)) == (own, {"do_sample": True, "temperature": 1.0, **own})
