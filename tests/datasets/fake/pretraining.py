"""Tiny copies of the sources of pretraining, in the layouts that their cards name as verified."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from data_makers import picture, save, save_geotiff

from fake.expected import Expected

LEFT, RIGHT = (0, 0, 256, 256), (256, 0, 256, 256)


def _tif(path: Path, seed: int, size: tuple[int, int] = (40, 40), channels: int = 3) -> None:
    """An 8-bit GeoTIFF of (height, width)."""
    pixels = picture(seed, size, channels)
    save_geotiff(path, pixels[..., None] if pixels.ndim == 2 else pixels)


def _both_halves(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The two windows of a sample of 256 x 512."""
    return [row | {"window": LEFT}, row | {"window": RIGHT}]


def spacenet6(root: Path) -> Expected:
    """Two tiles of one strip, radar in four float bands, and footprints that nothing reads."""
    area = root / "train" / "AOI_11_Rotterdam"
    rows = []
    for seed, key in enumerate(
        ("20190804111224_20190804111453_tile_8685", "20190822065725_20190822065959_tile_7283")
    ):
        optical = f"train/AOI_11_Rotterdam/PS-RGB/SN6_Train_AOI_11_Rotterdam_PS-RGB_{key}.tif"
        sar = f"train/AOI_11_Rotterdam/SAR-Intensity/SN6_Train_AOI_11_Rotterdam_SAR-Intensity_{key}.tif"
        _tif(root / optical, seed, (256, 512))
        save_geotiff(root / sar, picture(seed + 50, (256, 512), 4).astype(np.float32) / 4)
        footprints = area / "geojson_buildings" / f"SN6_Train_AOI_11_Rotterdam_Buildings_{key}.geojson"
        footprints.parent.mkdir(parents=True, exist_ok=True)
        footprints.write_text("{}")
        rows += _both_halves(
            {"source": "SpaceNet6", "split": "train", "group": key, "optical": optical, "sar": sar}
        )
    return Expected(rows=rows)


def qxs_saropt(root: Path) -> Expected:
    """Three pairs, named by number, in the two folders."""
    rows = []
    for number in (1, 2, 100):
        save(root / "opt_256_oc_0.2" / f"{number}.png", picture(number))
        save(root / "sar_256_oc_0.2" / f"{number}.png", picture(number + 500, channels=1))
        rows.append(
            {
                "source": "QXSLAB_SARPORT",
                "split": "train",
                "group": str(number),
                "optical": f"opt_256_oc_0.2/{number}.png",
                "sar": f"sar_256_oc_0.2/{number}.png",
                "window": None,
            }
        )
    return Expected(rows=rows)


def whu_opt_sar(root: Path) -> Expected:
    """Five scenes of four and of one band; masks in tens, with a background of no class.

    ``default_rng([0, 0])`` permutes the five sorted names to 2, 4, 3, 0, 1, and four fifths are the first
    four: the scene of number 1 is the test part.
    """
    rows = []
    for number in range(5):
        name = f"NH49E{number:03d}013.tif"
        _tif(root / "optical" / name, number, (256, 512), 4)
        _tif(root / "sar" / name, number + 50, (256, 512), 1)
        mask = np.full((256, 512, 1), 10, dtype=np.uint8)
        mask[:, 100:156] = 0
        mask[:, 156:256] = 40
        mask[:26, 256:] = 60
        mask[26:40, 256:] = 70
        save_geotiff(root / "lbl" / name, mask)
        row: dict[str, Any] = {
            "source": "WHU-OPT-SAR",
            "split": "test" if number == 1 else "train",
            "group": f"NH49E{number:03d}013",
            "optical": f"optical/{name}",
            "sar": f"sar/{name}",
            "mask": f"lbl/{name}",
        }
        left, right = _both_halves(row)
        rows += [left | {"label": [0, 3]}, right | {"label": [0, 5]}]
    return Expected(rows=rows)


def _contest(root: Path, source: str, used: tuple[str, ...]) -> Expected:
    """A pair in each of train, val and test, and the annotations that nothing reads."""
    rows = []
    for seed, folder in enumerate(("train", "val", "test")):
        name = f"P{seed:04d}.tif"
        _tif(root / folder / "rgb" / name, seed, (256, 512))
        _tif(root / folder / "sar" / name, seed + 50, (256, 512), 1)
        if folder not in used:
            continue
        rows += _both_halves(
            {
                "source": source,
                "split": "train",
                "group": name.removesuffix(".tif"),
                "optical": f"{folder}/rgb/{name}",
                "sar": f"{folder}/sar/{name}",
            }
        )
    (root / "annotations").mkdir()
    (root / "annotations" / "roof_fine_train.json").write_text("{}")
    return Expected(rows=rows)


def dfc23_track1(root: Path) -> Expected:
    """The test part is left out."""
    return _contest(root, "DFC23_Track1", ("train", "val"))


def dfc23_track2(root: Path) -> Expected:
    """All parts are for pretraining."""
    return _contest(root, "DFC23_Track2", ("train", "val", "test"))


def oem_sar(root: Path) -> Expected:
    """Two training pairs with labels, and a validation image that is radar alone."""
    rows = []
    for number in (1, 379):
        name = f"TrainArea_{number}.tif"
        _tif(root / "train" / "rgb_images" / name, number, (256, 512))
        _tif(root / "train" / "sar_images" / name, number + 50, (256, 512), 1)
        _tif(root / "train" / "labels" / name, number + 90, (256, 512), 1)
        rows += _both_halves(
            {
                "source": "DFC25",
                "split": "train",
                "group": name.removesuffix(".tif"),
                "optical": f"train/rgb_images/{name}",
                "sar": f"train/sar_images/{name}",
            }
        )
    _tif(root / "val" / "sar_images" / "ValArea_1.tif", 7, (256, 512), 1)
    return Expected(rows=rows)


def earthmiss(root: Path) -> Expected:
    """Two cities, each with an image of the same name; one radar image lacks the tag in its name."""
    rows = []
    for seed, (city, key, tag) in enumerate(
        (("Nanjing", "1", "_SAR"), ("Nanjing", "2", ""), ("French-Paris", "1", "_SAR"))
    ):
        _tif(root / city / "images" / "RGB" / f"{key}.tif", seed, (256, 512))
        _tif(root / city / "images" / "SAR" / f"{key}{tag}.tif", seed + 50, (256, 512), 1)
        _tif(root / city / "masks" / f"{key}_mask.tif", seed + 90, (256, 512), 1)
        rows += _both_halves(
            {
                "source": "EarthMiss",
                "split": "train",
                "group": city,
                "optical": f"{city}/images/RGB/{key}.tif",
                "sar": f"{city}/images/SAR/{key}{tag}.tif",
            }
        )
    return Expected(rows=rows)


def osdataset2(root: Path) -> Expected:
    """The patch-level subset: both sides of a pair in one folder, numbers that begin anew in each part."""
    rows = []
    for seed, (part, number) in enumerate((("train", 1), ("train", 2), ("val", 1), ("test", 1))):
        folder = f"Patch-level Subset/OSdataset/512/{part}"
        save(root / folder / f"opt{number}.png", picture(seed, (256, 512), 1))
        save(root / folder / f"sar{number}.png", picture(seed + 50, (256, 512), 1))
        rows += _both_halves(
            {
                "source": "osdataset",
                "split": "train",
                "group": f"{part}/{number}",
                "optical": f"{folder}/opt{number}.png",
                "sar": f"{folder}/sar{number}.png",
            }
        )
    return Expected(rows=rows)


def fair1m(root: Path) -> Expected:
    """Two training parts and a validation part with annotations, and a test part, which is left out."""
    rows = []
    for seed, (folder, split, group) in enumerate(
        (
            ("train/part1", "train", "train"),
            ("train/part2", "train", "train"),
            ("validation", "val", "validation"),
            ("test", "", ""),
        )
    ):
        _tif(root / folder / "images" / f"{seed}.tif", seed, (256, 512))
        if folder == "test":
            continue
        (root / folder / "labelXml").mkdir(parents=True)
        (root / folder / "labelXml" / f"{seed}.xml").write_text("<annotation/>")
        rows += _both_halves(
            {
                "source": "FAIR1M",
                "split": split,
                "group": f"{group}/{seed}",
                "optical": f"{folder}/images/{seed}.tif",
                "sar": None,
            }
        )
    return Expected(rows=rows)


def atrnet_star(root: Path) -> Expected:
    """Chips of two types in the training and in the test part, an XML file beside each."""
    rows = []
    for seed, (split, kind) in enumerate(
        (
            ("train", "Buick_Excelle_GT"),
            ("train", "Jeep_Patriot"),
            ("test", "Buick_Excelle_GT"),
            ("test", "Jeep_Patriot"),
        )
    ):
        path = f"SOC_40classes/{split}/{kind}/chip{seed}.tif"
        save(root / path, picture(seed, 48, 1))
        (root / path).with_suffix(".xml").write_text("<annotation/>")
        rows.append(
            {
                "source": "ATRNet-STAR",
                "split": split,
                "group": f"{kind}/chip{seed}",
                "optical": None,
                "sar": path,
                "window": None,
            }
        )
    return Expected(rows=rows)


def sen12ms(root: Path) -> Expected:
    """Two seasons with a scene of the same number; 13 bands of 16 bits, and two bands in decibels."""
    rows = []
    for seed, (season, scene, patch) in enumerate(
        (("ROIs1158_spring", "1", "p30"), ("ROIs1158_spring", "1", "p31"), ("ROIs2017_winter", "1", "p30"))
    ):
        optical = f"{season}/s2_{scene}/{season}_s2_{scene}_{patch}.tif"
        sar = f"{season}/s1_{scene}/{season}_s1_{scene}_{patch}.tif"
        save_geotiff(root / optical, picture(seed, 32, 13).astype(np.uint16) * 20)
        save_geotiff(root / sar, -picture(seed + 50, 32, 2).astype(np.float32) / 10)
        _tif(root / season / f"lc_{scene}" / f"{season}_lc_{scene}_{patch}.tif", seed + 90, (32, 32), 4)
        rows.append(
            {
                "source": "SEN12MS",
                "split": "train",
                "group": f"{season}_{scene}",
                "optical": optical,
                "sar": sar,
                "window": None,
            }
        )
    return Expected(rows=rows)


def millionaid(root: Path) -> Expected:
    """Training images two and three classes deep, test images of a flat folder."""
    paths = (
        "train/water_area/lake/P0000001.jpg",
        "train/agriculture_land/arable_land/dry_field/P0000002.jpg",
        "test/P0000003.jpg",
    )
    rows = []
    for seed, path in enumerate(paths):
        save(root / path, picture(seed, 48))
        rows.append(
            {
                "source": "MillionAID",
                "split": "train",
                "group": path.removesuffix(".jpg"),
                "optical": path,
                "sar": None,
                "window": None,
            }
        )
    return Expected(rows=rows)


def ddhr(root: Path) -> Expected:
    """Two cities that number their images alike, one of them deeper, and the benchmark's city."""
    rows = []
    for seed, (area, number, used) in enumerate(
        (
            ("xian/", 1, True),
            ("xian/", 25, True),
            ("dongying/256/", 1, True),
            ("korea/256_cloud/", 1, False),
        )
    ):
        optical, sar = f"{area}GF2/{number}.jpg", f"{area}GF3/{number}.jpg"
        save(root / optical, picture(seed))
        save(root / sar, picture(seed + 50, channels=1))
        save(root / area / "label" / f"{number}.png", picture(seed + 90, channels=1))
        if used:
            rows.append(
                {
                    "source": "DDHR",
                    "split": "train",
                    "group": f"{area}{number}",
                    "optical": optical,
                    "sar": sar,
                    "window": None,
                }
            )
    (root / "xian" / "trainM_list.txt").write_text("xian/GF2/1.jpg xian/GF3/1.jpg xian/label/1.png\n")
    return Expected(rows=rows)


def ospretrain_1m(root: Path) -> Expected:
    """A source whose test list is held back, one whose is not, one left out, and the unpaired pool."""
    rows = []
    listed = {
        "DDHR": {"train": ["1", "2.png"], "test": ["3"]},
        "EarthMiss": {"train": ["a"], "val": ["b"], "test": ["c"]},
        "SS4EO-S12": {"train": ["x"]},
    }
    for source, lists in listed.items():
        for split, names in lists.items():
            for seed, name in enumerate(names):
                stem = name.removesuffix(".png")
                paths = {"optical": f"{source}/RGB/{stem}.png", "sar": f"{source}/SAR/{stem}.png"}
                save(root / paths["optical"], picture(seed))
                save(root / paths["sar"], picture(seed + 50, channels=1))
                use = "test" if (source, split) == ("DDHR", "test") else "train"
                if source != "SS4EO-S12":
                    rows.append({"source": source, "split": use, "group": stem, **paths})
            (root / source / f"{split}.txt").write_text("\n".join(names))
    for side, folder in (("optical", "RGB"), ("sar", "SAR")):
        for name in ("7", "8"):
            path = f"Unpaired/{folder}/{name}.png"
            save(root / path, picture(int(name), channels=3 if side == "optical" else 1))
            group = f"{folder}/{name}"
            rows.append({"source": "Unpaired", "split": "train", "group": group, side: path})
    return Expected(rows=rows)


FAKES: dict[str, Callable[[Path], Expected]] = {
    "spacenet6": spacenet6,
    "qxs_saropt": qxs_saropt,
    "ddhr": ddhr,
    "whu_opt_sar": whu_opt_sar,
    "dfc23_track1": dfc23_track1,
    "dfc23_track2": dfc23_track2,
    "oem_sar": oem_sar,
    "earthmiss": earthmiss,
    "osdataset2": osdataset2,
    "fair1m": fair1m,
    "atrnet_star": atrnet_star,
    "sen12ms": sen12ms,
    "millionaid": millionaid,
    "ospretrain_1m": ospretrain_1m,
}
