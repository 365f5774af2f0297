"""Sizes of the world model."""

from __future__ import annotations

from dataclasses import dataclass

SIMNORM_GROUP = 8  # latent entries that share one softmax, as in TD-MPC2 and UniZero


@dataclass(frozen=True, slots=True)
class WorldModelConfig:
    """Defaults learn CartPole on one CPU core; presets enlarge them for images."""

    embed_dim: int = 64  # width of the latent and of the transformer, multiple of 8
    n_layers: int = 2  # transformer blocks; each widens the receptive field by window_steps - 1
    n_heads: int = 4  # attention heads; embed_dim / n_heads must be even
    mlp_ratio: int = 2  # hidden width of a block's MLP over embed_dim
    window_steps: int = 4  # env steps a token looks back on, its own included; more costs time

    encoder_channels: int = 32  # widest stage of the image encoder
    mlp_hidden: int = 128  # hidden width of the vector encoder and of every head

    train_text_encoder: bool = False  # also tune a Hugging Face encoder; costs time and memory

    support_size: int = 101  # bins of the value and reward distributions, odd so that 0 is a bin
    support_max: float = 20.0  # largest |h(x)| with a bin; 20 covers returns up to about 430

    def __post_init__(self) -> None:
        for name in ("n_layers", "n_heads", "mlp_ratio", "window_steps", "encoder_channels"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "be at least 1")
        _require(
            self.embed_dim >= SIMNORM_GROUP and self.embed_dim % SIMNORM_GROUP == 0,
            "embed_dim",
            self.embed_dim,
            f"be a positive multiple of {SIMNORM_GROUP}",
        )
        _require(
            self.embed_dim % (2 * self.n_heads) == 0,
            "n_heads",
            self.n_heads,
            f"divide embed_dim={self.embed_dim} into heads of even width",
        )
        _require(self.mlp_hidden >= 1, "mlp_hidden", self.mlp_hidden, "be at least 1")
        _require(
            self.support_size >= 3 and self.support_size % 2 == 1,
            "support_size",
            self.support_size,
            "be odd and at least 3",
        )
        _require(self.support_max > 0.0, "support_max", self.support_max, "be positive")

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.n_heads

    @property
    def receptive_steps(self) -> int:
        """Env steps of raw tokens from which the newest token is recomputed exactly."""
        return self.n_layers * (self.window_steps - 1) + 1


def _require(holds: bool, name: str, value: float, rule: str) -> None:
    if not holds:
        raise ValueError(f"world_model.{name} must {rule}, got {value}")
