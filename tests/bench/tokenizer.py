"""How fast text becomes ids, against the `tokenizers` library, one thread each.

    python tests/bench/tokenizer.py [FILE …]         the standard library's code by default; needs `pip install tokenizers`

Both run the same byte-pair vocabulary, which the library trains here on a part of the text.
"""

import os

os.environ["RAYON_NUM_THREADS"] = "1"  # before the library starts its threads

import pathlib
import sys
import sysconfig
import tempfile
import time

import tokenizers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from swerl_jax.env.byte_pairs import JsonTokenizer  # noqa: E402: the checkout comes first

SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")


def main(paths):
    paths = paths or sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts = [pathlib.Path(path).read_text(encoding="utf-8", errors="replace") for path in paths]
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    parts = tokenizers.pre_tokenizers
    theirs.pre_tokenizer = parts.Sequence([
        parts.Split(tokenizers.Regex(SPLIT), "isolated"), parts.ByteLevel(add_prefix_space=False, use_regex=False)])
    theirs.train_from_iterator(texts[:50], tokenizers.trainers.BpeTrainer(
        vocab_size=8000, initial_alphabet=parts.ByteLevel.alphabet(), show_progress=False))
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, "tokenizer.json")
        theirs.save(str(path))
        ours = JsonTokenizer(path)
    encoders = {"ours": ours.encode, "tokenizers": lambda text: theirs.encode(text, add_special_tokens=False).ids}
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    found = {}
    for repeat in range(3):
        for name, encode in encoders.items():
            start = time.perf_counter()
            ids = [encode(text) for text in texts]
            print(f"{name:10} {megabytes / (time.perf_counter() - start):6.2f} MB/s")
            found[name] = ids
    print("equal ids:", found["ours"] == found["tokenizers"])


if __name__ == "__main__":
    main(sys.argv[1:])
