"""What a policy is told about a change: the linked issues, or the message where there are none."""

from __future__ import annotations

from swerl_jax.curate.change import Change

_ISSUES_APART = "\n\n---\n\n"


def issue_text(change: Change) -> str:
    """The title and body of every linked issue; of the change itself where no issue is linked. Not scrubbed yet.

    Comments are left out: they are where people propose the fix.
    """
    parts = [(issue.title, issue.body) for issue in change.issues] or [(change.title, change.body)]
    texts = [clean("\n\n".join(part for part in pair if part.strip())).strip() for pair in parts]
    return _ISSUES_APART.join(text for text in texts if text)


def clean(text: str) -> str:
    """The text with `\\n` at the end of lines, and with U+FFFD where JSON left half a character."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text.isascii():
        return text
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
