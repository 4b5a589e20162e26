"""Messages → ids. On the path: prompt → **ids** → engine, and for agents observation → ids.

Ids are only ever appended: a turn that the policy wrote stays as it was sampled, and what follows is encoded on its
own. So a rollout's ids are the ids the policy saw, whatever a tokenizer would make of the joined text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from swerl_jax.env import tokenizer as tokenizers
from swerl_jax.env.prompts import ASSISTANT, Message

_ROLE = "{role}"  # stands for the message's role in a template


@dataclasses.dataclass(frozen=True)
class Template:
    """How turns are framed; each part is a special id's name, the placeholder for the role, or plain text.

    Attributes:
      begin: once, before the first turn.
      before: before a turn's text.
      after: after a turn's text, unless the policy speaks.
      stops: what ends the policy's own turn; the first is the one it is taught, the others are obeyed too.
    """

    begin: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    stops: tuple[str, ...]


TEMPLATES = {
    # Llama 3's headers, without its preamble of dates.
    "llama3": Template(
        begin=(tokenizers.BEGIN_OF_TEXT,),
        before=(tokenizers.START_HEADER, _ROLE, tokenizers.END_HEADER, "\n\n"),
        after=(tokenizers.EOT,),
        stops=(tokenizers.EOT, tokenizers.END_OF_TEXT),
    ),
    # Three ids in all around a one-turn question and its answer: for models whose whole context is a few hundred ids.
    "compact": Template(
        begin=(tokenizers.BEGIN_OF_TEXT,),
        before=(),
        after=(tokenizers.END_HEADER,),
        stops=(tokenizers.EOT, tokenizers.END_OF_TEXT),
    ),
}


class Chat:
    """A tokenizer and a template: everything that turns messages into ids.

    Attributes:
      tokenizer: text ↔ ids.
      stop_ids: any of these, sampled, ends the policy's turn and belongs to it.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, template: str = "llama3") -> None:
        """Raises ValueError if there is no such template."""
        if template not in TEMPLATES:
            raise ValueError(f"chat template {template!r}: needed is one of {', '.join(TEMPLATES)}")
        self.tokenizer = tokenizer
        self._template = TEMPLATES[template]
        self.stop_ids = tuple(tokenizer.special[name] for name in self._template.stops)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Returns the ids of a conversation's beginning, up to where the policy is to write."""
        ids = self._parts(self._template.begin)
        for message in messages:
            ids += self._message(message)
        return ids + self._parts(self._template.before, ASSISTANT)

    def turn(self, message: Message, is_cut: bool = False) -> list[int]:
        """Returns the ids to append behind a policy turn: `message` and the opening of the policy's next turn.

        Args:
          message: what the policy reads next, e.g. an observation.
          is_cut: True where the policy's turn hit its length limit, so that its stop id is missing and must be given.
        """
        ids = [self.stop_ids[0]] if is_cut else []
        return ids + self._message(message) + self._parts(self._template.before, ASSISTANT)

    def answer(self, text: str) -> list[int]:
        """Returns the ids of `text` as the policy should have written it, stop id included, for supervision."""
        return [*self.tokenizer.encode(text), self.stop_ids[0]]

    def _message(self, message: Message) -> list[int]:
        ids = self._parts(self._template.before, message.role)
        if message.role == ASSISTANT:
            return ids + self.answer(message.text)
        return ids + self.tokenizer.encode(message.text) + self._parts(self._template.after)

    def _parts(self, parts: Sequence[str], role: str = "") -> list[int]:
        ids: list[int] = []
        for part in parts:
            special = self.tokenizer.special.get(part)
            ids += self.tokenizer.encode(role if part == _ROLE else part) if special is None else [special]
        return ids
