"""Sizes of a model, by letter. Every array in the project names its axes with these letters.

B rows · P prompts (prefixes) · R samples per prompt · S prefix tokens (padded) · T tokens of a row or a turn ·
C columns of a branch's cache · D width · N query heads · K key/value heads · G = N/K query heads a key head ·
H head size · F hidden width of the feed-forward layer · V vocabulary · L layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's frequency scaling of the rotary embedding.

    Wavelengths shorter than `original_context / high` are kept, longer than `original_context / low` are divided by
    `factor`, and those between are blended linearly. Source: the Llama 3.1 model card's `rope_scaling` of type "llama3".
    """

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original_context: int = 8192


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """Static YaRN: frequencies of pairs that turn often are kept, of those that turn seldom divided by `factor`.

    Between the pair that turns `fast` times in `original_context` positions and the one that turns `slow` times the share
    falls linearly from pair to pair; cos and sin are multiplied by 0.1 · ln(factor) + 1, at every length.
    Source: "YaRN", arXiv 2309.00071, §3.2 and §3.3 (Qwen2.5 at 131k: factor 4).
    """

    factor: float = 4.0
    fast: float = 32.0
    slow: float = 1.0
    original_context: int = 32_768


@dataclasses.dataclass(frozen=True)
class Arch:
    """A decoder with RMSNorm, rotary positions, grouped-query attention and SwiGLU (Llama 3: arXiv 2407.21783, §3.2).

    Attributes:
      context: positions that the model was made for; nothing here depends on it.
      has_qkv_bias: biases on queries, keys and values (Qwen2.5, arXiv 2412.15115).
      has_qk_norm: every query and key is RMS-normalised over H, with a scale, before it turns (Qwen3, arXiv 2505.09388).

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
    has_qkv_bias: bool = False
    has_qk_norm: bool = False
    rope_theta: float = 500_000.0
    rope_scaling: Llama3Scaling | YarnScaling | None = None
    norm_epsilon: float = 1e-5
    context: int = 8192

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
        small = 2 * self.D + self.has_qkv_bias * self.K * (self.G + 2) * self.H + self.has_qk_norm * 2 * self.H
        return self.matrix_parameters + small

    @property
    def matrix_parameters(self) -> int:
        """Parameters of the matrices of one layer."""
        return self.D * self.K * (self.G + 2) * self.H + self.N * self.H * self.D + 3 * self.D * self.F

    @property
    def parameters(self) -> int:
        """Parameters of the whole model, tied ones once."""
        return self.L * self.layer_parameters + self.V * self.D * (1 if self.is_tied else 2) + self.D

    def low_rank_parameters(self, rank: int, targets: Iterable[str]) -> int:
        """Parameters of a change of this rank of every layer's matrices of these names (see llama.Lora)."""
        D, heads, hidden = self.D, self.N * self.H, self.F
        ends = {"qkv": (D, heads + 2 * self.K * self.H), "out": (heads, D), "gate_up": (D, 2 * hidden), "down": (hidden, D)}
        return self.L * rank * sum(sum(ends[name]) for name in targets)

    def forward_flops(self, tokens: int, keys: float = 0.0, head_tokens: int | None = None) -> float:
        """Floating-point operations of one forward pass (a multiply-add counts two).

        Args:
          tokens: through the layers.
          keys: mean number of keys that a token attends to.
          head_tokens: tokens whose logits are computed; all of them by default.
        """
        head = self.V * self.D * (tokens if head_tokens is None else head_tokens)
        return 2.0 * (self.L * tokens * (self.matrix_parameters + 2 * self.N * self.H * keys) + head)


def _llama(D: int, L: int, N: int, F: int, *, is_tied: bool = False, H: int = 128, factor: float | None = 8.0) -> Arch:
    scaling = None if factor is None else Llama3Scaling(factor=factor)
    return Arch(V=128_256, D=D, L=L, N=N, K=8, H=H, F=F, is_tied=is_tied, rope_scaling=scaling,
                context=8192 if factor is None else 131_072)


def _qwen25(D: int, L: int, N: int, K: int, F: int, *, H: int = 128, is_tied: bool = False, factor: float | None = None) -> Arch:
    return Arch(V=151_936 if is_tied else 152_064, D=D, L=L, N=N, K=K, H=H, F=F, is_tied=is_tied, has_qkv_bias=True,
                rope_theta=1e6, rope_scaling=None if factor is None else YarnScaling(factor), norm_epsilon=1e-6,
                context=32_768 if factor is None else 131_072)


def _qwen3(D: int, L: int, N: int, F: int, *, is_tied: bool = False) -> Arch:
    return Arch(V=151_936, D=D, L=L, N=N, K=8, H=128, F=F, is_tied=is_tied, has_qk_norm=True, rope_theta=1e6,
                norm_epsilon=1e-6, context=40_960)


# Published sizes, from each model's config.json; "tiny" and "bench" are ours.
ARCHS: dict[str, Arch] = {
    "tiny": Arch(V=768, D=192, L=6, N=6, K=2, H=32, F=512, is_tied=True, rope_theta=10_000.0),
    "bench": Arch(V=4096, D=256, L=6, N=8, K=4, H=32, F=768, is_tied=True),
    "llama3-8b": _llama(4096, 32, 32, 14_336, factor=None),
    "llama3.1-8b": _llama(4096, 32, 32, 14_336),
    "llama3.2-1b": _llama(2048, 16, 32, 8192, is_tied=True, H=64, factor=32.0),
    "llama3.2-3b": _llama(3072, 28, 24, 8192, is_tied=True, factor=32.0),
    "llama3-70b": _llama(8192, 80, 64, 28_672, factor=None),
    "llama3.3-70b": _llama(8192, 80, 64, 28_672),
    "llama3.1-405b": _llama(16_384, 126, 128, 53_248),
    "qwen2.5-0.5b": _qwen25(896, 24, 14, 2, 4864, H=64, is_tied=True),
    "qwen2.5-1.5b": _qwen25(1536, 28, 12, 2, 8960, is_tied=True),
    "qwen2.5-3b": _qwen25(2048, 36, 16, 2, 11_008, is_tied=True),
    "qwen2.5-7b": _qwen25(3584, 28, 28, 4, 18_944),
    "qwen2.5-14b": _qwen25(5120, 48, 40, 8, 13_824),
    "qwen2.5-32b": _qwen25(5120, 64, 40, 8, 27_648),
    "qwen2.5-72b": _qwen25(8192, 80, 64, 8, 29_568),
    "qwen2.5-72b-131k": _qwen25(8192, 80, 64, 8, 29_568, factor=4.0),  # with YaRN, as its model card says to extend it
    "qwen3-0.6b": _qwen3(1024, 28, 16, 3072, is_tied=True),
    "qwen3-1.7b": _qwen3(2048, 28, 16, 6144, is_tied=True),
    "qwen3-4b": _qwen3(2560, 36, 32, 9728, is_tied=True),
    "qwen3-8b": _qwen3(4096, 36, 32, 12_288),
    "qwen3-14b": _qwen3(5120, 40, 40, 17_408),
    "qwen3-32b": _qwen3(5120, 64, 64, 25_600),
}
