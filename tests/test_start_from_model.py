"""The README's commands for a model of one's own, as written there, on a directory that `transformers` wrote."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
import small

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed; bash tests/run.sh --slow does it")
torch = pytest.importorskip("torch", reason="torch is not installed; bash tests/run.sh --slow installs it")
transformers = pytest.importorskip("transformers", reason="transformers is not installed; bash tests/run.sh --slow does it")
pytestmark = pytest.mark.slow
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")
# A model of no skill needs few examples, and rewards that differ, to show that it learns.
LESS = {"eval.py": ["--config.eval.examples=3"], "export.py": [],
        "8b.py": ["--config.eval.examples=3", "--config.rl.steps=1", "--config.rl.prompts=2", "--config.reward.name=small:reward"]}


def write_model(directory):
    """A small Llama of theirs whose answers are short: the id that ends a turn has a probability of about a third."""
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    parts = tokenizers.pre_tokenizers
    theirs.pre_tokenizer = parts.Sequence([
        parts.Split(tokenizers.Regex(SPLIT), "isolated"), parts.ByteLevel(add_prefix_space=False, use_regex=False)])
    theirs.decoder = tokenizers.decoders.ByteLevel()
    texts = (path.read_text() for path in sorted((small.ROOT / "swerl_jax" / "env").glob("*.py")))
    theirs.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=parts.ByteLevel.alphabet(), show_progress=False))
    theirs.add_special_tokens(SPECIAL)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=theirs, bos_token=SPECIAL[0], eos_token=SPECIAL[4])
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=8192, bos_token_id=600, eos_token_id=604))
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.lm_head.weight[604, 0] = 1.0
    model.save_pretrained(directory)
    return model


def commands():
    """Those of the section, as lists of arguments behind `python`."""
    text = (small.ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"\*\*Start from your model\.\*\*.*?```sh\n(.*?)```", text, re.DOTALL)[1]
    return [shlex.split(line)[1:] for line in block.replace("\\\n", " ").splitlines()]


def test_the_commands_of_the_readme(tmp_path):
    before = write_model(tmp_path / "model")
    small.write_examples(tmp_path)
    (tmp_path / "configs").symlink_to(small.ROOT / "configs")
    environment = {**small.environment(), "PYTHONPATH": os.pathsep.join([str(small.ROOT), str(small.ROOT / "tests")])}

    def run(*arguments):
        done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True,
                              timeout=600)
        assert done.returncode == 0, (arguments, done.stderr)

    for arguments in commands():
        config = next(name for name in LESS if f"--config=configs/{name}" in " ".join(arguments))
        run(*arguments, *LESS[config])
        if config == "8b.py":  # the run has all that it needs
            (tmp_path / "model").rename(tmp_path / "moved")
            run(*arguments, *LESS[config], "--config.rl.steps=2", "--resume")
    row = json.loads((tmp_path / "runs" / "from-model" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["step"] == 2 and row["update/count"] == 1 and row["grad_norm"] > 0 and row["logp_diff/mean"] < 0.006
    says = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert (says["bos_token_id"], says["eos_token_id"], says["pad_token_id"]) == (600, 604, None)
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "exported").eos_token_id == [604, 601]
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "exported").encode("<|eot_id|>") == [604]
    for name, x in before.state_dict().items():
        after = exported.state_dict()[name]  # of a base in bfloat16
        assert torch.allclose(after, x, rtol=2**-8, atol=1e-3 if "proj" in name else 0), name
