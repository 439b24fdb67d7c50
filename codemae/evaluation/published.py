"""Numbers that papers report, for a column of their own: none of them was measured here."""

from dataclasses import dataclass

CODEMAE = "CoDe-MAE paper"
FUSMAE = "Fus-MAE paper"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a published table.

    Attributes:
        title: As the table words it.
        dataset: Of the cards that belong here: the index's source begins with one of these, letters and
            digits alone compared.
        modality: Of those cards; None for any, where the paper does not say which.
        metric: Of those cards, or one of their further figures.
        shots: Of those cards; the table's setting.
        fraction: Share of the labels those cards used.
    """

    title: str
    dataset: tuple[str, ...]
    modality: str | None
    metric: str
    shots: int | None = None
    fraction: float = 1.0


@dataclass(frozen=True, slots=True)
class Table:
    """One published table.

    Attributes:
        name: Its number in the paper.
        caption: What it shows and by which setting.
        task: Of the cards that belong here.
        columns: Left to right.
        rows: Method to its figures, null where the paper has none.
        source: Where they stand.
        method: The row shown by default.
    """

    name: str
    caption: str
    task: str
    columns: tuple[Column, ...]
    rows: dict[str, tuple[float | None, ...]]
    source: str = CODEMAE
    method: str = "CoDe-MAE"


_PROBED = (
    ("PIE", ("pie",), "micro_average_precision"),
    ("DDHR-SK", ("ddhr",), "micro_average_precision"),
    ("WHU", ("whu",), "micro_average_precision"),
    ("DFC20", ("dfc20", "dfc2020"), "micro_average_precision"),
    ("BEN-MM", ("bigearthnet", "ben"), "micro_average_precision"),
    ("EuroSat", ("eurosat",), "overall_accuracy"),
)
TABLE_III = Table(
    "III",
    "linear probing, 10-shot (10 x classes images of the whole split); micro mAP, EuroSat overall accuracy",
    "linear_probing",
    tuple(
        Column(f"{title} {short}", names, modality, metric, 10)
        for title, names, metric in _PROBED
        for short, modality in (("Opt.", "optical"), ("SAR", "sar"))
    ),
    {
        "SwinSSL": (80.12, 79.43, 59.06, 76.62, 78.47, 79.51, 51.56, 54.01, 49.17, 49.85, 48.00, 40.85),
        "DINO-MM": (84.70, 84.66, 75.17, 85.52, 79.04, 84.08, 47.55, 59.61, 52.02, 54.54, 50.66, 47.39),
        "DeCUR": (79.20, 79.59, 72.63, 81.69, 77.51, 77.23, 57.95, 53.02, 56.22, 53.20, 60.48, 48.08),
        "FG-MAE": (81.95, 81.50, 60.86, 81.56, 76.75, 80.77, 48.95, 54.84, 53.19, 52.33, 43.88, 42.72),
        "SatViT": (86.05, 83.82, 74.33, 83.16, 83.19, 83.67, 55.17, 56.27, 56.55, 53.42, 54.94, 47.03),
        "CROMA": (83.03, 81.99, 71.69, 84.25, 79.78, 82.05, 50.39, 55.37, 55.90, 54.83, 59.12, 47.97),
        "DOFA": (88.19, 86.13, 81.57, 87.13, 85.45, 81.44, 62.20, 60.27, 57.94, 56.50, 70.25, 55.87),
        "MaRS": (85.93, 79.18, 81.86, 76.27, 81.98, 68.36, 65.48, 27.82, 60.22, 36.83, 79.79, 32.66),
        "CoDe-MAE": (91.27, 88.78, 84.86, 89.20, 86.86, 87.29, 70.43, 62.55, 65.38, 57.97, 81.18, 59.88),
    },
)
TABLE_V = Table(
    "V",
    "optical tasks; AID with 20 % and RESISC45 with 10 % of the images for training",
    "classification",
    (
        Column("AID", ("aid",), "optical", "overall_accuracy"),
        Column("RESISC45", ("resisc", "nwpuresisc"), "optical", "overall_accuracy"),
        Column("DIOR mAP50", ("dior",), "optical", "map50"),
        Column("LoveDA mIoU", ("loveda",), "optical", "mean_iou"),
    ),
    {
        "RVSA (ViT-B)": (97.03, 93.93, 75.80, 51.95),
        "SelectiveMAE (ViT-B)": (96.78, 93.35, 75.70, 53.05),
        "RingMo (Swin-B)": (96.90, 94.25, 75.90, None),
        "SatLas (Swin-B)": (94.96, 92.16, 74.10, None),
        "GFM (Swin-B)": (95.47, 92.73, 72.84, None),
        "MaRS (Swin V2-B)": (96.84, 92.87, 73.70, 52.25),
        "SatMAE (ViT-L)": (95.02, 91.72, 70.89, None),
        "ScaleMAE (ViT-L)": (96.44, 92.63, 73.81, None),
        "SelectiveMAE (ViT-L)": (97.25, 94.57, 77.80, 54.31),
        "SkySense (Swin V2-L)": (None, 94.34, 76.74, None),
        "SkySense (Swin V2-H)": (97.68, 94.85, 78.73, None),
        "CoDe-MAE": (97.76, 94.79, 79.00, 55.32),
    },
)
TABLE_VI = Table(
    "VI",
    "SAR tasks; classification 40-shot",
    "classification",
    (
        Column("FUSAR-Ship", ("fusar",), "sar", "overall_accuracy", 40),
        Column("MSTAR", ("mstar",), "sar", "overall_accuracy", 40),
        Column("SAR-ACD", ("saracd",), "sar", "overall_accuracy", 40),
        Column("SARDet mAP", ("sardet",), "sar", "map"),
        Column("SARDet mAP50", ("sardet",), "sar", "map50"),
        Column("SARDet mAP75", ("sardet",), "sar", "map75"),
    ),
    {
        "MSFA (ConvNext-B)": (None, None, None, 56.4, 88.2, 61.5),
        "SAR-JEPA (ViT-B)": (85.8, 91.6, 75.5, None, None, None),
        "SARATR-X (HiViT-B)": (87.7, 98.1, 76.4, 57.3, 88.7, 62.8),
        "SUMMIT (ViT-B)": (81.5, 63.6, 68.7, 57.0, 89.9, 62.7),
        "SARMAE (ViT-B)": (89.3, 96.7, None, 57.9, None, None),
        "MaRS (Swin V2-B)": (77.7, 75.5, 68.4, 55.4, None, 61.4),
        "CoDe-MAE": (89.4, 98.7, 78.3, 61.1, 90.6, 66.6),
    },
)
_BEN = ("bigearthnet", "ben")
_SIDES = (("S1", "sar"), ("S2", "optical"), ("S1+S2", "both"))
_BEN_NOTE = "the paper does not say whether its mean average precision is micro or macro; ours is micro"
FUSMAE_TABLE_1_ALL = Table(
    "1 of Fus-MAE, all labels",
    f"BigEarthNet-MM, fine-tuned on all labels; {_BEN_NOTE}",
    "classification",
    tuple(Column(f"BEN-MM {t}", _BEN, modality, "micro_average_precision") for t, modality in _SIDES),
    {
        "ImageNet": (70.2, 85.5, 83.4),
        "DINO-MM": (69.7, 83.9, 84.6),
        "SatViT": (75.4, 85.6, 85.5),
        "Fus-MAE w/ XAD": (73.5, 87.8, 86.9),
        "Fus-MAE w/ XAE&D": (75.5, 87.9, 87.9),
    },
    FUSMAE,
    "Fus-MAE w/ XAE&D",
)
FUSMAE_TABLE_1_FEW = Table(
    "1 of Fus-MAE, 1 % of the labels",
    f"BigEarthNet-MM, a linear layer on the frozen encoder, 1 % of the labels; {_BEN_NOTE}",
    "linear_probing",
    tuple(
        Column(f"BEN-MM {t}", _BEN, modality, "micro_average_precision", None, 0.01) for t, modality in _SIDES
    ),
    {
        "ImageNet": (55.9, 58.5, 60.5),
        "DINO-MM": (52.7, 58.7, 60.3),
        "SatViT": (52.4, 58.5, 58.0),
        "Fus-MAE w/ XAD": (59.3, 60.4, 63.1),
        "Fus-MAE w/ XAE&D": (57.8, 70.0, 68.7),
    },
    FUSMAE,
    "Fus-MAE w/ XAE&D",
)
FUSMAE_TABLE_2 = Table(
    "2 of Fus-MAE",
    "SEN12MS, one label an image; the paper's are a linear layer on the frozen encoder and one modality, not "
    "named; ours are fine-tuned",
    "classification",
    tuple(
        Column(f"SEN12MS {title}", ("sen12ms",), None, metric)
        for title, metric in (
            ("top-1", "overall_accuracy"),
            ("top-3", "top3"),
            ("precision", "weighted_precision"),
            ("recall", "weighted_recall"),
            ("F1", "weighted_f1"),
        )
    ),
    {
        "ImageNet": (58.6, 90.7, 75.2, 58.6, 60.1),
        "DINO-MM": (58.8, 91.0, 71.4, 58.8, 59.7),
        "SatViT": (59.1, 91.8, 75.2, 59.1, 59.9),
        "Fus-MAE w/ XAD": (59.8, 92.4, 75.2, 59.8, 62.0),
        "Fus-MAE w/ XAE&D": (59.6, 93.6, 71.5, 59.6, 60.1),
    },
    FUSMAE,
    "Fus-MAE w/ XAE&D",
)
TABLES = (TABLE_III, TABLE_V, TABLE_VI, FUSMAE_TABLE_1_ALL, FUSMAE_TABLE_1_FEW, FUSMAE_TABLE_2)
