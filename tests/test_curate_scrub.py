"""Secrets and addresses leave the text, everything else stays; code is only looked at."""

import time

import pytest
from hypothesis import given, strategies

from swerl_jax.curate import scrub

# Put together here, so that no scanner takes this file for a leak.
BODY = "Zq8RtY3LmPw9KdVs2HxJc7NbGu5TeAo4Fi6W"
SECRETS = {
    "aws_key": "AKIA" + "QWERTYZ234567UIO"[:16],
    "github_token": "ghp_" + BODY,
    "gitlab_token": "glpat-" + BODY[:20],
    "slack_token": "xoxb-" + "2736459182-" + BODY[:24],
    "google_key": "AIza" + BODY[:35],
    "stripe_key": "sk_live_" + BODY[:24],
    "npm_token": "npm_" + BODY,
    "openai_key": "sk-" + BODY + BODY[:12],
    "huggingface_token": "hf_" + BODY[:34],
    "jwt": "eyJ" + BODY[:20] + ".eyJ" + BODY + "." + BODY,
    "private_key": "-----BEGIN RSA PRIVATE " + "KEY-----\n" + (BODY + "\n") * 4,
    "assignment": f'API_SECRET_KEY = "{BODY[:30]}"',
    "bearer": f"Authorization: Bearer {BODY}",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_secrets_are_found_in_code_and_taken_out_of_text(kind):
    text = f"before\nx = {SECRETS[kind]} \nbehind"
    assert scrub.find_secret(text) == kind
    clean, counts = scrub.scrub(text)
    assert counts == {kind: 1}
    assert BODY[:16] not in clean and clean.startswith("before\n") and clean.endswith("behind")
    assert scrub.scrub(clean) == (clean, {})
    assert scrub.find_secret(clean) == ""


@pytest.mark.parametrize("code", [
    "aws_access_key_id = 'AKIAIOSFODNN7EXAMPLE'",
    "token = 'your-token-goes-here-please-set'",
    'SECRET_KEY = "django-insecure-change-me-please"',
    'password = "correct horse battery staple"',
    "tokenizer = get_tokenizer('tokenizer_name_of_the_model_v2')",
    'PASSWORD_HASHER = "django.contrib.auth.hashers.PBKDF2PasswordHasher"',
    "sha = '8c3f0c5e7b1d4f6a9e2b8d7c6f5a4b3c2d1e0f9a'",
    "github_token = os.environ['GITHUB_TOKEN']",
    "ghp_" + "x" * 36,
    "postgres://user:password@localhost/db",
    "postgres://admin:hunter2@db.host.com/db",
    '"-----BEGIN RSA PRIVATE KEY-----" in text',
    "sk-learn-contrib-imbalanced-learn-and-some-more-words-that-go-on",
    "mail = 'jane.doe@company.com'",
    "CSRF_TOKEN_NAME = 'csrfmiddlewaretoken_and_more'",
])
def test_what_only_looks_like_a_secret_stays_in_code(code):
    assert scrub.find_secret(code) == ""


def test_addresses_become_others_and_the_same_stay_the_same():
    text = 'From Jane.Doe@corp.co.uk to <bob@x.org>: `send("jane.doe@corp.co.uk", cc="bob@x.org")`.'
    assert scrub.scrub(text) == (
        'From user1@example.com to <user2@example.com>: `send("user1@example.com", cc="user2@example.com")`.', {"email": 4})


@pytest.mark.parametrize("text", [
    "validate('user@example.com') fails", "a@localhost", "pip install git+ssh://git@github.com/a/b.git", "git@github.com:a/b.git",
    "c = a@b.dot(d)", "x@y.T", "W@x.shape", "lodash@4.17.21", "actions/checkout@v4", "@decorator.io", "in @user's branch",
    "123+jane@users.noreply.github.com", "a @ b.com", "foo@bar", "m@n.in(x)", "obj@attr.is_valid",
])  # fmt: skip
def test_what_is_no_personal_address_stays(text):
    assert scrub.scrub(text) == (text, {})


def test_passwords_in_addresses_and_trailers_go():
    text = "clone https://jane:s3cr8tpw@git.corp.com/x\n\nFixes a crash.\n\nSigned-off-by: J D <j@d.com>\nCo-Authored-By: x[bot]\n"
    clean, counts = scrub.scrub(text)
    assert clean == "clone https://jane:[secret removed]@git.corp.com/x\n\nFixes a crash.\n\n"
    assert counts == {"trailer": 2, "url_password": 1}


@given(strategies.text())
def test_any_text_is_scrubbed_once(text):
    clean, _ = scrub.scrub(text)
    assert scrub.scrub(clean)[0] == clean


@given(strategies.text(alphabet="ab@.:/-_ \n'\"=sk-ghp_token", max_size=200))
def test_text_without_kinds_is_unchanged(text):
    clean, counts = scrub.scrub(text)
    assert clean == text or counts


@pytest.mark.parametrize("unit", [
    "a", "a.", "a@", "a@b.", "a@b.com.", "://a:", "token=", "token", "token='", "secret_", "-----BEGIN ", "eyJ", "eyJa.", "xoxb-",
    "Bearer ", "-----BEGIN A PRIVATE KEY-----\n", "sk-", "\u00e9", "%@", "Cc:", " ", "-----BEGIN PRIVATE KEY-----\nA: b\n", "A" * 30 + ".",
])  # fmt: skip
def test_time_is_linear_in_the_text(unit):
    text = (unit * 200_000)[:300_000]
    started = time.process_time()
    scrub.scrub(text)
    scrub.find_secret(text)
    assert time.process_time() - started < 3
