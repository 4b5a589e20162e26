"""Sizes of a model, by letter. Every array in the project names its axes with these letters.

B rows · P prompts (prefixes) · R samples per prompt · S prefix tokens (padded) · T tokens of a row or a turn ·
C columns of a branch's cache · D width · N query heads · K key/value heads · G = N/K query heads a key head ·
H head size · F hidden width of the feed-forward layer · V vocabulary · L layers.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's frequency scaling of the rotary embedding.

    Wavelengths shorter than `original_context / high` are kept, longer than `original_context / low` are divided by
    `factor`, and those between are blended linearly. Source: the Llama 3.1 model card's `rope_scaling` of type "llama3".
    """

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original_context: int = 8192


@dataclasses.dataclass(frozen=True)
class Arch:
    """A Llama-3-like decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU (arXiv 2407.21783, §3.2).

    Raises ValueError when the sizes do not fit together.
    """

    V: int
    D: int
    L: int
    N: int
    K: int
    H: int
    F: int
    is_tied: bool = False
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        for letter in "VDLNKHF":
            if getattr(self, letter) < 1:
                raise ValueError(f"arch.{letter} is {getattr(self, letter)}; every size must be at least 1")
        if self.N % self.K:
            raise ValueError(f"{self.N} query heads do not divide among {self.K} key heads; make N a multiple of K")
        if self.H % 2:
            raise ValueError(f"head size {self.H} is odd; rotary positions turn pairs, so H must be even")

    @property
    def G(self) -> int:
        """Query heads that share one key head."""
        return self.N // self.K

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer."""
        return self.D * self.K * (self.G + 2) * self.H + self.N * self.H * self.D + 3 * self.D * self.F + 2 * self.D

    @property
    def parameters(self) -> int:
        """Parameters of the whole model, tied ones once."""
        return self.L * self.layer_parameters + self.V * self.D * (1 if self.is_tied else 2) + self.D

    def forward_flops(self, tokens: int, keys: float = 0.0, head_tokens: int | None = None) -> float:
        """Floating-point operations of one forward pass (a multiply-add counts two).

        Args:
          tokens: through the layers.
          keys: mean number of keys that a token attends to.
          head_tokens: tokens whose logits are computed; all of them by default.
        """
        linear = self.layer_parameters - 2 * self.D
        head = self.V * self.D * (tokens if head_tokens is None else head_tokens)
        return 2.0 * (self.L * tokens * (linear + 2 * self.N * self.H * keys) + head)


def _llama(D: int, L: int, N: int, F: int, *, is_tied: bool = False, H: int = 128, factor: float | None = 8.0) -> Arch:
    scaling = None if factor is None else RopeScaling(factor=factor)
    return Arch(V=128_256, D=D, L=L, N=N, K=8, H=H, F=F, is_tied=is_tied, rope_scaling=scaling)


# Published sizes, from each model's config.json; "tiny" is ours.
ARCHS: dict[str, Arch] = {
    "tiny": Arch(V=768, D=192, L=6, N=6, K=2, H=32, F=512, is_tied=True),
    "bench": Arch(V=4096, D=256, L=6, N=8, K=4, H=32, F=768, is_tied=True),
    "llama3-8b": _llama(4096, 32, 32, 14_336, factor=None),
    "llama3.1-8b": _llama(4096, 32, 32, 14_336),
    "llama3.2-1b": _llama(2048, 16, 32, 8192, is_tied=True, H=64, factor=32.0),
    "llama3.2-3b": _llama(3072, 28, 24, 8192, is_tied=True, factor=32.0),
    "llama3-70b": _llama(8192, 80, 64, 28_672, factor=None),
    "llama3.3-70b": _llama(8192, 80, 64, 28_672),
}
