"""Teacher tokens cached on disk, so that later runs need neither the teacher's weights nor its time.

vault/
  vault.json      what was cached: teacher, input size, grid, index hash; written last
  tokens.f16      (images, h, w, dim) float16, read memory-mapped
  slots.npy       index row -> place in tokens.f16, -1 where the row has none
  unreadable.txt  images that could not be read, if any
  error.json      how far the cached tokens are from live ones, where that was measured
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.ops import roi_align

from codemae.data.batch import Batch
from codemae.data.crops import Crop, take_crop
from codemae.data.dataset import Draw, PairDataset
from codemae.data.images import ImageError, SceneCache, as_read, read_window, size_of
from codemae.data.index import Index
from codemae.data.views import View, Views
from codemae.downloads import file_hash
from codemae.models.teacher import Teacher, TeacherConfig, TeacherError, TokenSource, finish_tokens
from codemae.models.timm_features import to_tokens

log = logging.getLogger(__name__)

DESCRIPTION, TOKENS, SLOTS, PROGRESS = "vault.json", "tokens.f16", "slots.npy", "progress.json"
ERROR = "error.json"
FLOAT16_MAX = 65504.0


@dataclass(frozen=True, kw_only=True)
class VaultDescription:
    """What a vault holds.

    Attributes:
        key: Hash of all that decides its content.
        teacher: The teacher's config fields that decide its tokens.
        modality: Whose images were shown to it.
        size: Side in pixels the whole images were resized to.
        grid: Height and width of a cached token grid.
        splits: Widths of the feature maps that make a token.
        total_rows: Rows of the index, all splits.
        index_hash: Split hash of the index.
        licence_notes: The teacher's terms, which reach distilled weights.
    """

    key: str
    teacher: dict[str, Any]
    modality: str
    size: int
    grid: list[int]
    splits: list[int]
    total_rows: int
    index_hash: str
    licence_notes: list[str]


class VaultTeacher:
    """Cached teacher tokens behind the live teacher's interface.

    The tokens of a crop are read off the whole image's grid by RoIAlign. They differ from live ones: the
    teacher saw the whole image at one scale, not the crop at its own. ``vault_error`` measures by how much;
    for EfficientNet-Lite0 on crops of a fifth to the whole of 256-px scenes the cosine is about 0.7, best
    where the whole image is shown at about 1.2 times the crop's side.

    Args:
        folder: A folder that ``build_vault`` wrote.
        config: What the run asks for; None takes the vault as it is, tokens not normalised.
            ``input_size`` and ``weights`` are compared where they are set and there.

    Raises:
        TeacherError: The folder is no finished vault, or one of another teacher.
    """

    def __init__(self, folder: str | Path, config: TeacherConfig | None = None) -> None:
        self.folder = Path(folder)
        if not (self.folder / DESCRIPTION).is_file():
            state = "is not finished" if (self.folder / PROGRESS).is_file() else "is no teacher vault"
            raise TeacherError(
                f"{self.folder} {state}; run: python pretrain/build_vault.py --data.index DIR "
                f"--out {self.folder}"
            )
        self.description = VaultDescription(**json.loads((self.folder / DESCRIPTION).read_text()))
        if config is not None:
            self._check_teacher(config)
        self.normalize_output = config is not None and config.normalize_output
        self.splits = self.description.splits
        self.dim = sum(self.splits)
        self.licence_notes = list(self.description.licence_notes)
        self._slots = np.load(self.folder / SLOTS, mmap_mode="r")
        h, w = self.description.grid
        count = int(self._slots.max()) + 1
        expected = count * h * w * self.dim * 2
        if (found := (self.folder / TOKENS).stat().st_size) != expected:
            raise TeacherError(
                f"{self.folder / TOKENS} has {found} bytes instead of {expected}; build the vault again"
            )
        self._tokens = np.memmap(
            self.folder / TOKENS, dtype=np.float16, mode="r", shape=(count, h, w, self.dim)
        )

    def _check_teacher(self, config: TeacherConfig) -> None:
        if config.weights and not Path(config.weights).is_file():
            # The vault stands in for them; a run must be able to go on after they were deleted.
            log.warning("%s is not there to be compared with what built %s", config.weights, self.folder)
            config = replace(config, weights=None)
        asked, cached = _teacher_fields(config), self.description.teacher
        compared = ["name", "pretrained", "features", "out_index"]
        compared += [name for name in ("input_size", "weights") if asked[name] is not None]
        differing = [name for name in compared if asked[name] != cached[name]]
        if differing:
            by_hash = " (of weights: their hash)" if "weights" in differing else ""
            raise TeacherError(
                f"{self.folder} was built with {_listed(cached, differing)}, this run asks for "
                f"{_listed(asked, differing)}{by_hash}; change method.okd.teacher or build another vault"
            )

    def check_index(self, index: Index) -> None:
        """Makes sure the row numbers of a run mean what they meant when the vault was built.

        Raises:
            TeacherError: It was built for other samples.
        """
        if index.hash() != self.description.index_hash or index.total_rows != self.description.total_rows:
            raise TeacherError(
                f"{self.folder} was built for another index or split ({self.description.index_hash}, not "
                f"{index.hash()}); run: python pretrain/build_vault.py "
                f"--data.index {','.join(index.folders)} --out NEW_DIR"
            )

    def tokens(self, batch: Batch, view: str, grid: tuple[int, int]) -> Tensor:
        """Target tokens (B, h * w, dim) of one view, float32, on the batch's device.

        Raises:
            TeacherError: The vault holds another modality, or not these rows.
        """
        modality = batch.modalities[view]
        if modality != self.description.modality:
            raise TeacherError(
                f"{self.folder} holds {self.description.modality} tokens, {view} is {modality}"
            )
        maps = self.maps(batch.rows[modality]).to(batch.images[view].device, non_blocking=True)
        cropped = crop_maps(maps.float(), batch.crops[view], batch.source_sizes[view], grid)
        return finish_tokens(to_tokens(cropped), self.splits, self.normalize_output)

    def maps(self, rows: Tensor) -> Tensor:
        """Cached whole-image tokens of index rows: (B, dim, h, w) float16 on the CPU."""
        slots = self._slots[rows.cpu().numpy()]
        if (slots < 0).any():
            missing = rows.cpu().numpy()[slots < 0].tolist()
            raise TeacherError(f"{self.folder} holds no tokens of rows {missing}; see unreadable.txt there")
        return torch.from_numpy(self._tokens[slots]).permute(0, 3, 1, 2)


def crop_maps(maps: Tensor, crops: Tensor, source_sizes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Reads the crops of images off the images' token grids.

    Args:
        maps: (B, D, gh, gw), each the grid of a whole image.
        crops: (B, 5): top, left, height, width in source pixels; flips 1 horizontal, 2 vertical, 3 both.
        source_sizes: (B, 2) height and width of the source images.
        grid: Wanted (h, w).

    Returns:
        (B, D, h, w), mirrored as the crops are.
    """
    gh, gw = maps.shape[-2:]
    top, left, height, width, flips = crops.to(maps.device, maps.dtype).unbind(1)
    source_h, source_w = source_sizes.to(maps.device, maps.dtype).unbind(1)
    down, across = gh / source_h, gw / source_w
    corners = [left * across, top * down, (left + width) * across, (top + height) * down]
    boxes = torch.stack([torch.arange(len(maps), device=maps.device, dtype=maps.dtype), *corners], dim=1)
    cropped = roi_align(maps, boxes, output_size=grid, aligned=True)
    horizontal = (flips % 2 == 1)[:, None, None, None]
    vertical = (flips >= 2)[:, None, None, None]
    cropped = torch.where(horizontal, cropped.flip(3), cropped)
    return torch.where(vertical, cropped.flip(2), cropped)


@dataclass(frozen=True, kw_only=True)
class VaultError:
    """How far cached tokens are from live ones, averaged over tokens.

    Attributes:
        relative_l2: |cached - live| / |live|, norms over the token's width.
        cosine: Cosine between the two.
        tokens: Tokens compared.
    """

    relative_l2: float
    cosine: float
    tokens: int


def vault_error(
    cached: TokenSource, live: TokenSource, batches: Iterable[Batch], view: str, grid: tuple[int, int]
) -> VaultError:
    """Measures the difference between cached and live tokens on the crops of some batches."""
    distance = cosine = 0.0
    count = 0
    for batch in batches:
        a, b = cached.tokens(batch, view, grid), live.tokens(batch, view, grid)
        if a.shape != b.shape:
            raise ValueError(f"cached tokens are {tuple(a.shape)}, live ones {tuple(b.shape)}")
        distance += float(((a - b).norm(dim=-1) / b.norm(dim=-1).clamp_min(1e-12)).sum())
        cosine += float(torch.cosine_similarity(a, b, dim=-1).sum())
        count += a.shape[0] * a.shape[1]
    if not count:
        raise ValueError("no batch to measure the vault's error on")
    return VaultError(relative_l2=distance / count, cosine=cosine / count, tokens=count)


def measure_vault(
    folder: str | Path,
    teacher: Teacher,
    index: Index,
    *,
    crop_size: int,
    patch_size: int = 16,
    samples: int = 64,
) -> VaultError:
    """Measures a vault's error on random crops of the index's images and keeps it in ``error.json``."""
    cached = VaultTeacher(folder, teacher.config)
    modality = cached.description.modality
    every = index.rows_with(modality)
    rows = every[np.linspace(0, len(every) - 1, min(samples, len(every))).astype(int)]
    dataset = PairDataset(index, Views({modality: View(modality=modality, size=crop_size)}), seed=0)
    draws = [Draw(0, 0, int(row), int(row), False) for row in rows]
    batches = (dataset.collate([dataset[draw]]).to(teacher.extractor.mean.device) for draw in draws)
    grid = (crop_size // patch_size,) * 2
    error = vault_error(cached, teacher, batches, modality, grid)
    _write_text(Path(folder) / ERROR, json.dumps(asdict(error) | {"crop_size": crop_size}))
    return error


class _WholeImages(Dataset[tuple[int, Tensor | str]]):
    """Every image of one modality as the teacher shall see it: resized whole, in [0, 1]."""

    def __init__(self, index: Index, rows: np.ndarray, modality: str, size: int) -> None:
        self.index, self.rows, self.modality, self.size = index, rows, modality, size
        self._cache = SceneCache(256 << 20)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> tuple[int, Tensor | str]:
        row = int(self.rows[place])
        statistics = self.index.stats(self.index.source(row), self.modality)
        try:
            picture = read_window(
                self.index.location(row, self.modality), self.index.window(row), self._cache
            )
            picture = as_read(picture, statistics)
        except ImageError as error:
            return row, f"{self.index.describe(row, self.modality)}: {error}"
        as_bytes = statistics.pixels == "uint8"
        fill = np.array(statistics.mean, dtype=np.float32)
        pixels = take_crop(
            picture, Crop(0, 0, *size_of(picture)), self.size, statistics.scaling, fill, as_bytes
        )
        unit = torch.from_numpy(np.array(pixels)).float()
        return row, unit / 255 if as_bytes else unit.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def build_vault(
    index: Index,
    teacher: Teacher,
    out_dir: str | Path,
    *,
    size: int,
    modality: str = "optical",
    batch_size: int = 32,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    save_every: int = 50,
) -> VaultDescription:
    """Caches the tokens of every selected image of one modality.

    Interrupted at any moment, the same call goes on from the last saved batch; ``vault.json`` appears only
    when all is on disk.

    Args:
        index: Whose selected rows.
        teacher: The live teacher.
        out_dir: Where to; empty, or an unfinished vault of the same teacher and index.
        size: Side the whole images are resized to; larger ones keep more detail for small crops.
        modality: Which side of the samples.
        batch_size: Images at a time.
        num_workers: Processes that read images.
        device: Where the teacher runs.
        save_every: Batches between points from which an interrupted build goes on.

    Raises:
        TeacherError: The folder belongs to another vault.
    """
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    teacher.to(device)
    blank = torch.zeros(1, 3, size, size, device=device)
    finest = teacher.feature_maps(blank)[0]
    grid = (int(finest.shape[-2]), int(finest.shape[-1]))
    content: dict[str, Any] = {
        "teacher": _teacher_fields(teacher.config),
        "modality": modality,
        "size": size,
        "grid": list(grid),
        "splits": list(teacher.splits),
        "total_rows": index.total_rows,
        "index_hash": index.hash(),
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    description = VaultDescription(key=key, licence_notes=teacher.licence_notes, **content)
    if (folder / DESCRIPTION).is_file():
        _check_same(folder, json.loads((folder / DESCRIPTION).read_text())["key"], key)
        return description

    rows = index.rows_with(modality)
    done, written, unreadable, slots = _resume(folder, key, index.total_rows)
    bytes_each = 2 * math.prod(grid) * teacher.dim
    dataset = _WholeImages(index, rows[done:], modality, size)
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=list)
    with (folder / TOKENS).open("r+b" if (folder / TOKENS).exists() else "w+b") as file:
        file.truncate(written * bytes_each)
        file.seek(0, os.SEEK_END)
        for number, samples in enumerate(loader, 1):
            read = [(row, image) for row, image in samples if isinstance(image, Tensor)]
            unreadable += [image for _, image in samples if isinstance(image, str)]
            if read:
                images = torch.stack([image for _, image in read]).to(device)
                tokens = teacher.raw(images, grid).permute(0, 2, 3, 1).clamp(-FLOAT16_MAX, FLOAT16_MAX)
                file.write(tokens.half().cpu().contiguous().numpy().tobytes())
                slots[[row for row, _ in read]] = np.arange(written, written + len(read))
            done, written = done + len(samples), written + len(read)
            if number % save_every == 0 or done == len(rows):
                file.flush()
                os.fsync(file.fileno())
                _write(folder / SLOTS, lambda f: np.save(f, slots))
                progress = {"key": key, "done": done, "written": written, "unreadable": unreadable}
                _write_text(folder / PROGRESS, json.dumps(progress))
                log.info("teacher vault: %d of %d images", done, len(rows))
    if not written:
        raise TeacherError(f"none of the {len(rows)} {modality} images of the index could be read")
    if unreadable:
        _write_text(folder / "unreadable.txt", "\n".join(unreadable) + "\n")
    _write_text(folder / DESCRIPTION, json.dumps(asdict(description), indent=1))
    (folder / PROGRESS).unlink()
    return description


def _resume(folder: Path, key: str, total_rows: int) -> tuple[int, int, list[str], np.ndarray]:
    """Images done, tokens written, sentences about unreadable ones, and slots of an unfinished build."""
    nothing = np.full(total_rows, -1, dtype=np.int64)
    if not (folder / PROGRESS).is_file():
        if (folder / TOKENS).exists():
            raise TeacherError(
                f"{folder} holds token files of unknown origin; empty it or choose another --out"
            )
        _write_text(folder / PROGRESS, json.dumps({"key": key, "done": 0, "written": 0, "unreadable": []}))
        return 0, 0, [], nothing
    progress = json.loads((folder / PROGRESS).read_text())
    _check_same(folder, progress["key"], key)
    if not progress["done"]:
        return 0, 0, [], nothing
    slots = np.load(folder / SLOTS)
    slots[slots >= progress["written"]] = -1
    return progress["done"], progress["written"], progress["unreadable"], slots


def _check_same(folder: Path, found: str, wanted: str) -> None:
    if found != wanted:
        raise TeacherError(
            f"{folder} belongs to a vault of another teacher, size or index ({found}, not {wanted}); "
            "choose another --out"
        )


def _teacher_fields(config: TeacherConfig) -> dict[str, Any]:
    fields = {name: getattr(config, name) for name in ("name", "pretrained", "input_size", "out_index")}
    fields["features"] = config.resolved_features
    fields["weights"] = file_hash(config.weights)[:16] if config.weights else None
    return fields


def _listed(fields: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name}={fields[name]!r}" for name in names)


def _write_text(path: Path, text: str) -> None:
    _write(path, lambda file: file.write(text.encode()))


def _write(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
