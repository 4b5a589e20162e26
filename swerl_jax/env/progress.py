"""A progress bar on stderr, for whatever takes longer than a few seconds."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_BAR_CHARS = 30
_TERMINAL_INTERVAL_S = 0.1
_LOG_INTERVAL_S = 10.0  # where stderr is a file, one plain line this often is enough


class Progress:
    """A bar on a terminal, a line every ten seconds elsewhere.

    Use as a context manager; call `advance` as often as you like. `total` may be in any unit.
    """

    def __init__(self, total: int, label: str, stream: TextIO | None = None):
        """`total` steps of `label` are to come; shown on `stream`, stderr by default."""
        self._total = total
        self._label = label
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._done = 0
        self._start_s = self._shown_s = time.monotonic()

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Counts `steps` more as done; `note` is shown behind the bar."""
        self._done += steps
        now_s = time.monotonic()
        if now_s - self._shown_s >= (_TERMINAL_INTERVAL_S if self._is_terminal else _LOG_INTERVAL_S):
            self._shown_s = now_s
            self._show(note)

    def clear(self) -> None:
        """Takes the bar off the terminal's line, so that other text can be printed there."""
        if self._is_terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown_s = 0.0  # the next advance draws it again

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_terminal:
            self._show("")
            self._stream.write("\n")

    def _show(self, note: str) -> None:
        share = min(1.0, self._done / self._total) if self._total else 1.0
        elapsed_s = time.monotonic() - self._start_s
        left = f"{elapsed_s / share - elapsed_s:.0f} s left" if share else ""
        text = f"{self._label} {share:4.0%} {elapsed_s:.0f} s, {left} {note}"
        if self._is_terminal:
            bar = ("█" * round(share * _BAR_CHARS)).ljust(_BAR_CHARS, "·")
            self._stream.write(f"\r{bar} {text}\x1b[K")
        else:
            self._stream.write(text + "\n")
        self._stream.flush()
