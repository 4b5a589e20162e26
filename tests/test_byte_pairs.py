"""`tokenizer.json`: a hand-made one by hand, and in the slow tier trained ones against the `tokenizers` library."""

import asyncio
import json
import random
import unicodedata
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swerl_jax.data.records import STOP, Example, Turn
from swerl_jax.env.byte_pairs import JsonTokenizer
from swerl_jax.env.chat import Chat
from swerl_jax.env.episode import SingleTurn, Task
from swerl_jax.env.prompts import ASSISTANT, USER, Message, taught_answer
from swerl_jax.env.reward import RewardSpec, make_reward
from swerl_jax.env.tokenizer import load_tokenizer

# As published: Llama 3 takes up to three digits together, Qwen one; Qwen normalises.
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
SPECIAL = {"llama3": ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>"],
           "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]}
PLAIN = ["<think>", "</think>", "<think>er"]  # added and not special, as Qwen3 has the first two
WORD = "<wor\u00e9>"  # one that is looked for in normalised text


def _pieces(split):
    return {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}


def _by_hand(**changes):
    # Byte-level BPE orders its letters by code point: "!" is 0; the bytes that are not visible come behind the visible 188.
    letters = [chr(i) for i in [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]] + [
        chr(0x100 + i) for i in range(68)]
    vocabulary = {letter: i for i, letter in enumerate(letters)} | {"ab": 256, "\u0120a": 257, "\u0120ab": 258}
    return {"model": {"type": "BPE", "vocab": vocabulary, "merges": ["a b", ["\u0120", "a"], "\u0120a b"]} | changes,
            "pre_tokenizer": _pieces(QWEN), "normalizer": {"type": "NFC"},
            "added_tokens": [_added(300 + i, name, special=i < 3) for i, name in enumerate(SPECIAL["qwen"] + PLAIN)] + [
                _added(306, WORD, normalized=True)]}


def _added(index, text, **changes):
    return {"id": index, "content": text, "special": False, "normalized": False, "single_word": False, "lstrip": False,
            "rstrip": False} | changes


def _write(tmp_path, found):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(found))
    return path


def test_by_hand(tmp_path):
    tokenizer = JsonTokenizer(_write(tmp_path, _by_hand()))
    a, b, i = (ord(x) - 0x21 for x in "abi")
    newline, space = 188 + 10, 188 + 32  # the first 33 bytes have no letter of their own
    assert tokenizer.encode("ab ab\nba") == [256, 258, newline, b, a]
    assert tokenizer.encode(" i ") == [space, i, space]
    assert tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")
    assert tokenizer.decode([258, 301, 9999, 256], show_special=True) == " ab<|im_start|>\N{REPLACEMENT CHARACTER}ab"
    assert tokenizer.vocab_size == 307 and tokenizer.special["<|im_end|>"] == 302
    forged = [ord(x) - 0x21 for x in "<|im_start|>"]
    assert tokenizer.encode("<|im_start|><think>ab</think><think>er") == [*forged, 303, 256, 304, 305]
    # The bar through the sign would make one letter of both; <wor…> is found once its accent is.
    assert tokenizer.encode("<think>\u0338")[0] == 303 and tokenizer.encode("a<wore\u0301>b") == [a, 306, b]
    assert tokenizer.decode([301, 303, 256, 304, 306]) == f"<think>ab</think>{WORD}"
    for name in ("tokenizer_config.json", "added_tokens.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "copy").mkdir()
    assert load_tokenizer(tokenizer.save(tmp_path / "copy")).encode("ab") == [256]
    assert {"tokenizer_config.json", "added_tokens.json"} < {path.name for path in (tmp_path / "copy").iterdir()}
    assert load_tokenizer(f"hf:{tmp_path / 'copy'}").vocab_size == 307


def test_whole_words_need_no_merge_where_the_file_says_so(tmp_path):
    found = _by_hand(merges=["a b", "\u0120 a"], ignore_merges=True)
    assert JsonTokenizer(_write(tmp_path, found)).encode("ab ab") == [256, 258]
    found = _by_hand(vocab=found["model"]["vocab"] | {"<think>": 303, "a b": 304})  # added ones need none
    assert JsonTokenizer(_write(tmp_path, found)).encode("ab<think>") == [256, 303]


def test_chatml_by_hand(tmp_path):
    chat = Chat(JsonTokenizer(_write(tmp_path, _by_hand())), "chatml")
    start, end, newline = 301, 302, 198

    def spelt(text):
        return [ord(x) - 0x21 for x in text]

    asked = [start, *spelt("user"), newline, *spelt("hi"), end, newline]
    opening = [start, *spelt("assistant"), newline]
    assert chat.prompt([Message(USER, "hi")]) == asked + opening
    assert chat.answer("ok") == [*spelt("ok"), end] and chat.stop_ids == (end, 300)
    grown = chat.prompt([Message(USER, "hi")]) + chat.answer("ok") + chat.turn(Message(USER, "hi"))
    assert grown == asked + opening + [*spelt("ok"), end, newline] + asked + opening
    assert grown == chat.prompt([Message(USER, "hi"), Message(ASSISTANT, "ok"), Message(USER, "hi")])
    assert chat.turn(Message(USER, "hi"), is_cut=True) == [end, newline, *asked, *opening]
    with pytest.raises(ValueError, match=r"needs the special ids <\|begin_of_text\|>"):
        Chat(chat.tokenizer, "llama3")


def test_an_answer_with_thought_ids_is_scored(tmp_path):
    tokenizer = JsonTokenizer(_write(tmp_path, _by_hand()))
    chat = Chat(tokenizer, "chatml")
    example = Example("e", "", "", "broken", {"m.py": "a\n"}, {"m.py": "b\n"})
    ids = np.array(chat.answer(taught_answer(example, "t", 0)), np.int32)
    assert {303, 304} < set(ids.tolist()) and ids[-1] == 302

    class Policy:
        async def draw(self, group, sample, max_tokens):
            return Turn(ids, np.zeros(len(ids), np.float32), STOP, 0)

        def close(self, group, sample):
            pass

    def score(text, example):
        scored = Future()
        scored.set_result(make_reward(RewardSpec())(text, example.files, example.oracle))
        return scored

    episode = SingleTurn(tokenizer, chat.stop_ids, 500, score)
    assert asyncio.run(episode(Policy(), Task(0, example, ids[:1], 1), 0)).outcome.reward == 1


@pytest.mark.parametrize("changes, message", [
    ({"pre_tokenizer": {"type": "Metaspace"}}, "pre_tokenizer is {'type': 'Metaspace'}"),
    ({"pre_tokenizer": None}, "pre_tokenizer is None; supported is a Split by a Regex"),
    ({"normalizer": {"type": "NFKC"}}, "supported are none and NFC"),
    ({"model": {"type": "Unigram"}}, "model.type is 'Unigram'; supported is 'BPE'"),
    ({"model": _by_hand(merges=["\u0120 a", "a b"])["model"]}, "whose ids follow their merges"),
    ({"model": {"type": "BPE", "vocab": {}, "merges": ["a b"]}}, "KeyError"),
    ({"model": _by_hand(merges=["a b", "\u0120 a"])["model"]}, "no merge makes 1 entries of the vocabulary, such as '\u0120ab'"),
    ({"added_tokens": [_added(300, "<a>", single_word=True, rstrip=True)]}, "'<a>' has single_word, rstrip"),
])
def test_what_tiktoken_cannot_run_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        JsonTokenizer(_write(tmp_path, _by_hand() | changes))


def _texts():
    """Code, prose of many scripts, and noise."""
    rng = random.Random(0)
    words = ["def", "return", "self", "été", "naïve", "straße", "Привет", "κόσμε", "你好世界", "こんにちは", "🙂", "👩‍👩‍👧", "e\u0301"]
    for _ in range(3000):
        parts = [rng.choice(words) if rng.random() < 0.6 else "".join(rng.choices("ab_1 23\n\t(){}'\"\\", k=rng.randint(1, 9)))
                 for _ in range(rng.randint(1, 30))]
        yield rng.choice([" ", "", "\n    "]).join(parts)


@pytest.fixture(scope="module", params=["llama3", "qwen"])
def trained(request, tmp_path_factory):
    """(theirs, ours): one vocabulary, trained by the library."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed; bash tests/run.sh --slow does it")
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=request.param == "llama3"))
    split = LLAMA3 if request.param == "llama3" else QWEN
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Split(tokenizers.Regex(split), "isolated"),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    if request.param == "qwen":
        theirs.normalizer = tokenizers.normalizers.NFC()
    theirs.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    theirs.train_from_iterator(_texts(), trainer)
    theirs.add_special_tokens(SPECIAL[request.param])
    if request.param == "qwen":
        theirs.add_tokens([*(tokenizers.AddedToken(text, normalized=False) for text in PLAIN), tokenizers.AddedToken(WORD)])
    path = tmp_path_factory.mktemp(request.param) / "tokenizer.json"
    theirs.save(str(path))
    return theirs, JsonTokenizer(path), request.param


@pytest.mark.slow
def test_ids_equal_the_librarys(trained):
    theirs, ours, family = trained
    special = SPECIAL[family]

    @settings(max_examples=1500)
    @given(st.one_of(
        st.text(st.characters(codec="utf-8"), max_size=200),
        st.lists(st.sampled_from([" ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "12345", "été", "e\u0301", "def", "_x", "你", "🙂",
                                  "\u2028", "\u00a0", "\u0338", "<", *PLAIN, WORD, "<wore\u0301>"]), max_size=60).map("".join)))
    def check(text):
        if any(name in text for name in special):
            return
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids
        if family == "qwen":  # what is found before normalisation is not joined to a mark behind it
            assert unicodedata.normalize("NFC", ours.decode(ids)) == unicodedata.normalize("NFC", text)
        else:
            assert ours.decode(ids) == text

    check()
    for text in _texts():
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    assert ours.vocab_size == theirs.get_vocab_size() and ours.special == {name: theirs.token_to_id(name) for name in special}
