"""Secrets and e-mail addresses: taken out of what people wrote about a fix, and looked for in its code.

Text is rewritten, code never is: an oracle changed here would no longer be what the context says. So a secret in code is
a reason to drop the example, and an e-mail address in code is none.

An address becomes another one, `user1@example.com`: within one text the same for the same, so a report about two accounts
stays one. Every pattern is linear in the text: runs are bounded, and a rule runs only where one of its hints occurs.
"""

from __future__ import annotations

import collections
import functools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

_WORD_BEFORE = r"(?<![A-Za-z0-9_])"
_WORD_BEHIND = r"(?![A-Za-z0-9_])"
_BREAK = r"(?:\\n|[\s\"'+,]){0,16}"  # between two lines of a key, in a string of a program too
_GENERIC_MIN_ENTROPY = 3.5  # bits a character: 20 random hexadecimal digits have about 3.4, base 64 about 4.1
_PLACEHOLDER = re.compile(
    r"example|sample|dummy|fake|test|mock|your|change.?me|replace|placeholder|insert|redacted|todo|xxxx|0000|1234567|abcdef|"
    r"foo|bar|\*\*\*|\.\.\.|<|\$|\{|%",
    re.IGNORECASE,
)


class _Rule(NamedTuple):
    """One kind of secret: where none of `hints` occurs the pattern is not tried; group 1, if any, is the secret itself."""

    name: str
    hints: tuple[str, ...]
    pattern: re.Pattern[str]
    is_real: Callable[[str], bool]
    is_for_code: bool = True


def _rule(name: str, hints: str, pattern: str, is_real: Callable[[str], bool] | None = None, **options: bool) -> _Rule:
    return _Rule(name, tuple(hints.split()), re.compile(pattern), is_real or _is_no_placeholder, **options)


def _is_no_placeholder(value: str) -> bool:
    """Keys of documentation say so ("AKIAIOSFODNN7EXAMPLE") or have few different characters."""
    return len(set(value)) > 5 and not _PLACEHOLDER.search(value)


def _always(value: str) -> bool:
    return bool(value)


def _is_random(value: str) -> bool:
    """Letters and digits mixed with no regularity, as people and programs do not name things."""
    kinds = sum(any(test(c) for c in value) for test in (str.islower, str.isupper, str.isdigit))
    if kinds < 2 or not any(c.isdigit() for c in value):
        return False
    return _entropy(value) >= _GENERIC_MIN_ENTROPY and _is_no_placeholder(value)


def _entropy(value: str) -> float:
    """Bits a character, of the characters' own frequencies."""
    counts = collections.Counter(value).values()
    return -sum(count / len(value) * math.log2(count / len(value)) for count in counts)


_RULES = (
    _rule("private_key", "PRIVATE", r"-----BEGIN (?:[A-Z0-9]{1,16} ){0,3}PRIVATE KEY(?: BLOCK)?-----\s{0,8}"
          rf"(?:[A-Za-z-]{{1,32}}: [^\n]{{0,200}}\n\s{{0,8}}){{0,8}}(?:{_BREAK}[A-Za-z0-9+/=]{{24,4096}}){{1,400}}"
          rf"(?:{_BREAK}[A-Za-z0-9+/=]{{0,23}}{_BREAK}-----END [^\n-]{{1,40}}-----)?", _always),
    _rule("aws_key", "AKIA ASIA ABIA ACCA", _WORD_BEFORE + r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}" + _WORD_BEHIND),
    _rule("github_token", "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_",
          _WORD_BEFORE + r"(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{60,255})" + _WORD_BEHIND),
    _rule("gitlab_token", "glpat-", _WORD_BEFORE + r"glpat-[A-Za-z0-9_-]{20,64}"),
    _rule("slack_token", "xox", _WORD_BEFORE + r"xox[abeoprs]-[A-Za-z0-9-]{10,250}"),
    _rule("slack_webhook", "hooks.slack.com", r"hooks\.slack\.com/(?:services|workflows)/([A-Za-z0-9+/_]{20,100})"),
    _rule("google_key", "AIza", _WORD_BEFORE + r"AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
    _rule("google_oauth", "GOCSPX- ya29.", _WORD_BEFORE + r"(?:GOCSPX-[A-Za-z0-9_-]{28}|ya29\.[A-Za-z0-9_-]{40,300})"),
    _rule("stripe_key", "sk_live_ rk_live_", _WORD_BEFORE + r"[sr]k_live_[A-Za-z0-9]{16,247}"),
    _rule("npm_token", "npm_", _WORD_BEFORE + r"npm_[A-Za-z0-9]{36}" + _WORD_BEHIND),
    _rule("pypi_token", "pypi-AgE", _WORD_BEFORE + r"pypi-AgE[A-Za-z0-9_-]{50,500}"),
    _rule("openai_key", "sk-", _WORD_BEFORE + r"sk-(?:proj-|svcacct-|ant-[a-z0-9]{2,8}-)?[A-Za-z0-9_-]{40,200}", _is_random),
    _rule("sendgrid_key", "SG.", _WORD_BEFORE + r"SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}"),
    _rule("huggingface_token", "hf_", _WORD_BEFORE + r"hf_[A-Za-z0-9]{34}" + _WORD_BEHIND),
    _rule("jwt", "eyJ", _WORD_BEFORE + r"eyJ[A-Za-z0-9_-]{10,2048}\.eyJ[A-Za-z0-9_-]{10,4096}\.[A-Za-z0-9_-]{20,2048}",
          _always),
    _rule("url_password", "://", r"://[^\s/:@\"'<>]{1,64}:([^\s/@\"'<>]{3,128})@(?!localhost|127\.0\.0\.1|example\.)",
          is_for_code=False),  # in code it is nearly always a test's or a default
    _rule("bearer", "earer", r"\b[Bb]earer\s{1,4}([A-Za-z0-9._~+/-]{20,2048})", _is_random),
    _rule("assignment", "secret SECRET Secret passw PASSW Passw token TOKEN Token api_key apikey api-key API_KEY APIKEY apiKey "
          "ApiKey access_key ACCESS_KEY accessKey credential CREDENTIAL",
          r"(?i:secret|passw(?:or)?d|token|api[_-]?key|access[_-]?key|credential)[A-Za-z0-9_-]{0,32}[\"']?\s{0,4}"
          r"(?::|=|:=|=>)\s{0,4}[\"']([A-Za-z0-9+/_=-]{20,200})[\"']", _is_random),
)  # fmt: skip

_LOCAL = r"[A-Za-z0-9_.+%\u00c0-\u024f-]"
# A list, not any word: `a@b.dot(c)` is a product of matrices in Python, and `lodash@4.17.21` a package.
_TOP_LEVEL = (
    "com org net edu gov mil int info biz name pro io dev app ai me co eu xyz tech online cloud email ac ad ae ar at au be bg "
    "br by ca ch cl cn cz de dk ee es fi fr gr hk hr hu id ie il in ir is it jp kr kz li lt lu lv ma mx my nl no nz pe ph pk "
    "pl pt ro rs ru sa se sg si sk su th tr tv tw ua uk us uy vn za"
).replace(" ", "|")
_EMAIL = re.compile(
    rf"(?<!{_LOCAL[:-1]}/:])({_LOCAL}{{1,64}})@((?:[A-Za-z0-9\u00c0-\u024f-]{{1,63}}\.){{1,6}}(?:{_TOP_LEVEL}))"
    r"(?![\w(\[-])(?!\.\w)",
    re.IGNORECASE,
)
_RESERVED = re.compile(r"(?:\A|\.)(?:example\.(?:com|org|net|edu)|localhost|test|invalid|users\.noreply\.github\.com)\Z")
_TRAILER = re.compile(
    r"^[ \t]{0,8}(?:signed-off-by|co-authored-by|reviewed-by|acked-by|tested-by|reported-by|cc|git-svn-id|change-id)"
    r":[^\n]*(?:\n|\Z)",
    re.IGNORECASE | re.MULTILINE,
)
_SECRET_MARK = "[secret removed]"


def scrub(text: str) -> tuple[str, dict[str, int]]:
    """Returns the text without secrets, e-mail addresses and the trailers of a commit message, and what was taken out.

    Addresses of reserved domains (example.com), of machines (git@host) and GitHub's no-reply ones stay.

    Args:
      text: of an issue, a comment or a message; never code.

    Returns:
      The text, and kind → count: "email", "trailer", and the names of secrets.
    """
    counts: collections.Counter[str] = collections.Counter()
    text, trailers = _TRAILER.subn("", text)
    counts["trailer"] += trailers
    for rule in _RULES:
        if any(hint in text for hint in rule.hints):
            text = rule.pattern.sub(functools.partial(_without_secret, rule, counts), text)
    if "@" in text:
        text = _EMAIL.sub(functools.partial(_without_email, {}, counts), text)
    return text, {kind: count for kind, count in counts.items() if count}


@functools.lru_cache(maxsize=256)  # neighbouring commits show the same files
def find_secret(text: str) -> str:
    """The name of the first kind of secret that the code holds, "" for none."""
    for rule in _RULES:
        if rule.is_for_code and any(hint in text for hint in rule.hints):
            if any(rule.is_real(match[match.lastindex or 0]) for match in rule.pattern.finditer(text)):
                return rule.name
    return ""


def _without_secret(rule: _Rule, counts: collections.Counter[str], match: re.Match[str]) -> str:
    group = match.lastindex or 0
    if not rule.is_real(match[group]):
        return match[0]
    counts[rule.name] += 1
    start, end = match.start(group) - match.start(), match.end(group) - match.start()
    return match[0][:start] + _SECRET_MARK + match[0][end:]


def _without_email(seen: dict[str, str], counts: collections.Counter[str], match: re.Match[str]) -> str:
    local, domain = match[1], match[2].lower()
    if local.lower() == "git" or _RESERVED.search(domain):
        return match[0]
    counts["email"] += 1
    return seen.setdefault(match[0].lower(), f"user{len(seen) + 1}@example.com")
