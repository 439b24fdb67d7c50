"""Small copies of benchmarks in their real layouts, and the rows that each has to become."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from data_makers import picture, save, save_geotiff
from PIL import Image

from fake.expected import Expected

Maker = Callable[[Path], Expected]

_POTSDAM = {
    "train": "2_10 2_11 2_12 3_10 3_11 3_12 4_10 4_11 4_12 5_10 5_11 5_12 "
    "6_7 6_8 6_9 6_10 6_11 6_12 7_7 7_8 7_9 7_10 7_11 7_12",
    "test": "2_13 2_14 3_13 3_14 4_13 4_14 4_15 5_13 5_14 5_15 6_13 6_14 6_15 7_13",
}
_VAIHINGEN = {
    "train": "1 3 5 7 11 13 15 17 21 23 26 28 30 32 34 37",
    "test": "2 4 6 8 10 12 14 16 20 22 24 27 29 31 33 35 38",
}
_GEONRW = {
    "train": "aachen bergisch bielefeld bochum bonn borken bottrop coesfeld dortmund dueren duisburg "
    "ennepetal erftstadt essen euskirchen gelsenkirchen guetersloh hagen hamm heinsberg herford hoexter "
    "kleve koeln krefeld leverkusen lippetal lippstadt lotte moenchengladbach moers muelheim "
    "muenster oberhausen paderborn recklinghausen remscheid siegen solingen wuppertal",
    "test": "duesseldorf herne neuss",
}
_WHITE, _BLUE = (255, 255, 255), (0, 0, 255)


def _lines(path: Path, names: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def _array(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)


def _halves(upper: Any, lower: Any, size: int = 32) -> np.ndarray:
    """A mask with one value in its upper and another in its lower half."""
    mask = np.empty((size, size) if np.isscalar(upper) else (size, size, 3), np.uint8)
    mask[: size // 2], mask[size // 2 :] = upper, lower
    return mask


def _probe(source: str, masks: Mapping[str, tuple[np.ndarray, list[int]]]) -> Maker:
    """RGB, SAR and Label of PNG files; lists with and without a suffix; the last sample is a test row."""

    def make(root: Path) -> Expected:
        rows = []
        *train, test = masks
        for seed, (name, (mask, label)) in enumerate(masks.items()):
            save(root / "RGB" / f"{name}.png", picture(seed))
            save(root / "SAR" / f"{name}.png", picture(100 + seed, channels=1))
            save(root / "Label" / f"{name}.png", mask)
            rows.append(
                {
                    "source": source,
                    "split": "test" if name == test else "train",
                    "group": name,
                    "optical": f"RGB/{name}.png",
                    "sar": f"SAR/{name}.png",
                    "mask": f"Label/{name}.png",
                    "label": label,
                }
            )
        _lines(root / "train.txt", [f"{name}.png" for name in train])
        _lines(root / "test.txt", [test])
        return Expected(rows=rows)

    return make


def _ten_percent(value: int, other: int) -> np.ndarray:
    """A mask of 30 x 30 pixels of which exactly a tenth has one value."""
    mask = np.full(900, other, np.uint8)
    mask[:90] = value
    return mask.reshape(30, 30)


def _just_below(value: int, other: int) -> np.ndarray:
    mask = _ten_percent(value, other)
    mask[0, 0] = other
    return mask


def _pie(root: Path) -> Expected:
    masks = {
        "a_1": (_ten_percent(1, 3), [1, 3]),
        "a_2": (_just_below(1, 3), [3]),
        "b_1": (_halves(0, 5), [0, 5]),
    }
    return _resized(_probe("PIE-RGB-SAR", masks)(root), root)


def _resized(expected: Expected, root: Path) -> Expected:
    """Images as large as their masks."""
    for seed, row in enumerate(expected.rows):
        side = Image.open(root / row["mask"]).width
        save(root / row["optical"], picture(seed, side))
        save(root / row["sar"], picture(100 + seed, side, 1))
    return expected


def _dfc20(root: Path) -> Expected:
    """As in the field: the list test.txt is trained on, val.txt is the test split."""
    rows = []
    for seed, (name, split, classes) in enumerate([("p1", "train", (0, 7)), ("p2", "test", (4, 4))]):
        _array(root / "RGB" / f"{name}.npy", picture(seed, channels=13))
        _array(root / "SAR" / f"{name}.npy", picture(10 + seed, channels=2))
        save(root / "Label" / f"{name}.png", _halves(*classes))
        rows.append(
            {
                "source": "DFC20",
                "split": split,
                "group": name,
                "optical": f"RGB/{name}.npy",
                "sar": f"SAR/{name}.npy",
                "mask": f"Label/{name}.png",
                "label": sorted(set(classes)),
            }
        )
    _lines(root / "test.txt", ["p1"])
    _lines(root / "val.txt", ["p2"])
    return Expected(rows=rows)


def _bigearthnet(root: Path) -> Expected:
    rows = []
    for seed, (name, split, label) in enumerate([("t_0_1", "train", [0, 18]), ("t_0_2", "val", [10])]):
        _array(root / "RGB" / f"{name}.npy", picture(seed, channels=12))
        _array(root / "SAR" / f"{name}.npy", picture(10 + seed, channels=2))
        vector = np.zeros(19, np.int64)
        vector[label] = 1
        _array(root / "Label" / f"{name}.npy", vector)
        _lines(root / f"{split}.txt", [f"{name}.npy"])
        paths = {"optical": f"RGB/{name}.npy", "sar": f"SAR/{name}.npy"}
        rows.append({"source": "BigEarthNet-MM", "split": split, "group": name, **paths, "label": label})
    return Expected(rows=rows)


def _eurosat_mm(root: Path) -> Expected:
    """Two classes whose files have the same number."""
    rows = []
    listed = [("AnnualCrop_1", "train", 0), ("SeaLake_1", "train", 9), ("SeaLake_2", "test", 9)]
    for seed, (name, split, label) in enumerate(listed):
        _array(root / "RGB" / f"{name}.npy", picture(seed, channels=13))
        _array(root / "SAR" / f"{name}.npy", picture(10 + seed, channels=2))
        paths = {"optical": f"RGB/{name}.npy", "sar": f"SAR/{name}.npy"}
        rows.append({"source": "EuroSAT-MM", "split": split, "group": name, **paths, "label": label})
    for split in ("train", "test"):
        _lines(root / f"{split}.txt", [name for name, of, _ in listed if of == split])
    return Expected(rows=rows)


def _folders(
    source: str,
    folder: str,
    suffix: str,
    classes: Mapping[str, int],
    count: int,
    train: int,
    *,
    side: str = "optical",
    scene: str = "{name}_{item}",
    group: str = "{stem}",
) -> Maker:
    """A folder a class; the training rows are the first of the sorted groups as NumPy permutes them."""

    def make(root: Path) -> Expected:
        rows = []
        for name, label in classes.items():
            stems = [scene.format(name=name.lower(), item=item) for item in range(count)]
            groups = sorted(group.format(name=name, stem=stem) for stem in stems)
            order = np.random.default_rng([0, label]).permutation(count)
            chosen = {groups[place] for place in order[:train]}
            for item, stem in enumerate(stems):
                path = f"{folder}{name}/{stem}.{suffix}"
                save(root / path, picture(100 * label + item, 12, 1 if side == "sar" else 3))
                mine = group.format(name=name, stem=stem)
                split = "train" if mine in chosen else "test"
                rows.append({"source": source, "split": split, "group": mine, side: path, "label": label})
        return Expected(rows=rows)

    return make


def _fusar(root: Path) -> Expected:
    rows = []
    for seed, (folder, split, name, label) in enumerate(
        [("Train", "train", "Bridges", 0), ("Train", "train", "Tanker", 9), ("Val", "test", "Tanker", 9)]
    ):
        path = f"{folder}/{name}/chip_1.png"
        save(root / path, picture(seed, channels=1))
        rows.append({"source": "FUSAR-Ship", "split": split, "group": path[:-4], "sar": path, "label": label})
    return Expected(rows=rows)


def _mstar(root: Path) -> Expected:
    """Chips of one name in several classes, and a class whose variants have folders of their own."""
    rows = []
    for seed, (path, split, label) in enumerate(
        [
            ("TRAIN/BMP2/SN_9563/HB03333.jpeg", "train", 0),
            ("TRAIN/2S1/HB03333.jpeg", "train", 4),
            ("TEST/BMP2/SN_9563/HB03333.jpeg", "test", 0),
            ("TEST/ZSU234/HB15000.JPG", "test", 9),
        ]
    ):
        save(root / path, picture(seed, channels=1))
        group = path.rsplit(".", 1)[0]
        rows.append({"source": "MSTAR-SOC", "split": split, "group": group, "sar": path, "label": label})
    return Expected(rows=rows)


def _voc(path: Path, boxes: Sequence[tuple[str, tuple[int, int, int, int]]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{right}</xmax>"
        f"<ymax>{bottom}</ymax></bndbox></object>"
        for name, (x, y, right, bottom) in boxes
    )
    path.write_text(f"<annotation><filename>{path.stem}.jpg</filename>{objects}</annotation>")


def _dior(root: Path) -> Expected:
    rows = []
    samples: list[tuple[str, str, str, list[tuple[str, tuple[int, int, int, int]]]]] = [
        ("00001", "train", "trainval", [("golffield", (2, 3, 20, 21)), ("ship", (1, 1, 5, 9))]),
        ("00011", "val", "trainval", [("windmill", (0, 0, 8, 8))]),
        ("11726", "test", "test", [("Expressway-Service-area", (4, 4, 30, 30))]),
    ]
    for seed, (name, split, folder, boxes) in enumerate(samples):
        path = f"JPEGImages-{folder}/{name}.jpg"
        save(root / path, picture(seed))
        _voc(root / "Annotations" / "Horizontal Bounding Boxes" / f"{name}.xml", boxes)
        _lines(root / "ImageSets" / "Main" / f"{split}.txt", [name])
        rows.append({"source": "DIOR", "split": split, "group": name, "optical": path})
    return Expected(rows=rows, boxes={"train": 2, "val": 1, "test": 1})


def _sardet(root: Path) -> Expected:
    """The splits number their images alike, and the file numbers the classes from 0."""
    names = ["ship", "aircraft", "car", "tank", "bridge", "harbor"]
    rows = []
    boxes = {"train": 2, "val": 1, "test": 3}
    for seed, (split, count) in enumerate(boxes.items()):
        path = f"JPEGImages/{split}/0000001.png"
        save(root / path, picture(seed, channels=1))
        plain = {
            "images": [{"id": 7, "file_name": "0000001.png", "width": 32, "height": 32}],
            "annotations": [
                {
                    "id": box,
                    "image_id": 7,
                    "category_id": box,
                    "bbox": [1, 2, 3 + box, 4],
                    "area": 4 * (3 + box),
                }
                for box in range(count)
            ],
            "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
        }
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{split}.json").write_text(json.dumps(plain))
        rows.append({"source": "SARDet-100K", "split": split, "group": f"{split}/0000001", "sar": path})
    return Expected(rows=rows, boxes=boxes)


def _loveda(root: Path) -> Expected:
    rows = []
    for seed, (folder, split, scene) in enumerate(
        [("Train", "train", "Rural"), ("Train", "train", "Urban"), ("Val", "val", "Urban")]
    ):
        paths = {
            "optical": f"{folder}/{scene}/images_png/{seed}.png",
            "mask": f"{folder}/{scene}/masks_png/{seed}.png",
        }
        save(root / paths["optical"], picture(seed))
        save(root / paths["mask"], _halves(0, seed + 1))
        rows.append({"source": "LoveDA", "split": split, "group": f"{folder}/{scene}/{seed}", **paths})
    save(root / "Test" / "Rural" / "images_png" / "9.png", picture(9))
    return Expected(rows=rows)


def _tiles(source: str, tiles: Mapping[str, str], optical: str, mask: str, channels: int) -> Maker:
    """The tiles of an ISPRS contest, with masks in colours."""

    def make(root: Path) -> Expected:
        rows = []
        for split, names in tiles.items():
            for seed, name in enumerate(names.split()):
                paths = {"optical": optical.format(name), "mask": mask.format(name)}
                save_geotiff(root / paths["optical"], picture(seed, 12, channels))
                save_geotiff(root / paths["mask"], _halves(_WHITE, _BLUE, 12))
                rows.append({"source": source, "split": split, "group": name, **paths})
        return Expected(rows=rows)

    return make


def _geonrw(root: Path) -> Expected:
    rows = []
    for split, names in _GEONRW.items():
        for seed, name in enumerate(names.split()):
            stem = f"{name}/{300 + seed}_{5600 + seed}"
            save(root / f"{stem}_rgb.jp2", picture(seed, 32))
            save_geotiff(root / f"{stem}_seg.tif", _halves(0, 1 + seed % 10)[..., None])
            save_geotiff(root / f"{stem}_dem.tif", picture(seed, 32, 1)[..., None].astype(np.float32))
            paths = {"optical": f"{stem}_rgb.jp2", "sar": f"{stem}_dem.tif", "mask": f"{stem}_seg.tif"}
            rows.append({"source": "GeoNRW", "split": split, "group": stem, **paths})
    return Expected(rows=rows)


def _bright(root: Path) -> Expected:
    """The lists as published: one tile stands both in the train and in the holdout list."""
    lists = {
        "train": ["bata-explosion_00000000", "bata-explosion_00000049"],
        "holdout": ["bata-explosion_00000049", "turkey-earthquake_00000001"],
        "val": ["hawaii-wildfire_00000003"],
        "test": ["marshall-wildfire_00000002"],
    }
    rows = []
    for split, names in lists.items():
        _lines(root / f"{split}_set.txt", names)
        for seed, name in enumerate(names):
            if split == "holdout" and name == "bata-explosion_00000049":
                continue
            paths = {
                "optical": f"pre-event/{name}_pre_disaster.tif",
                "post": f"post-event/{name}_post_disaster.tif",
                "mask": f"target/{name}_building_damage.tif",
            }
            save_geotiff(root / paths["optical"], picture(seed, 32))
            save_geotiff(root / paths["post"], picture(50 + seed, 32, 1)[..., None])
            save_geotiff(root / paths["mask"], _halves(0, 3)[..., None])
            rows.append({"source": "BRIGHT", "split": split, "group": name, "sar": None, **paths})
    return Expected(rows=rows)


FAKES: dict[str, Maker] = {
    "pie_rgb_sar": _pie,
    "ddhr_sk": _probe(
        "DDHR-SK",
        {"1_1": (_halves(0, 1), [0, 1]), "1_2": (_halves(2, 2), [2]), "2_1": (_halves(4, 3), [3, 4])},
    ),
    "whu_opt_sar_probe": _probe(
        "WHU-OPT-SAR",
        {"NH49_1": (_halves(0, 1), [0]), "NH49_2": (_halves(7, 2), [1, 6]), "NH50_1": (_halves(4, 4), [3])},
    ),
    "dfc20": _dfc20,
    "bigearthnet_mm": _bigearthnet,
    "eurosat_mm": _eurosat_mm,
    "eurosat_rgb": _folders("EuroSAT", "", "jpg", {"Forest": 1, "SeaLake": 9}, 5, 4),
    "aid": _folders("AID", "", "jpg", {"Airport": 0, "Viaduct": 29}, 5, 1),
    "nwpu_resisc45": _folders(
        "NWPU-RESISC45",
        "NWPU-RESISC45/",
        "jpg",
        {"airplane": 0, "sea_ice": 35},
        10,
        1,
        scene="{name}_{item:03d}",
    ),
    "ucmerced": _folders(
        "UCMerced",
        "UCMerced_LandUse/Images/",
        "tif",
        {"agricultural": 0, "river": 16},
        5,
        4,
        scene="{name}{item:02d}",
    ),
    "fusar_ship": _fusar,
    "mstar_soc": _mstar,
    "sar_acd": _folders(
        "SAR-ACD",
        "images/",
        "jpg",
        {"A220": 0, "Boeing787": 4},
        42,
        40,
        side="sar",
        scene="{item}",
        group="{name}/{stem}",
    ),
    "dior": _dior,
    "sardet_100k": _sardet,
    "loveda": _loveda,
    "isprs_potsdam": _tiles(
        "ISPRS-Potsdam", _POTSDAM, "4_Ortho_RGBIR/top_potsdam_{}_RGBIR.tif", "top_potsdam_{}_label.tif", 4
    ),
    "isprs_vaihingen": _tiles(
        "ISPRS-Vaihingen", _VAIHINGEN, "top/top_mosaic_09cm_area{}.tif", "top_mosaic_09cm_area{}.tif", 3
    ),
    "geonrw": _geonrw,
    "bright": _bright,
}
