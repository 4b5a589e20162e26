"""What an export leaves: a whole directory or none, in either format."""

import json

import numpy as np
import orbax.checkpoint as ocp
import pytest
import reference_llama as reference
from safetensors import safe_open

from swerl_jax.learn.export import export

ARCH = reference.SMALL


def _export(directory, kind="hf", dtype="float32", model=None, add_files=lambda place: None):
    model = model or reference.random_model(ARCH)
    export(directory, ARCH, model, kind, dtype, {"bos_token_id": 3}, {"eos_token_id": [7, 30]}, 20_000, add_files)


def test_orbax_holds_the_parameters_alone_in_the_asked_dtype(tmp_path):
    _export(tmp_path / "out", "orbax", "bfloat16")
    with ocp.PyTreeCheckpointer() as checkpointer:
        found = checkpointer.restore(tmp_path / "out" / "params")
    wanted = reference.parameters(reference.random_model(ARCH), np.float32)
    assert {name.rpartition("/")[2] for name in found} == set(wanted)
    for name, x in found.items():
        assert x.dtype == "bfloat16"
        np.testing.assert_array_equal(x, wanted[name.rpartition("/")[2]].astype(x.dtype))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == ARCH.L


def test_hugging_face_files_are_bounded_and_say_what_ends_an_answer(tmp_path):
    _export(tmp_path / "out", add_files=lambda place: (place / "tokenizer.json").write_text("{}"))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    shards = {name for name in names if name.endswith(".safetensors")}
    assert names - shards == {"config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json"}
    assert len(shards) > 2
    for name in shards:
        with safe_open(tmp_path / "out" / name, "np") as file:
            assert sum(file.get_tensor(key).nbytes for key in file.keys()) <= 20_000
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"eos_token_id": [7, 30]}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["bos_token_id"] == 3


def test_a_cut_off_export_leaves_no_directory_and_is_begun_again(tmp_path):
    def fail(place):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        _export(tmp_path / "out", add_files=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    (tmp_path / "out.partial" / "stale").touch()
    _export(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and not (tmp_path / "out" / "stale").exists()


@pytest.mark.parametrize("kind", ["hf", "orbax"])
def test_what_cannot_be_held_or_written_is_an_error(tmp_path, kind):
    model = reference.random_model(ARCH)
    model.final_norm[...] = model.final_norm[...] + 1e6
    with pytest.raises(ValueError, match="norm.* cannot be held in float16"):
        _export(tmp_path / "out", kind, "float16", model)
    with pytest.raises(ValueError, match="format is 'gguf'; needed is one of hf, orbax"):
        _export(tmp_path / "out", "gguf")
    assert not (tmp_path / "out").exists()
