"""Numbers that papers report, for a column of their own: none of them was measured here."""

from dataclasses import dataclass

SOURCE = "CoDe-MAE paper"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a published table.

    Attributes:
        title: As the table words it.
        dataset: Of the cards that belong here: the index's source begins with one of these, letters and
            digits alone compared.
        modality: Of those cards.
        metric: Of those cards.
        shots: Of those cards; the table's setting.
    """

    title: str
    dataset: tuple[str, ...]
    modality: str
    metric: str
    shots: int | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """One published table.

    Attributes:
        name: Its number in the paper.
        caption: What it shows and by which setting.
        task: Of the cards that belong here.
        columns: Left to right.
        rows: Method to its figures, null where the paper has none.
    """

    name: str
    caption: str
    task: str
    columns: tuple[Column, ...]
    rows: dict[str, tuple[float | None, ...]]


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
TABLES = (TABLE_III, TABLE_V, TABLE_VI)
