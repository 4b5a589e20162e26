"""What a run is built from: which examples judge it, what its tokenizer learns from."""

import dataclasses
import json

import jax
import pytest
import small

from swerl_jax import assemble, config as config_lib, row_sizes
from swerl_jax.data.shards import MalformedRow, example_from_json
from swerl_jax.policy import mesh as mesh_lib


@pytest.fixture(name="config")
def fixture_config(tmp_path):
    small.write_examples(tmp_path)
    return small.get_config(str(tmp_path))


def held_out(config, directory, *numbers, more=""):
    """Ids of the examples that an evaluation asks, of a file of these."""
    path = directory / "judge.jsonl"
    path.write_text("".join(json.dumps(small.example(n)) + "\n" for n in numbers) + more)
    text = assemble.text(config, directory, ())
    arch, mesh = assemble.arch(config, text.tokenizer), assemble.mesh(config, jax.devices()[:1])
    return [example.id for example in assemble.evaluator(config, arch, mesh, text, None, str(path)).examples]


def test_a_run_is_judged_by_as_many_as_asked_for_or_all(config, tmp_path, capsys):
    assert held_out(config, tmp_path, 1, 2, 3, 4) == ["small-1", "small-2", "small-3"] and capsys.readouterr().out == ""
    long = json.dumps({**small.example(8), "issue": "long " * 50}) + "\n"
    assert held_out(config, tmp_path, 5, more=long) == ["small-5"]
    said = capsys.readouterr().out
    assert "1 examples exceed prompt.max_tokens=64" in said and "eval.examples is 3 and" in said and "has 1: they are all" in said
    with pytest.raises(ValueError, match="none of the 1 examples of .*judge.jsonl is within prompt.max_tokens=64; raise it"):
        held_out(config, tmp_path, more=long)


def test_one_question_that_is_too_long_is_refused_with_its_length(config, tmp_path):
    """70 + 1 + 8 + 1 + 27 bytes and two special ids; see small.example."""
    text = assemble.text(config, tmp_path, ())
    long = dataclasses.replace(example_from_json(small.example(1)), issue="x" * 70)
    with pytest.raises(ValueError, match=r"a prompt of 109 tokens and prompt.max_tokens is 64; .*prompt.max_tokens=109"):
        text.question_ids(long)
    assert len(text.question_ids(dataclasses.replace(long, issue="x"))) == 109 - 69


def test_held_out_examples_have_ids_of_their_own(config, tmp_path):
    with pytest.raises(ValueError, match="judge.jsonl has two examples with the id 'small-1'"):
        held_out(config, tmp_path, 1, 2, 1)


def test_malformed_held_out_rows_obey_the_setting(config, tmp_path, caplog):
    with pytest.raises(MalformedRow, match="judge.jsonl, row 2"):
        held_out(config, tmp_path, 1, more="{}\n")
    config.data.on_malformed = "skip"
    assert held_out(config, tmp_path, 1, more="{}\n") == ["small-1"]
    assert "skipped" in caplog.text and "row 2: missing" in caplog.text


def test_a_tokenizer_passes_over_what_cannot_be_read_or_taught(config, tmp_path):
    config.data.on_malformed = "skip"
    tag = {**small.example(1), "oracle": {"m.py": "x = '</solution>'\n"}}  # may not stand in an answer
    rows = [json.dumps(small.example(0)), "{}", json.dumps(tag)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows) + "\n")
    texts = list(assemble._texts(config, (str(tmp_path / "train.jsonl"),)))
    assert [("f0 is wrong" in text, "f1 is wrong" in text, "<think>" in text) for text in texts] == [
        (True, False, False), (False, False, True), (False, True, False)]


def test_rows_are_rounded_up_to_what_can_be_cut():
    """Blocks of 128 in two parts: multiples of 512. Answers of 384 (rounded), three, one and a half, and one in a row."""
    config = config_lib.update(config_lib.default(), {
        "mesh.context": 2, "prompt.max_tokens": 1000, "answer.max_tokens": 300, "rl.samples": 3, "learner.rows": 1, "sft.rows": 2})
    mesh = assemble.mesh(config, jax.devices()[:8])
    assert dict(mesh.shape) == {"slice": 1, "fsdp": 4, "tensor": 1, "context": 2}
    rl, sft = (row_sizes.packing(config, mesh, phase) for phase in ("rl", "sft"))
    assert (rl.prefix_buckets, rl.branch_buckets, rl.block, rl.rows, rl.parts) == ((512, 1024), (512, 1024, 1536), 128, 4, 2)
    assert (sft.prefix_buckets, sft.branch_buckets, sft.block, sft.rows, sft.parts) == ((512, 1024), (512,), 128, 8, 2)


def test_taught_answers_fill_what_a_kernel_would_pad():
    """Sixths of the longest: 50 tokens as they are, 167 as two of the kernel's 128."""
    for longest, step in ((300, 50), (1000, 256)):
        config = config_lib.update(config_lib.default(), {"prompt.max_tokens": 1000, "answer.max_tokens": longest})
        found = row_sizes.packing(config, assemble.mesh(config, jax.devices()[:1]), "sft")
        assert (found.block, found.branch_buckets) == (step, tuple(step * n for n in range(1, 7)))


def test_slices_of_tpus_are_an_axis_of_the_mesh(monkeypatch):
    monkeypatch.setattr(mesh_lib, "slices", lambda devices: 2)
    made = [assemble.mesh(config_lib.update(config_lib.default(), {"mesh.slice": n}), jax.devices()[:8]) for n in (1, 2, 4)]
    assert [(mesh.shape["slice"], mesh.shape["fsdp"]) for mesh in made] == [(2, 4), (2, 4), (4, 2)]
    with pytest.raises(ValueError, match="mesh.slice is 3 and the devices are 2 slices; needed is a multiple of them"):
        assemble.mesh(config_lib.update(config_lib.default(), {"mesh.slice": 3}), jax.devices()[:6])
