"""Every filter drops what it is for and keeps what only looks like it; the first that speaks decides."""

import time

import pytest
from hypothesis import given, strategies

from swerl_jax.curate import filters, licences
from swerl_jax.curate.change import KINDS, Candidate, Change, FileChange, Issue

KEPT_ISSUE = Issue("o/n", 1, "Crash on empty list", "Calling mean([]) raises ZeroDivisionError instead of ValueError.")


def edit(path="m.py", before="x = 1\n", after="x = 2\n", kind="edit"):
    return FileChange(path, kind, before, after)


def candidate(*files, issues=(KEPT_ISSUE,), title="Handle empty lists", licence="MIT", **fields):
    change = Change("o/n#2", "git", "o/n", "b", "h", issues=issues, title=title, licence=licence, **fields)
    return Candidate(change, "c", files or (edit(),))


def reason(made, **settings):
    found = filters.reject(made, filters.make_filters(filters.FilterSettings(**settings)))
    assert found is None or (found.id == "o/n#2" and found.stage == "filters" and found.detail)
    return found.reason if found else ""


def test_a_plain_fix_passes_and_the_table_is_closed():
    assert reason(candidate()) == ""
    assert list(filters.make_filters()) == list(filters.REASONS)


@pytest.mark.parametrize("fields", [
    {"author": "dependabot[bot]"}, {"author": "renovate-bot"}, {"author": "Renovate Bot"}, {"author": "pyup-bot"},
    {"author": "github-actions"}, {"meta": {"is_bot": True}, "author": "x"}, {"meta": {"branch": "o/dependabot/npm/lodash-4"}},
    {"meta": {"head_ref": "renovate/lodash-4.x"}}, {"meta": {"branch": "o/snyk-fix-0a1b"}},
    {"meta": {"head_ref": "pyup-update-a-1"}},
    {"title": "Bump lodash from 4.17.20 to 4.17.21"}, {"title": "chore(deps): bump x"}, {"title": "[Security] Bumps y"},
    {"title": "Fix build: bump version to 2"}, {"title": "build(deps-dev): Bump z"}, {"title": "Automerge main"},
    {"body": "Bumps [lodash](x) from 1 to 2."}, {"body": "a\n\nDependabot will resolve any conflicts"},
    {"body": "This PR was automatically created by Snyk"}, {"body": "made by x[bot]"},
])
def test_programs_are_dropped(fields):
    assert reason(candidate(**fields)) == "bot"


@pytest.mark.parametrize("fields", [
    {"title": "Bump map is upside down: fix"}, {"body": "I bumped into this error"}, {"author": "abbot"}, {"author": "robota"},
    {"meta": {"branch": "o/fix-dependabot/x", "head_ref": "renovate-config"}}, {"meta": {"head_ref": "imgbot-crash"}},
    {"author": "botond"}, {"title": "Fix crash in dependabots parser"}, {"title": "Fix bumpalo error"},
    {"body": "Fix.\n\nCo-authored-by: pre-commit-ci[bot] <66853113+pre-commit-ci[bot]@users.noreply.github.com>"},
    {"body": "Our dependabot alerts broke, this fixes them"},
])  # fmt: skip
def test_people_who_talk_like_programs_are_kept(fields):
    assert reason(candidate(**fields)) == ""


def test_the_papers_rule_is_at_hand():
    assert reason(candidate(body="I bumped into this error"), bots="paper") == "bot"
    assert reason(candidate(author="Renovate-me"), bots="paper") == "bot"
    assert reason(candidate(author="x-bot"), bots="paper") == ""


@pytest.mark.parametrize("files, expected", [
    ([edit(after="x = 1\r\n")], "empty"),
    ([edit("yarn.lock"), edit("vendor/a.go"), edit("a_pb2.py")], "unwritten_only"),
    ([edit("yarn.lock"), edit("a.js", "import a", "import b")], ""),
    ([edit("a.py", "__version__ = '1.2.3'\n", "__version__ = '1.2.4.dev0'\n"), edit("CHANGES.md")], "version_only"),
    ([edit("package.json", '"version": "1.0"', '"version": "1.1"'), edit("yarn.lock")], "version_only"),
    ([edit("a.py", "TOLERANCE = 0.5\n", "TOLERANCE = 0.25\n")], ""),
    ([edit("a.py", "version = parse(1)\n", "version = parse_all(1)\n")], ""),
    ([edit("README.md"), edit("tests/test_a.py")], "no_source"),
    ([edit("a.json"), edit("style.css")], "no_source"),
    ([edit(), edit("old.py", kind="delete", after=None)], "kind_delete"),
    ([edit(kind="not_utf8", before=None, after=None)], "kind_not_utf8"),
    ([edit(), edit("logo.png", kind="binary", before=None, after=None)], "kind_binary"),
    ([edit(), edit("docs/logo.png", kind="binary", before=None, after=None)], ""),
    ([edit(), edit("tests/old_test.py", kind="delete", after=None)], ""),
    ([edit("n.py", None, "y = 1\n", "new"), edit()], ""),
    ([edit(f"d/{i}.py") for i in range(101)], "huge"),
    ([edit(after="\n".join(f"y = {i}" for i in range(2100)))], "huge"),
    ([edit(after="x" * 400_001)], "huge"),
    ([edit(), edit("tests/data.json", after="9\n" * 300_000)], ""),
    ([edit(after='key = "AKIA' + "QWERTYZ234567UIO" + '"\n')], "secret_in_code"),
    ([edit(), edit("tests/t.py", after='key = "AKIA' + "QWERTYZ234567UIO" + '"\n')], ""),
])  # fmt: skip
def test_files_decide(files, expected):
    assert reason(candidate(*files)) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_but_two_is_a_reason_of_its_own(kind):
    made = candidate(edit(), edit("b.py", kind=kind))
    assert reason(made) == ("" if kind in ("edit", "new") else f"kind_{kind}")


def test_an_issue_that_is_named_and_not_linked_is_told():
    made = candidate(issues=(), meta={"links": {"#3": "newer"}})
    assert filters.reject(made, filters.make_filters()).detail == "no issue is linked (#3 newer)"


def test_what_a_partial_clone_lacks_comes_before_its_licence_that_is_missing_too():
    assert reason(candidate(edit(kind="missing", before=None, after=None), licence="")) == "kind_missing"


def test_a_candidate_without_files_is_empty():
    assert reason(Candidate(candidate().change, "c", ())) == "empty"


@pytest.mark.parametrize("issues, fields, settings, expected", [
    ((), {}, {}, "no_issue"),
    ((), {"body": "It crashes on empty lists, which is bad."}, {"needs_issue": False}, ""),
    ((), {"body": "It crashes on empty lists, which is bad.", "meta": {"message_as_issue": True}}, {}, ""),
    ((), {"title": "Fix crash"}, {"needs_issue": False}, "short_issue"),
    ((Issue("o/n", 1, " ", "\n"),), {}, {}, "no_issue"),
    ((Issue("o/n", 1, "It crashes", ""),), {}, {}, "short_issue"),
    ((KEPT_ISSUE,), {}, {"languages": ("Go", "Rust")}, "language"),
    ((KEPT_ISSUE,), {}, {"languages": ("Go", "Python")}, ""),
    ((KEPT_ISSUE,), {"licence": ""}, {}, "licence"),
    ((KEPT_ISSUE,), {"licence": ""}, {"licences": ()}, ""),
    ((KEPT_ISSUE,), {"licence": "GPL-3.0-or-later"}, {}, ""),
    ((KEPT_ISSUE,), {"licence": "GPL-3.0-only"}, {"licences": ("permissive", "mpl-2.0")}, "licence"),
    ((KEPT_ISSUE,), {"licence": "mit"}, {"licences": ("permissive",)}, ""),
])  # fmt: skip
def test_issues_languages_and_licences_decide(issues, fields, settings, expected):
    assert reason(candidate(issues=issues, **fields), **settings) == expected


@pytest.mark.parametrize("title, body, labels, is_fix", [
    ("Crash when x is None", "It crashes.", (), True),
    ("Support Python 3.12", "It would be nice to have this.", (), False),
    ("Support Python 3.12", "It would be nice to have this.", ("type: Bug",), True),
    ("x fails", "It fails with an error each time.", ("Enhancement",), False),
    ("x fails", "It fails with an error each time.", ("enhancement", "bug"), True),
    ("Output is wrong on Windows", "I get 1 but it is 2.", ("os:windows",), True),
    ("Doesn't work", "It doesn\u2019t return anything for me here.", (), True),
])
def test_the_issue_tells_whether_it_is_a_bug(title, body, labels, is_fix):
    assert reason(candidate(title="Some words", issues=(Issue("o/n", 1, title, body, labels=labels),))) == (
        "" if is_fix else "not_a_bug_fix")


@pytest.mark.parametrize("title, is_fix", [
    ("fix: handle empty lists", True), ("fix(core)!: y", True), ("feat: error messages", False), ("docs: fix error", False),
    ("Fix typo in error message", False), ("Fix flake8 errors", False), ("Fixes the failing tests", False),
    ("Fix test runner crash", True), ("Release 1.2", False), ("Merge branch 'fix-crash'", False), ("Prefix error codes", True),
    ("Revert \"fix crash\"", False), ("🐛 fix: y", True), ("Fix documentation build error", False),
])  # fmt: skip
def test_the_title_tells_whether_it_is_a_bug(title, is_fix):
    assert reason(candidate(title=title)) == ("" if is_fix else "not_a_bug_fix")


def only_go(made):
    return "" if made.files[0].path.endswith(".go") else "no Go"


def test_the_heuristic_can_be_replaced():
    spec = f"{__name__}:only_go"
    assert reason(candidate(), bug_fix=spec) == "not_a_bug_fix"
    assert reason(candidate(edit("a.go")), bug_fix=spec) == ""
    assert reason(candidate(title="docs: x"), bug_fix="any") == ""
    for wrong in ("nothing", "os:nothing", "no.such.module:f", "", ":", f"{__name__}:KEPT_ISSUE"):
        with pytest.raises(ValueError, match="bug_fix .*needed is"):
            filters.make_filters(filters.FilterSettings(bug_fix=wrong))


@pytest.mark.parametrize("said, is_given_away", [
    ("It crashes. Fix:\n\n    if not values:\n        raise ValueError('empty')\n", True),
    ("It crashes.\n> +    if not   values:\n> +        raise ValueError('empty')\n", True),
    ("It crashes; `raise ValueError('empty')` would be right there I think", True),
    ("It crashes; one should raise ValueError there when it is empty", False),
    ("It crashes:\n\n    return sum(values) / len(values)\nZeroDivisionError", False),  # the old code
])
def test_an_issue_that_gives_the_fix_away(said, is_given_away):
    before = "def mean(values):\n    return sum(values) / len(values)\n"
    after = before.replace("    return", "    if not values:\n        raise ValueError('empty')\n    return")
    made = candidate(edit("m.py", before, after), issues=(Issue("o/n", 1, "mean of nothing", said),))
    assert reason(made) == ("fix_in_issue" if is_given_away else "")
    assert reason(made, max_fix_share=1.0) == ""


def test_wrong_settings_are_refused():
    for settings in ({"bots": "all"}, {"languages": ("python",)}, {"oracle_roles": ("sources",)}):
        with pytest.raises(ValueError, match="needed (is|are)|known are"):
            filters.FilterSettings(**settings)


LICENCE_TEXTS = {
    "MIT": "MIT License\n\nPermission is hereby granted, free of charge, to any person\nobtaining a copy … The above copyright "
           "notice and this\npermission notice shall be included",
    "BSD-3-Clause": "Redistribution and use in source and binary\n# forms, with or without … must retain the above copyright … "
                    "Neither the name of",
    "BSD-2-Clause": "Redistribution and use in source and binary forms … must retain the above copyright notice",
    "Apache-2.0": "Apache License\n  Version 2.0, January 2004\nTERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION",
    "GPL-3.0": "GNU GENERAL PUBLIC LICENSE\n Version 3, 29 June 2007 … Everyone is permitted to copy … GNU Affero General Public "
               "License … GNU Lesser General Public License",
    "AGPL-3.0": "GNU AFFERO GENERAL PUBLIC LICENSE\nVersion 3, 19 November 2007 … Everyone is permitted to copy",
    "LGPL-2.1": "GNU LESSER GENERAL PUBLIC LICENSE\nVersion 2.1, February 1999 … Everyone is permitted to copy",
    "LGPL-3.0": "GNU LESSER GENERAL PUBLIC LICENSE\nVersion 3, 29 June 2007 … This version of the GNU Lesser General Public License "
                "incorporates",
    "ISC": "Permission to use, copy, modify, and/or distribute this software … and this permission notice appear in all copies.",
    "": "All rights reserved.",
}  # fmt: skip


@pytest.mark.parametrize("name", LICENCE_TEXTS)
def test_licences_are_known_by_their_phrases(name):
    assert licences.identify(LICENCE_TEXTS[name]) == name


def test_licence_files_and_groups():
    assert all(map(licences.is_licence_file, ("LICENSE", "LICENCE.md", "COPYING", "COPYING.LESSER", "LICENSE-MIT", "license.txt")))
    assert not any(map(licences.is_licence_file, ("licenses.py", "src/LICENSE", "license_check", "LICENSES")))
    assert licences.allowed(["weak_copyleft", "mit"]) == frozenset(licences.WEAK_COPYLEFT) | {"MIT"}


TEXTS = strategies.text(max_size=40)


@given(TEXTS, TEXTS, TEXTS, strategies.lists(strategies.tuples(
    strategies.sampled_from(["a.py", "b/test_a.py", "c.lock", "d.md", "é"]), strategies.sampled_from(KINDS),
    strategies.none() | TEXTS, strategies.none() | TEXTS), max_size=3))
def test_any_candidate_is_judged(title, body, author, files):
    made = candidate(*(FileChange(path, kind, before, after) for path, kind, before, after in files), title=title, body=body,
                     author=author)
    assert reason(made) in ("", *filters.REASONS)


@pytest.mark.parametrize("unit", [
    "bump ", "fix ", "fix a ", "(", "[", "\n> +", "co-authored-by:", "feat(", " ", "1.", "version 1.1.1 ", "the fix ", "is not ",
    "a" * 30, "1.2.3-a",
])  # fmt: skip
def test_time_is_linear_in_the_text(unit):
    text = (unit * 100_000)[:200_000]
    started = time.process_time()
    issue = Issue("o/n", 1, text, text, labels=(text,))
    made = candidate(edit(before="a\n", after=text), issues=(issue,), title=text, body=text)
    for function in filters.make_filters(filters.FilterSettings()).values():
        function(made)
    assert time.process_time() - started < 3
