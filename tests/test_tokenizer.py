"""Every tokenizer: lossless, deaf to special names in text, and readable for any ids a policy may write."""

import base64
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swerl_jax.env import tokenizer as tokenizers

CODE = """\
class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)
        return item

    def pop(self):
        if not self.items:
            raise IndexError("pop from an empty stack")
        return self.items.pop()
"""
# The whole text an engine may meet, lone surrogates and the stand-in of a space (U+2581) among it.
ANY_TEXT = st.text(st.one_of(st.characters(), st.sampled_from(" \n\t\r\0\u2581\u2028<|>")), max_size=60)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizers")


def write_ranks(path: pathlib.Path, merges=(b"ab", b"abc", b" a", b"    ")) -> pathlib.Path:
    """A vocabulary in the form of Llama 3's: the bytes in order, then `merges` from 256 on."""
    tokens = [bytes([i]) for i in range(256)] + list(merges)
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)))
    return path


@pytest.fixture(scope="module")
def all_three(directory):
    tokenizers.train_sentencepiece([CODE], 420, directory / "tiny.model")
    write_ranks(directory / "llama.ranks")
    specs = ["byte", f"sentencepiece:{directory / 'tiny.model'}", f"tiktoken:{directory / 'llama.ranks'}"]
    return [tokenizers.load_tokenizer(spec) for spec in specs]


@given(text=ANY_TEXT)
def test_text_comes_back_unchanged(all_three, text):
    for tokenizer in all_three:
        back = tokenizer.decode(tokenizer.encode(text))
        if any("\ud800" <= character <= "\udfff" for character in text):
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        assert back == text


@given(text=ANY_TEXT, data=st.data())
def test_plain_text_never_yields_a_special_id(all_three, text, data):
    for tokenizer in all_three:
        name = data.draw(st.sampled_from(sorted(tokenizer.special)))
        ids = tokenizer.encode(text + name + "<unk><s></s>")
        assert not set(ids) & set(tokenizer.special.values())
        assert all(0 <= i < tokenizer.vocab_size for i in ids)


@given(ids=st.lists(st.integers(0, 600), max_size=40))
def test_any_ids_decode(all_three, ids):
    for tokenizer in all_three:
        tokenizer.decode(ids).encode()  # no lone surrogate comes out
        tokenizer.decode(ids, show_special=True)


def test_special_ids_are_silent_unless_asked_for(all_three):
    for tokenizer in all_three:
        ids = [*tokenizer.encode("a"), tokenizer.special["<|eot_id|>"], *tokenizer.encode("b")]
        assert tokenizer.decode(ids) == "ab"
        assert tokenizer.decode(ids, show_special=True) == "a<|eot_id|>b"


def test_wrong_bytes_and_ids_past_the_vocabulary_are_replaced():
    tokenizer = tokenizers.ByteTokenizer()
    assert tokenizer.decode([0xC3, 0x61]) == "\ufffda"
    assert tokenizer.decode([0x61, tokenizer.vocab_size, -1]) == "a\ufffd\ufffd"


def test_byte_ids_by_hand():
    tokenizer = tokenizers.load_tokenizer("byte")
    assert tokenizer.encode("Aé\ud800") == [65, 0xC3, 0xA9, 0xEF, 0xBF, 0xBD]
    assert tokenizer.vocab_size == 262
    assert tokenizer.special["<|begin_of_text|>"] == 256


def test_tiktoken_ids_by_hand(directory):
    tokenizer = tokenizers.load_tokenizer(f"tiktoken:{write_ranks(directory / 'by_hand')}")
    # Words are "abc", " ab", " ac"; in the second, "ab" merges before " a" can. White space leaves its last to a word.
    assert tokenizer.encode("abc ab ac") == [257, 32, 256, 258, 99]
    assert tokenizer.encode("    x") == [32, 32, 32, 32, 120]
    assert tokenizer.encode("     x") == [259, 32, 120]
    # Llama 3.1 places these behind 128000 ranks; here there are 260.
    offsets = {"<|begin_of_text|>": 0, "<|end_of_text|>": 1, "<|finetune_right_pad_id|>": 4, "<|start_header_id|>": 6,
               "<|end_header_id|>": 7, "<|eom_id|>": 8, "<|eot_id|>": 9, "<|python_tag|>": 10,
               "<|reserved_special_token_0|>": 2, "<|reserved_special_token_2|>": 5,
               "<|reserved_special_token_247|>": 255}
    assert {name: tokenizer.special[name] - 260 for name in offsets} == offsets
    assert tokenizer.vocab_size == 260 + 256 == 260 + len(set(tokenizer.special.values()))


@pytest.mark.parametrize("unit", ["a", " ", "\n", "`", "\u2581"])
def test_a_million_of_one_character(all_three, unit):
    for tokenizer in all_three:
        assert tokenizer.decode(tokenizer.encode(unit * 200_000)) == unit * 200_000
    assert all_three[2].decode(all_three[2].encode(unit * 1_000_000)) == unit * 1_000_000


def test_markers_and_indentation_are_one_id_each(all_three):
    tokenizer = all_three[1]
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("<think>\n        self\n<<<<<<< SEARCH\n\t### =======")]
    assert pieces[:2] == ["<think>", "\n        "]
    assert pieces[-6:] == ["\n", "<<<<<<< SEARCH", "\n", "\t", "### ", "======="]


def test_a_trained_vocabulary_joins_no_word_to_its_neighbours(tmp_path):
    text = "def get_item(self):\n    if self.x!=10 and not (a >> 2):\n        return self.get_item()\n"
    tokenizer = tokenizers.train_sentencepiece([text] * 50, 420, tmp_path / "x.model")
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode(text)]
    assert pieces == ["def", " get", "_item", "(", "self", ")", ":", "\n    ", "if", " self", ".", "x", "!=", "1", "0", " and", " not",
                      " (", "a", " >>", " ", "2", ")", ":", "\n        ", "return", " self", ".", "get", "_item", "(", ")", "\n"]


def test_training_is_deterministic_and_saving_keeps_the_ids(directory):
    first = tokenizers.train_sentencepiece([CODE], 420, directory / "first.model")
    tokenizers.train_sentencepiece([CODE], 420, directory / "second.model")
    assert (directory / "first.model").read_bytes() == (directory / "second.model").read_bytes()
    assert first.vocab_size == 420
    (directory / "saved").mkdir()
    again = tokenizers.load_tokenizer(first.save(directory / "saved"))
    assert again.encode(CODE) == first.encode(CODE)


def test_a_models_directory_says_by_its_file_which_kind_it_is(all_three, directory):
    (directory / "tokenizer_config.json").write_text("{}")
    for name, tokenizer in zip(("pieces", "ranks"), all_three[1:]):
        (directory / name).mkdir()
        tokenizer.save(directory / name)
        assert (directory / name / "tokenizer_config.json").exists() == (name == "ranks")  # which a published model has beside it
        again = tokenizers.load_tokenizer(f"hf:{directory / name}")
        assert type(again) is type(tokenizer) and again.encode(CODE) == tokenizer.encode(CODE)


@pytest.mark.parametrize(("spec", "complaint"), [
    ("bytes", "needed is byte, sentencepiece:PATH, tiktoken:PATH, json:PATH, embedded:NAME or hf:DIR"),
    ("tiktoken:", "needed is byte"),
    ("tiktoken:/nowhere/x", "there is no file /nowhere/x"),
    ("hf:/nowhere", "there is no directory /nowhere"),
    ("embedded:huge", "no model 'huge' ships with the project; there is"),
])
def test_a_wrong_spec_is_refused(spec, complaint):
    with pytest.raises(ValueError, match=complaint):
        tokenizers.load_tokenizer(spec)


@pytest.mark.parametrize(("content", "complaint"), [
    ("YQ== x\n", ":1: needed is base64 bytes and a rank"),
    ("YQ== 0\nYg== 2\n", ":2: ranks must be 0, 1, 2"),
    ("YQ== 0\nYQ== 1\n", ":2: ranks must be 0, 1, 2"),
    ("YQ== 0\n", "255 single bytes have no rank, first 0x00"),
])
def test_a_wrong_file_is_refused_by_line(tmp_path, content, complaint):
    (tmp_path / "ranks").write_text(content)
    with pytest.raises(ValueError, match=complaint):
        tokenizers.load_tokenizer(f"tiktoken:{tmp_path / 'ranks'}")
    with pytest.raises(ValueError, match="not a sentencepiece model"):
        tokenizers.load_tokenizer(f"sentencepiece:{tmp_path / 'ranks'}")


def test_too_few_texts_for_a_vocabulary(tmp_path):
    with pytest.raises(ValueError, match="no vocabulary of 5000 can be made"):
        tokenizers.train_sentencepiece([CODE], 5000, tmp_path / "never.model")
    assert not list(tmp_path.iterdir())
