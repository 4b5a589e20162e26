"""Closing keywords are found in every form that GitHub knows, and not in code, quotations or words that look alike."""

import time

import pytest
from hypothesis import given, strategies

from swerl_jax.curate.links import Link, closing_links, prose

KEYWORDS = ("close", "closes", "closed", "fix", "fixes", "fixed", "resolve", "resolves", "resolved")


@pytest.mark.parametrize("keyword", KEYWORDS)
@pytest.mark.parametrize("between", [" ", ": ", ":", "\t"])
def test_every_keyword_closes(keyword, between):
    for written in (keyword, keyword.upper(), keyword.title()):
        assert closing_links(f"This {written}{between}#12.") == (Link("", 12),)


FORMS = {
    "fixes #12": [("", 12)],
    "(fix #12)": [("", 12)],
    "**Fixes #12**": [("", 12)],
    "- [x] fixes GH-12": [("", 12)],
    "fixes o-1/n.a_b-c#12, closes O/n#3": [("o-1/n.a_b-c", 12), ("O/n", 3)],
    "fixes https://github.com/o/n/issues/12": [("o/n", 12)],
    "Fixes: http://www.github.com/o/n/issues/12#issuecomment-99)": [("o/n", 12)],
    "fixes #1, fixes #2 and resolves #1": [("", 1), ("", 2)],
    "fixes #1, #2": [("", 1)],  # a keyword for every issue
    "fix #1\nfix #2\r\nfix #3": [("", 1), ("", 2), ("", 3)],
    "it does not fix #12": [("", 12)],  # GitHub closes it all the same
    # No links.
    "#12": [], "see #12": [], "fixes": [], "fixes issue #12": [], "fixes\n#12": [], "fixes#12": [], "fixes 12": [],
    "hotfix #12": [], "prefixes #12": [], "bug-fix #12": [], "unresolved #12": [], "x.fix #12": [], "fixing #12": [],
    "fixes #0": [], "fixes #012": [], "fixes #12th": [], "fixes #12345678901": [], "fixes # 12": [], "fixes #٣": [],
    "fixes /n#12": [], "fixes o/#12": [], "fixes -o/n#12": [], "fixes o/n/m#12": [], "fixes ../n#12": [],
    "fixes https://github.com/o/n/pull/12": [], "fixes https://example.com/o/n/issues/12": [],
    "fixes https://github.com.example.com/o/n/issues/12": [], "fixes https://github.com/o/n/issues/": [],
}  # fmt: skip


@pytest.mark.parametrize("text", FORMS)
def test_forms(text):
    assert closing_links(text) == tuple(Link(*link) for link in FORMS[text])


HIDDEN = {
    "`fixes #1`": [],
    "``a ` fixes #1``": [],
    "fixes `x` #1": [],
    "a ` b fixes #1": [1],  # no second backtick: no code
    "a ` b fixes #1\n\nc ` d": [1],  # code ends with its paragraph
    "a ` b\nfixes #1 ` d": [],
    "`` ` fixes #1": [1],
    "```\nfixes #1\n```\nfixes #2": [2],
    "```py\nfixes #1\n``\n````\nfixes #2": [2],
    "```\nfixes #1": [],
    "~~~ a`b\nfixes #1\n```\nfixes #2\n~~~\nfixes #3": [3],
    "```fixes #1```": [],
    "- list\n    ```\n    fixes #1\n    ```\n  fixes #2": [2],
    "> fixes #1\n   > fixes #2\nfixes #3": [3],
    "a > b fixes #1": [1],
    ">\nfixes #1": [1],
    "> ```\n> fixes #1\n> ```\nfixes #2": [2],
    "<!-- fixes #1 -->fixes #2": [2],
    "<!-- `\n```\n fixes #1 -->fixes #2 `fixes #3`": [2],
    "<!-- fixes #1": [],
    "fixes <!-- the issue --> #1": [1],
    "> ```\nfixes #1": [1],  # the block ends with the quotation
    "`<!--` fixes #1 `-->`": [1],
    "```\r\nfixes #1\r\n```\r\nfixes #2": [2],
}


@pytest.mark.parametrize("text", HIDDEN)
def test_code_quotations_and_comments_say_nothing(text):
    assert [link.number for link in closing_links(text)] == HIDDEN[text]


def test_commit_messages_are_no_markdown():
    assert closing_links("> `fixes #1`", is_markdown=False) == (Link("", 1),)


MARKS = ["`", "``", "```", "~~~", ">", "<!--", "-->", "\n", "\n\n", " ", "fixes", "#1", "o/n#2", "x", ":"]


@given(strategies.lists(strategies.sampled_from(MARKS)).map("".join) | strategies.text())
def test_any_text_is_read(text):
    kept = prose(text)
    assert "<!--" not in kept or "`" in text
    assert all(link.number > 0 for link in closing_links(text))


@given(strategies.lists(strategies.sampled_from(["a", "fixes #1", " ", "\n", "#", ":", "*"])).map("".join))
def test_text_without_marks_is_all_prose(text):
    assert prose(text) == text


@pytest.mark.parametrize("text", [
    "`" * 200_000, "".join("`" * n + "a" for n in range(1, 600)), "` a\n\n" * 40_000, "<!--" * 50_000, "```\n" * 40_001,
    "fixes " * 30_000, "fixes " + "a" * 200_000, "fixes a/" + "b." * 100_000, "> " * 100_000, "fix:" + "\t" * 200_000,
    "~~~" * 50_000, " > " * 60_000, "\n" * 200_000, " " * 200_000,
])  # fmt: skip
def test_hostile_texts_take_linear_time(text):
    start_s = time.process_time()
    closing_links(text)
    assert time.process_time() - start_s < 2
