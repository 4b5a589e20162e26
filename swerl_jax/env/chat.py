"""Messages → ids. On the path: prompt → **ids** → engine, and for agents observation → ids.

Ids are only ever appended: a turn that the policy wrote stays as it was sampled, and what follows is encoded on its
own. So a rollout's ids are the ids the policy saw, whatever a tokenizer would make of the joined text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from swerl_jax.env import vocabulary
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
      further_stops: the same, of later tokenizers only.
      behind_stop: between the policy's stop and the next turn.
    """

    begin: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    stops: tuple[str, ...]
    further_stops: tuple[str, ...] = ()
    behind_stop: tuple[str, ...] = ()


TEMPLATES = {
    # Llama 3's headers, without its preamble of dates.
    "llama3": Template(
        begin=(vocabulary.BEGIN_OF_TEXT,),
        before=(vocabulary.START_HEADER, _ROLE, vocabulary.END_HEADER, "\n\n"),
        after=(vocabulary.EOT,),
        stops=(vocabulary.EOT, vocabulary.END_OF_TEXT),
        further_stops=("<|eom_id|>",),  # Llama 3.1: a message that expects a tool's answer
    ),
    # Qwen's; without the system turn that Qwen2.5's own template puts in front where there is none.
    "chatml": Template(
        begin=(),
        before=("<|im_start|>", _ROLE, "\n"),
        after=("<|im_end|>", "\n"),
        stops=("<|im_end|>", "<|endoftext|>"),
        behind_stop=("\n",),
    ),
    # Three ids in all around a one-turn question and its answer: for models whose whole context is a few hundred ids.
    "compact": Template(
        begin=(vocabulary.BEGIN_OF_TEXT,),
        before=(),
        after=(vocabulary.END_HEADER,),
        stops=(vocabulary.EOT, vocabulary.END_OF_TEXT),
    ),
}


class Chat:
    """A tokenizer and a template: everything that turns messages into ids.

    Attributes:
      tokenizer: text ↔ ids.
      stop_ids: any of these, sampled, ends the policy's turn and belongs to it.
    """

    def __init__(self, tokenizer: vocabulary.Tokenizer, template: str = "llama3") -> None:
        """Raises ValueError if there is no such template, or the tokenizer lacks its special ids."""
        if template not in TEMPLATES:
            raise ValueError(f"chat template {template!r}: needed is one of {', '.join(TEMPLATES)}")
        self.tokenizer = tokenizer
        self._template = TEMPLATES[template]
        used = dict.fromkeys(part for parts in dataclasses.astuple(self._template) for part in parts)
        had = {*tokenizer.special, *self._template.further_stops}
        missing = [part for part in used if part.startswith("<|") and part not in had]
        if missing:
            raise ValueError(f"the chat template {template!r} needs the special ids {', '.join(missing)}, which the tokenizer "
                             f"lacks; choose the template of its model (--config.chat: {', '.join(TEMPLATES)})")
        ends = (*self._template.stops, *self._template.further_stops)
        self.stop_ids = tuple(tokenizer.special[name] for name in ends if name in tokenizer.special)

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
        ids += self._parts(self._template.behind_stop)
        return ids + self._message(message) + self._parts(self._template.before, ASSISTANT)

    def answer(self, text: str) -> list[int]:
        """Returns the ids of `text` as the policy should have written it, stop id included, for supervision."""
        return [*self.tokenizer.encode(text), self.stop_ids[0]]

    def _message(self, message: Message) -> list[int]:
        if message.role == ASSISTANT:
            opening = self._parts(self._template.before, ASSISTANT)
            return opening + self.answer(message.text) + self._parts(self._template.behind_stop)
        return self._parts(self._template.before, message.role, message.text) + self._parts(self._template.after)

    def _parts(self, parts: Sequence[str], role: str = "", text: str = "") -> list[int]:
        """The ids of a template's parts and the text behind them; what is plain text is encoded together."""
        ids: list[int] = []
        plain = ""
        for part in parts:
            special = self.tokenizer.special.get(part)
            if special is None:
                plain += role if part == _ROLE else part
            else:
                ids += [*self.tokenizer.encode(plain), special]
                plain = ""
        return ids + self.tokenizer.encode(plain + text)
