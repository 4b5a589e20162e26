"""Running git: single commands, and processes that answer one request after another; every wait has a limit.

On the path: a clone's directory → **git** → bytes. A clone is foreign: what git is told comes from here alone, and nothing
is fetched from the network, whatever the clone's configuration says.
"""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence

PIPE_BYTES = 4096  # what every pipe takes without a reader; larger requests could wait for a process that waits for us
_READ_BYTES = 1 << 16

# Of the environment's own GIT_* variables none is passed on: they would point at another repository.
_SETTINGS = {
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "LC_ALL": "C",
}
# The limits keep a long-lived process small: what it maps of the packs counts as its memory.
_OPTIONS = (
    "-c", "safe.directory=*", "-c", "core.hooksPath=" + os.devnull, "-c", "core.packedGitLimit=256m",
    "-c", "core.packedGitWindowSize=16m", "-c", "core.deltaBaseCacheLimit=48m", "-c", "gc.auto=0",
)


class RepositoryError(Exception):
    """A clone that cannot be read any further; the caller reports it and goes on with the next."""


class GitTimeout(RepositoryError):
    """Git gave no answer in time; another request may get one."""


class GitDied(Exception):
    """A process ended in the middle of an answer: what was asked for is damaged or not there."""


def environment(**more: str) -> dict[str, str]:
    """Returns the variables that git runs with, `more` among them."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return {**kept, **_SETTINGS, **more}


def command(git_directory: str, *arguments: str) -> list[str]:
    """Returns the command line; a directory that is named needs no search, and no trust in its owner."""
    return ["git", f"--git-dir={git_directory}", *_OPTIONS, *arguments]


def run(line: Sequence[str], variables: Mapping[str, str], timeout_s: float, data: bytes = b"") -> tuple[int, bytes, str]:
    """Runs a command to its end, with `data` as its input; returns its exit status, what it wrote, and its last complaint.

    Raises:
      GitTimeout: it took longer than `timeout_s`.
      RepositoryError: it cannot be started.
    """
    try:
        done = subprocess.run(line, env=variables, capture_output=True, input=data, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise GitTimeout(f"{_shown(line)} took longer than {timeout_s:g} s") from error
    except OSError as error:
        raise RepositoryError(f"{_shown(line)} cannot be started ({error}); needed is git") from error
    return done.returncode, done.stdout, _complaint(done.stderr)


class Dialogue:
    """A git process that answers requests on its standard input; started when it is needed, again after it died.

    Ask, then read the whole answer before asking again. Reading raises GitDied where the process ends instead, and
    GitTimeout where it takes longer than the limit.
    """

    def __init__(self, line: Sequence[str], variables: Mapping[str, str], timeout_s: float, max_requests: int):
        """`max_requests` later the process makes room for a new one: some kinds grow with every answer."""
        self._line = list(line)
        self._variables = dict(variables)
        self._timeout_s = timeout_s
        self._max_requests = max_requests
        self._process: subprocess.Popen[bytes] | None = None
        self._complaints = None
        self._requests = 0
        self._deadline_s = 0.0
        self._buffer = b""
        self._position = 0

    def ask(self, request: bytes) -> None:
        """Sends a request of at most PIPE_BYTES."""
        if self._process is None or self._requests >= self._max_requests:
            self._start()
        self._requests += 1
        self._deadline_s = time.monotonic() + self._timeout_s
        try:
            self._process.stdin.write(request)
        except BrokenPipeError:
            self._die()

    def until(self, end: bytes) -> bytes:
        """Returns what comes before `end` (one byte), which is taken too."""
        while (found := self._buffer.find(end, self._position)) < 0:
            self._fill()
        part = self._buffer[self._position:found]
        self._position = found + 1
        return part

    def peek(self) -> bytes:
        """Returns the next byte without taking it."""
        while self._position >= len(self._buffer):
            self._fill()
        return self._buffer[self._position:self._position + 1]

    def exactly(self, size: int) -> bytes:
        """Returns the next `size` bytes."""
        parts = []
        while size > len(self._buffer) - self._position:
            parts.append(self._buffer[self._position:])
            size -= len(parts[-1])
            self._buffer, self._position = b"", 0
            self._fill()
        parts.append(self._buffer[self._position:self._position + size])
        self._position += size
        return b"".join(parts)

    def skip(self, size: int) -> None:
        """Takes the next `size` bytes without keeping them."""
        while size:
            size -= len(self.exactly(min(size, _READ_BYTES)))

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process.wait()
            self._complaints.close()
        self._process = None
        self._buffer, self._position = b"", 0

    def _start(self) -> None:
        self.close()
        self._requests = 0
        self._complaints = tempfile.TemporaryFile()  # not a pipe: nobody reads while the process writes
        try:
            self._process = subprocess.Popen(self._line, env=self._variables, stdin=subprocess.PIPE, bufsize=0,
                                             stdout=subprocess.PIPE, stderr=self._complaints)
        except OSError as error:
            self._complaints.close()
            raise RepositoryError(f"{_shown(self._line)} cannot be started ({error}); needed is git") from error

    def _fill(self) -> None:
        descriptor = self._process.stdout.fileno()
        poll = select.poll()  # unlike select, without a limit on the descriptor's number
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(1000 * max(0.0, self._deadline_s - time.monotonic())):
            self.close()
            raise GitTimeout(f"{_shown(self._line)} gave no answer within {self._timeout_s:g} s")
        data = os.read(descriptor, _READ_BYTES)
        if not data:
            self._die()
        self._buffer = self._buffer[self._position:] + data
        self._position = 0

    def _die(self) -> None:
        self._process.wait()
        self._complaints.seek(max(0, self._complaints.seek(0, os.SEEK_END) - 4096))
        complaint = _complaint(self._complaints.read())
        self.close()
        raise GitDied(complaint or f"{_shown(self._line)} ended without a word")


def _complaint(complaints: bytes) -> str:
    """What git died of, else its last line; all of it where it takes several lines."""
    text = complaints.decode("utf-8", "replace").strip()
    before, fatal, after = text.rpartition("fatal: ")
    return " ".join(after.split())[:300] if fatal else text.rpartition("\n")[2][:300]


def _shown(line: Sequence[str]) -> str:
    return " ".join(["git", *line[2 + len(_OPTIONS):][:3]])
