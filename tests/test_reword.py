"""Other words for a function: every word but those that Python gives a meaning, consistently, in the same layout."""

import io
import pathlib
import random
import re
import tokenize

from swerl_jax.data import reword

WORDS = [f"w{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
TEXT = '''\
def shout(self, text, _tail=10):
    # Takes any Text.
    if len(text) > 2 and self.MAX_LEN > 345:
        raise ValueError("text %s too Long\\n" % text)
    self.__dict__ = text.upperCase(tail=_tail)
    return f"{2}", b"raw bytes"
'''


def test_every_word_is_other_and_the_rest_stays():
    made = reword.reword(TEXT, WORDS, random.Random(0))
    pattern = (r'def (w.)\(self, (w.), _(w.)=(\d\d)\):\n    # (W.) any (W.)\.\n'
               r'    if len\((w.)\) > 2 and self\.(W.)_(W.) > (\d{3}):\n'
               r'        raise ValueError\("(w.) %s (w.) (W.)\\n" % (w.)\)\n'
               r'    self\.__dict__ = (w.)\.(w.)(W.)\((w.)=_(w.)\)\n    return f"\{2\}", b"(w.) (w.)"\n')
    found = re.fullmatch(pattern.replace(" any ", " (w.) ").replace("W.", "W.|W[A-Z]"), made)
    assert found, made
    assert found[2] == found[8] == found[15] == found[16] != found[1]  # the parameter, wherever it stands
    assert found[3] == found[20] and made == reword.reword(TEXT, WORDS, random.Random(0)) != TEXT


def test_kept_names_stay():
    made = reword.reword(TEXT, WORDS, random.Random(0), ["shout", "text"])
    assert made.startswith("def shout(self, text, _w") and "raise ValueError(" in made and "% text)" in made


def test_what_would_not_compile_stays_as_it_is():
    assert reword.reword("def f(:", WORDS, random.Random(0)) == "def f(:"
    assert reword.reword("x = '''open", WORDS, random.Random(0)) == "x = '''open"


def test_invented_words_are_like_words_but_new():
    words = ["buffer", "query", "for", "zone"] * 50
    made = reword.invented(words, random.Random(0))
    assert len(made) == len(words) and len(set(made) - set(words)) > 100
    assert all(re.fullmatch("[a-z]{2,8}", word) for word in made)


def test_vocabulary_is_of_whole_lower_case_words():
    assert reword.vocabulary(["getName if_not x1 HTTPError fooBar", "not_name print"]) == ["foo", "get", "name"]


def test_layout_and_kinds_of_tokens_stay_for_real_code():
    text = pathlib.Path(io.__file__).read_text("utf-8")

    def kinds(source):
        return [(token.type, token.start[0]) for token in tokenize.generate_tokens(io.StringIO(source).readline)]

    made = reword.reword(text, WORDS, random.Random(1))
    assert made != text and kinds(made) == kinds(text)
