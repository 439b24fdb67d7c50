"""Checkpoints in other projects' layouts, written key by key as their authors' models name them."""

import numpy as np
import torch
from torch import Tensor

WIDTH, FPN, STEM, ATTENTION = 192, 96, 1, 4  # hivit_tiny
SIDE = 32
TEACHER_WIDTH, DECODER = 192, 64


def sincos_as_in_mae(width: int, side: int) -> Tensor:
    def axis(positions: np.ndarray) -> np.ndarray:
        omega = 1.0 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4.0))
        out = np.outer(positions, omega)
        return np.concatenate([np.sin(out), np.cos(out)], axis=1)

    columns, rows = np.meshgrid(np.arange(side, dtype=np.float32), np.arange(side, dtype=np.float32))
    return torch.from_numpy(np.concatenate([axis(columns.ravel()), axis(rows.ravel())], 1)).float()[None]


class File:
    """Random tensors under given names."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.state: dict[str, Tensor] = {}

    def tensor(self, key: str, *shape: int) -> None:
        self.state[key] = torch.randn(shape, generator=self.generator)

    def affine(self, key: str, *shape: int, bias: bool = True) -> None:
        self.tensor(f"{key}.weight", *shape)
        if bias:
            self.tensor(f"{key}.bias", shape[0])

    def block(self, key: str, dim: int, attention: bool, ratio: float = 4) -> None:
        if attention:
            self.affine(f"{key}.norm1", dim)
            self.affine(f"{key}.attn.qkv", 3 * dim, dim)
            self.affine(f"{key}.attn.proj", dim, dim)
        self.affine(f"{key}.norm2", dim)
        self.affine(f"{key}.mlp.fc1", int(ratio * dim), dim)
        self.affine(f"{key}.mlp.fc2", dim, int(ratio * dim))

    def patch_embed(self, key: str) -> None:
        self.affine(f"{key}.proj", WIDTH // 4, 3, 4, 4)
        self.affine(f"{key}.norm", WIDTH // 4)

    def trunk(self, stem: int = STEM, attention: int = ATTENTION, width: int = WIDTH) -> None:
        self.tensor("absolute_pos_embed", 1, (SIDE // 16) ** 2, width)
        number = 0
        for dim in (width // 4, width // 2):
            for _ in range(stem):
                self.block(f"blocks.{number}", dim, attention=False, ratio=3)
                number += 1
            self.affine(f"blocks.{number}.norm", 4 * dim)
            self.affine(f"blocks.{number}.reduction", 2 * dim, 4 * dim, bias=False)
            number += 1
        for _ in range(attention):
            self.block(f"blocks.{number}", width, attention=True)
            number += 1

    def pyramid(self, depth: int = 1) -> None:
        self.affine("align_dim_16tofpn", FPN, WIDTH)
        for level in range(3):
            self.block(f"fpn_modules.{level}", FPN, attention=False)
        for name, side_width, width in (("16to8", WIDTH // 2, WIDTH), ("8to4", WIDTH // 4, FPN)):
            self.affine(f"align_dim_{name}", FPN, side_width, bias=False)
            self.affine(f"split_{name}.norm", width)
            self.affine(f"split_{name}.reduction", 4 * FPN, width, bias=False)
            for number in range(depth):
                self.block(f"block_{name}.{number}", FPN, attention=False)

    def decoder(self, suffix: str, values: int, depth: int = 2) -> None:
        self.tensor(f"mask_token{suffix}", 1, 1, DECODER)
        for number in range(depth):
            self.block(f"decoder_blocks{suffix}.{number}", DECODER, attention=True)
        self.affine(f"decoder_norm{suffix}", DECODER)
        self.affine(f"decoder_pred{suffix}", values, DECODER)

    def decoder_embed(self) -> None:
        for level in range(3):
            self.affine(f"decoder_embed.{level}.0", FPN)
            self.affine(f"decoder_embed.{level}.1", DECODER // 4**level, FPN)
        self.state["decoder_pos_embed"] = sincos_as_in_mae(DECODER, SIDE // 16)


def itpn_file(pyramid_depth: int = 1) -> dict[str, Tensor]:
    file = File()
    file.patch_embed("patch_embed")
    file.trunk()
    file.pyramid(pyramid_depth)
    file.decoder_embed()
    file.decoder("", 768)
    return file.state


def hivit_file(classifier: bool = False) -> dict[str, Tensor]:
    file = File()
    file.patch_embed("patch_embed")
    file.trunk()
    if classifier:
        file.affine("fc_norm", WIDTH)
        file.affine("head", 10, WIDTH)
    else:
        file.affine("norm", 7 * WIDTH)
        file.affine("decoder_embed", DECODER, 7 * WIDTH)
        file.decoder("", 768)
        file.tensor("decoder_pos_embed", 1, 4, DECODER)
    return file.state


def codemae_file() -> dict[str, Tensor]:
    file = File()
    file.patch_embed("patch_embed_rgb")
    file.patch_embed("patch_embed_sar")
    file.trunk()
    file.pyramid()
    file.decoder_embed()
    file.decoder("", 768)
    file.decoder("_cross", 256)
    file.affine("lm_head", TEACHER_WIDTH, DECODER)
    file.affine("norm", DECODER)
    file.affine("lm_cls_head", TEACHER_WIDTH, WIDTH)
    file.affine("norm_cls", WIDTH)
    for number in range(2):
        file.block(f"cls_pt_layers.{number}", WIDTH, attention=True)
    for side in ("rgb", "sar"):
        root = f"contrastive_loss.crossattn_{side}.cattn"
        file.affine(f"{root}.n_q", DECODER)
        file.affine(f"{root}.n_kv", DECODER)
        file.affine(f"{root}.q", DECODER, DECODER)
        file.affine(f"{root}.kv", 2 * DECODER, DECODER)
        file.affine(f"{root}.proj", DECODER, DECODER)
    return file.state
