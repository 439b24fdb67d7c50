"""The archive that LoveDA's server takes: a flat ZIP of one PNG an image, written and checked."""

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from segment_predict import predict_logits
from segment_scene import reader_facts, standardised

from codemae.data.images import ImageError, Location, as_read, read_picture, size_of


class SubmissionError(ValueError):
    """The images are not those the server asks for, or the archive is not what it takes."""


def write_submission(model: Any, images: Path, archive: Path, rules: Mapping[str, Any]) -> int:
    """Predicts every PNG below a folder and writes the archive, whole or not at all; returns how many.

    Args:
        model: Trained, of one modality.
        images: Folder; LoveDA's ``Test`` holds Urban/images_png and Rural/images_png.
        archive: ZIP to write.
        rules: ``first_value`` of the classes in the PNGs, ``side`` of the images and how many ``images``.

    Raises:
        SubmissionError: Names occur twice, an image has another size, or there are more or fewer images.
        ImageError: An image cannot be read.
    """
    paths = sorted(images.rglob("*.png"))
    names = [path.name for path in paths]
    if len(paths) != rules["images"] or len(set(names)) != len(names):
        raise SubmissionError(
            f"{images} holds {len(set(names))} differently named PNG images, the server asks for "
            f"{rules['images']}: name the folder Test with Urban/images_png and Rural/images_png"
        )
    facts = reader_facts(model)
    if len(facts) != 1:
        raise SubmissionError("a submission is made by a model of one modality")
    statistics = next(iter(facts.values()))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).eval()
    archive.parent.mkdir(parents=True, exist_ok=True)
    partial = archive.with_name(f".{archive.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as file:
            for path in paths:
                picture = as_read(read_picture(Location(str(path))), statistics)
                if size_of(picture) != (rules["side"], rules["side"]):
                    raise SubmissionError(
                        f"{path} is {size_of(picture)}, the server takes {rules['side']} px"
                    )
                logits = predict_logits(model, standardised(np.asarray(picture), statistics)[None])
                classes = logits[0].argmax(dim=0).cpu().numpy() + rules["first_value"]
                buffer = io.BytesIO()
                Image.fromarray(classes.astype(np.uint8)).save(buffer, "PNG")
                file.writestr(path.name, buffer.getvalue())
        check_archive(partial, names, rules, len(model.dataset_meta["classes"]))
        os.replace(partial, archive)
    finally:
        partial.unlink(missing_ok=True)
    return len(paths)


def check_archive(archive: Path, names: list[str], rules: Mapping[str, Any], classes: int) -> None:
    """Reads an archive back: flat, the names asked for, one band of bytes, size and values.

    Raises:
        SubmissionError: It is not what the server takes; the message names the entry.
    """
    low, high = rules["first_value"], rules["first_value"] + classes - 1
    with zipfile.ZipFile(archive) as file:
        held = file.namelist()
        if any("/" in name for name in held):
            raise SubmissionError(f"{archive} has folders in it; the server takes a flat archive")
        if sorted(held) != sorted(names):
            odd = sorted(set(held) ^ set(names))[:3]
            raise SubmissionError(f"{archive} lacks or adds {', '.join(odd) or 'copies of names'}")
        for name in held:
            try:
                with Image.open(io.BytesIO(file.read(name))) as opened:
                    mode, values = opened.mode, np.asarray(opened)
            except OSError as error:
                raise ImageError(f"{archive}/{name}: {error}") from None
            if mode != "L" or values.shape != (rules["side"], rules["side"]):
                raise SubmissionError(f"{archive}/{name} is {mode} of {values.shape}, not one band of bytes")
            if values.min() < low or values.max() > high:
                raise SubmissionError(f"{archive}/{name} holds values outside {low} to {high}")
