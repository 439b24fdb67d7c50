"""Caches a teacher's tokens of an index: python pretrain/build_vault.py --data.index DIR --out DIR.

The teacher is named as in a pretraining config: --teacher.name efficientnet_lite0, --teacher.weights FILE.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from codemae.config import load_config
from codemae.data.index import open_index
from codemae.models.teacher import Teacher, TeacherConfig, build_teacher
from codemae.models.vault import build_vault, measure_vault


@dataclass(kw_only=True)
class VaultData:
    """Whose images.

    Attributes:
        index: Index folders, the same in the same order as the run's.
        split: Splits, the same as the run's; all when not given.
    """

    index: list[str]
    split: list[str] | None = None


@dataclass(kw_only=True)
class BuildVaultConfig:
    """What to cache and where.

    Attributes:
        data: The images.
        out: Folder of the vault.
        teacher: The teacher.
        size: Side the whole images are resized to for the teacher; about 1.2 times the crop's is best.
        crop_size: Side of the student's crops, on which the difference to live tokens is measured.
        batch_size: Images at a time.
        num_workers: Processes that read images.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    data: VaultData
    out: str
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    size: int = 256
    crop_size: int = 224
    batch_size: int = 32
    num_workers: int = 2
    device: str = "auto"


def main(argv: Sequence[str] | None = None) -> None:
    """Builds the vault, or goes on with one that was interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = load_config(BuildVaultConfig, argv, description=__doc__ or "")
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    index = open_index(config.data.index, config.data.split)
    teacher = build_teacher(config.teacher)
    if not isinstance(teacher, Teacher):
        raise SystemExit("error: teacher.vault is set; a vault is built from a live teacher")
    description = build_vault(
        index,
        teacher,
        config.out,
        size=config.size,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        device=device,
    )
    error = measure_vault(config.out, teacher, index, crop_size=config.crop_size)
    print(
        f"cached against live tokens on {error.tokens} tokens of random {config.crop_size}-px crops: "
        f"relative L2 {error.relative_l2:.3f}, cosine {error.cosine:.3f}"
    )
    print(f"vault {description.key} in {config.out}; use it with --method.okd.teacher.vault {config.out}")


if __name__ == "__main__":
    main()
