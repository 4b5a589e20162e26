"""The engine: prompts in, turns out. It owns the slots, the caches and the queue, and calls the sampler's functions.

A group opens with its prompt; each of its branches then draws a turn, may be given ids that it did not draw (an
observation) and draws again, until it is closed. Groups wait in a queue until a slot is free. A slot whose branches all
wait for the world may be taken away: what a branch is, is its list of ids, and the caches are made again from them.

The host keeps the truth about every branch; the devices keep keys and values only. Shapes come from short lists of
buckets, so the number of compilations is bounded, and a finished group's slot is filled again without another one.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import struct
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from swerl_jax.data.records import LENGTH, STOP, Turn
from swerl_jax.policy import sampler
from swerl_jax.policy.arch import Arch
from swerl_jax.policy.engine_steps import EngineSettings, EngineSteps
from swerl_jax.policy.llama import Llama


T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Team:
    """Processes whose devices hold one copy of the weights and draw together.

    Attributes:
      index, count: this one's number, and how many there are.
      leads: whether this process asks for what the team runs; another follows it.
    """

    index: int = 0
    count: int = 1
    leads: bool = True


class Policy(Protocol):
    """What an episode needs of a policy: ids in, ids and log-probabilities out, turn by turn.

    A branch is named by (group, sample). `draw` asks; the answer comes from a later `tick`.
    """

    def open(self, group: int, prompt: np.ndarray, samples: int, *, max_branch_tokens: int) -> None:
        """Announces a group: int32 [S] prompt ids, `samples` branches, none longer than `max_branch_tokens`."""

    def draw(self, group: int, sample: int, max_tokens: int, *, ids: np.ndarray | None = None) -> None:
        """Asks for a turn of at most `max_tokens` ids, after feeding `ids` that the policy did not draw."""

    def close(self, group: int, sample: int) -> None:
        """Says that a branch will not be drawn from again; when all are closed, the group's place is freed."""

    def tick(self) -> list[tuple[int, int, Turn]]:
        """Works for a bounded time; returns (group, sample, turn) of the turns that ended."""


@dataclasses.dataclass
class _Branch:
    """One branch as the host knows it; `ids` begins with the last prompt id, `cached` of them are in the cache."""

    group: int
    sample: int
    ids: list[int]
    logp: list[float] = dataclasses.field(default_factory=list)
    turn: int = -1
    drawn: int = 0
    budget: int = 0
    cached: int = 0
    is_closed: bool = False

    def length(self) -> int:
        return len(self.ids)


@dataclasses.dataclass
class _Part:
    """At most R branches of one group: what fills a slot."""

    prefix: np.ndarray
    branches: list[_Branch]
    max_branch_tokens: int
    slot: int | None = None

    def is_drawing(self) -> bool:
        return any(b.budget for b in self.branches)


def turn_key(seed: int, purpose: str, group: int, sample: int, turn: int) -> np.ndarray:
    """The random key, uint32 [2], of one turn: a hash, so that no integer is too large and no two turns share one."""
    text = struct.pack("<qqqq", seed, group, sample, turn) + purpose.encode()
    return np.frombuffer(hashlib.blake2b(text, digest_size=8).digest(), np.uint32)


def bucket(size: int, buckets: tuple[int, ...], what: str) -> int:
    """The smallest of `buckets` that holds `size`.

    Raises:
      ValueError: none does; says what was got, what is needed and what to change.
    """
    for candidate in buckets:
        if size <= candidate:
            return candidate
    raise ValueError(f"{what} of {size} tokens does not fit the largest bucket {buckets[-1]}; "
                     "add a larger bucket, or keep such examples out with a smaller token budget")


class Engine:
    """See the module's text. All calls come from the thread that owns the devices."""

    team = Team()

    def __init__(self, arch: Arch, settings: EngineSettings, mesh: Mesh):
        self.settings, self.mesh = settings, mesh
        self.version = -1
        self.tokens_drawn = 0
        self._model: Llama | None = None
        self._parts: dict[tuple[int, int], _Part] = {}
        self._waiting: collections.deque[tuple[int, int]] = collections.deque()
        self._slots: list[tuple[int, int] | None] = [None] * settings.groups
        self._caches: sampler.Caches | None = None
        self._sizes = (0, 0)
        self._steps = EngineSteps(arch, settings, mesh)

    @property
    def compilations(self) -> int:
        """How many times prefill, extend and decode were compiled."""
        return self._steps.compilations

    @property
    def is_idle(self) -> bool:
        """True when no group is open."""
        return not self._parts

    def load(self, model: Llama, version: int) -> None:
        """Takes new weights: cast, resharded and, where set so, unrolled; they are there when it returns.

        Raises:
          RuntimeError: groups are open; their caches belong to the old weights.
        """
        if not self.is_idle:
            raise RuntimeError(f"{len(self._parts)} groups are open; weights change only between groups")
        self._model = None  # the old weights are freed before the new ones are made
        self._model, self.version = jax.block_until_ready(self._loaded(model)), version

    def _loaded(self, params: Llama) -> Llama:
        """The learner's parameters as this engine's weights."""
        return self._steps.load(params)

    @property
    def weight_bytes(self) -> int:
        """What the weights take on each device."""
        return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(self._model))

    def unload(self) -> None:
        """Frees weights and caches, for what else needs the memory; `load` brings new ones.

        Raises:
          RuntimeError: groups are open.
        """
        if not self.is_idle:
            raise RuntimeError(f"{len(self._parts)} groups are open; close them before the weights go")
        self._model, self._caches, self._sizes = None, None, (0, 0)

    def serve(self, work: Callable[[], T]) -> T | None:
        """What `work` returns, which opens, ticks and closes."""
        return work()

    def open(self, group: int, prompt: np.ndarray, samples: int, *, max_branch_tokens: int) -> None:
        """See Policy. A group of more than R samples is dealt over several slots, each with its own prefix."""
        settings = self.settings
        if self._model is None:
            raise RuntimeError("the engine has no weights yet; call load first")
        if any(name[0] == group for name in self._parts):
            raise ValueError(f"group {group} is open already; a group's number must be its own")
        if len(prompt) < 1 or samples < 1:
            raise ValueError(f"group {group} has a prompt of {len(prompt)} tokens and {samples} samples; "
                             "both must be at least 1")
        bucket(len(prompt) - 1, settings.prefix_buckets, f"the prompt of group {group}")
        bucket(max_branch_tokens, settings.branch_buckets, f"an answer limit of group {group}")
        for start in range(0, samples, settings.samples):
            branches = [_Branch(group, sample, [int(prompt[-1])])
                        for sample in range(start, min(start + settings.samples, samples))]
            name = (group, start // settings.samples)
            self._parts[name] = _Part(np.asarray(prompt[:-1], np.int32), branches, max_branch_tokens)

    def draw(self, group: int, sample: int, max_tokens: int, *, ids: np.ndarray | None = None) -> None:
        """See Policy."""
        name, branch = self._find(group, sample)
        part = self._parts[name]
        if branch.is_closed:
            raise ValueError(f"branch {sample} of group {group} is closed; draw before closing it")
        if branch.budget:
            raise ValueError(f"branch {sample} of group {group} is drawing already; wait for its turn")
        room = part.max_branch_tokens - (branch.length() - 1) - (0 if ids is None else len(ids))
        if max_tokens < 1 or max_tokens > room:
            raise ValueError(f"branch {sample} of group {group} asks for {max_tokens} tokens and has room for {room} "
                             f"of its {part.max_branch_tokens}; ask for fewer or open with more")
        branch.ids.extend(() if ids is None else (int(i) for i in ids))
        branch.turn, branch.drawn, branch.budget, branch.logp = branch.turn + 1, 0, max_tokens, []
        if part.slot is None and name not in self._waiting:
            self._waiting.append(name)

    def close(self, group: int, sample: int) -> None:
        """See Policy."""
        name, branch = self._find(group, sample)
        branch.is_closed, branch.budget = True, 0
        if all(b.is_closed for b in self._parts[name].branches):
            self._release(name)
            del self._parts[name]

    def evict(self, group: int) -> None:
        """Drops the caches of a group; they are made again when one of its branches draws."""
        for name, part in self._parts.items():
            if name[0] == group:
                self._release(name)
                if part.is_drawing():
                    self._waiting.append(name)

    def tick(self) -> list[tuple[int, int, Turn]]:
        """See Policy: decodes one chunk."""
        self._admit()
        running = [(p, self._parts[name]) for p, name in enumerate(self._slots) if name is not None]
        drawing = [b for _, part in running for b in part.branches if b.budget]
        if not drawing:
            return []
        for slot, part in running:
            for lane, branch in enumerate(part.branches):
                if branch.budget:
                    self._feed(slot, lane, part, branch, branch.ids[branch.cached:-1])
        columns = self._steps.live_columns(max(b.cached for b in drawing), self._sizes[1])
        return self._collect(running, self._do("decode", slots=self._table(running), columns=columns))

    def _do(self, name: str, **arguments: Any) -> Any:
        """One of the things that run on the devices; only of decoding is there something to return: what was drawn."""
        if name == "make_caches":
            self._caches = None  # freed before the new ones are made
            self._caches = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding),
                                        self._steps.caches(**arguments))
            return None
        done = getattr(self._steps, name)(model=self._model, caches=self._caches, **arguments)
        self._caches, out = done if name == "decode" else (done, None)
        return jax.device_get(out)

    def _find(self, group: int, sample: int) -> tuple[tuple[int, int], _Branch]:
        name = (group, sample // self.settings.samples)
        if name not in self._parts:
            raise ValueError(f"group {group} is not open (or all its branches are closed); open it first")
        branches, lane = self._parts[name].branches, sample % self.settings.samples
        if lane >= len(branches):
            raise ValueError(f"group {group} has no branch {sample}; its last one is {branches[-1].sample}")
        return name, branches[lane]

    def _release(self, name: tuple[int, int]) -> None:
        part = self._parts[name]
        if part.slot is not None:
            self._slots[part.slot], part.slot = None, None
        if name in self._waiting:
            self._waiting.remove(name)
        for branch in part.branches:
            branch.cached = 0

    def _admit(self) -> None:
        """Gives free slots to the parts that wait, in order; takes slots from parts that only wait for the world."""
        if self._waiting:
            self._reserve()
        placed: list[int] = []
        for slot in range(self.settings.groups):
            holder = self._slots[slot]
            if not self._waiting:
                break
            if holder is not None and not self._parts[holder].is_drawing():
                if None in self._slots:
                    continue
                self._release(holder)
            if self._slots[slot] is None:
                name = self._waiting.popleft()
                self._slots[slot], self._parts[name].slot = name, slot
                placed.append(slot)
        self._prefill(placed)

    def _prefill(self, slots: list[int]) -> None:
        """Fills the prefixes of slots, in every call one of each data shard."""
        n = self._steps.data_shards
        each = self.settings.groups // n
        for turn in range(each):
            prefixes = {slot // each: self._parts[self._slots[slot]].prefix for slot in slots if slot % each == turn}
            longest = max(map(len, prefixes.values()), default=0)
            if not longest:
                continue
            ids = np.zeros((n, bucket(longest, self.settings.prefix_buckets, "a prompt")), np.int32)
            for shard, prefix in prefixes.items():
                ids[shard, :len(prefix)] = prefix
            is_new = np.array([shard in prefixes for shard in range(n)])
            self._do("prefill", slot=np.int32(turn), ids=ids, is_new=is_new)

    def _feed(self, slot: int, lane: int, part: _Part, branch: _Branch, ids: list[int]) -> None:
        """Puts ids of a branch that were not drawn in the last chunk into its cache."""
        width = self.settings.extend_tokens
        for start in range(0, len(ids), width):
            piece = np.asarray(ids[start:start + width], np.int32)
            self._do("extend", slot=np.int32(slot), lane=np.int32(lane), prefix_length=np.int32(len(part.prefix)),
                     start=np.int32(branch.cached), ids=np.pad(piece, (0, width - len(piece))))
            branch.cached += len(piece)

    def _reserve(self) -> None:
        """Makes the caches large enough for every open part; what is in them is evicted if they must grow."""
        settings = self.settings
        prefix = max(bucket(len(p.prefix), settings.prefix_buckets, "a prompt") for p in self._parts.values())
        branch = max(bucket(p.max_branch_tokens, settings.branch_buckets, "a branch") for p in self._parts.values())
        is_empty = all(name is None for name in self._slots)
        if (prefix, branch) == self._sizes or (not is_empty and prefix <= self._sizes[0] and branch <= self._sizes[1]):
            return
        for name in [name for name in self._slots if name is not None]:
            is_drawing = self._parts[name].is_drawing()
            self._release(name)
            if is_drawing:
                self._waiting.append(name)
        self._sizes = prefix, branch
        self._do("make_caches", S=prefix, C=branch)

    def _table(self, running: list[tuple[int, _Part]]) -> sampler.Slots:
        P, R = self.settings.groups, self.settings.samples
        prefix_length = np.zeros(P, np.int32)
        length, next_id, budget, drawn = (np.zeros((P, R), np.int32) for _ in range(4))
        key = np.zeros((P, R, 2), np.uint32)
        for p, part in running:
            prefix_length[p] = len(part.prefix)
            for r, b in enumerate(part.branches):
                length[p, r], next_id[p, r], budget[p, r], drawn[p, r] = b.cached, b.ids[-1], b.budget, b.drawn
                if b.budget:
                    key[p, r] = turn_key(self.settings.seed, self.settings.purpose, b.group, b.sample, b.turn)
        temperature = np.full((P, R), self.settings.temperature, np.float32)
        return sampler.Slots(prefix_length, length, next_id, budget, drawn, key, temperature)

    def _collect(self, running: list[tuple[int, _Part]], out: dict[str, np.ndarray]) -> list[tuple[int, int, Turn]]:
        ended = []
        counts = (out["ids"] != sampler.NO_ID).sum(axis=0)
        for p, part in running:
            for r, branch in enumerate(part.branches):
                count = int(counts[p, r])
                if not count:
                    continue
                branch.ids.extend(out["ids"][:count, p, r].tolist())
                branch.logp.extend(out["logp"][:count, p, r].tolist())
                branch.cached += count
                branch.drawn += count
                branch.budget -= count
                self.tokens_drawn += count
                if out["is_stopped"][p, r]:
                    branch.budget = 0
                if not branch.budget:
                    turn = Turn(np.array(branch.ids[-branch.drawn:], np.int32), np.array(branch.logp, np.float32),
                                STOP if out["is_stopped"][p, r] else LENGTH, self.version)
                    ended.append((branch.group, branch.sample, turn))
        return ended
