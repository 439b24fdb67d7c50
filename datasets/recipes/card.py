"""Cards of public datasets: what each is, where it comes from and how its files become rows."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from codemae.modality import MODALITY_NAMES
from recipes.plan import PrepareError
from recipes.template import Template, TemplateError

FOLDER = Path(__file__).resolve().parents[1] / "cards"

TASKS = ("pairs", "unpaired", "classification", "multilabel", "segmentation", "detection", "change")
USES = ("pretraining", "benchmark")
LAYOUTS = ("verified", "unverified")
GENERIC = ("pairs", "folder", "images", "ospretrain")
SIDES = ("optical", "sar", "mask", "post")


@dataclass(frozen=True, kw_only=True)
class Split:
    """How rows get their split; exactly one of the four.

    Attributes:
        all: The split of all rows.
        path: Text of the field ``{split}`` to split.
        lists: Split to files, relative to the root, with a key or a file name a line.
        column: Column of those files that holds the key, by name (a CSV with a header) or number.
        draw: Split to share (or whole number) of each class that is drawn; ``rest`` names the split of what
            is left and ``seed`` the seed.
    """

    all: str | None = None
    path: dict[str, str] = field(default_factory=dict)
    lists: dict[str, tuple[str, ...]] = field(default_factory=dict)
    column: str | int | None = None
    draw: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Label:
    """How rows get their label; exactly one of path, mask, npy and json.

    Attributes:
        path: Name of the field that holds the class.
        folders: Text of that field to class name, where the two differ.
        mask: Share of a mask's pixels from which on a class counts as present.
        npy: Template of a file with a multi-hot vector.
        json: Template of a JSON file with class names.
        map: Name in that file to class name; None: the name is dropped.
        field: Key of the names in that file.
    """

    path: str | None = None
    folders: dict[str, str] = field(default_factory=dict)
    mask: float | None = None
    npy: str | None = None
    json: str | None = None
    map: dict[str, str | None] = field(default_factory=dict)
    field: str = "labels"


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Where the boxes of a detection set stand; exactly one of the two.

    Attributes:
        coco: Split to COCO JSON files, relative to the root.
        voc: Template of the XML file of an image.
    """

    coco: dict[str, tuple[str, ...]] = field(default_factory=dict)
    voc: str | None = None


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Bands that are stored as files of their own, of which prepare makes one image.

    Attributes:
        bands: Template of each band's file; the first finds the samples.
        names: Name of each band, in the same order.
        side: Height and width of the image.
    """

    bands: tuple[str, ...]
    names: tuple[str, ...]
    side: int


@dataclass(frozen=True, kw_only=True)
class CardRecipe:
    """How files become rows. See ``datasets/README.md`` for the meaning of each."""

    source: str
    optical: tuple[str, ...] = ()
    sar: tuple[str, ...] = ()
    mask: tuple[str, ...] = ()
    post: tuple[str, ...] = ()
    split: Split = field(default_factory=lambda: Split(all="train"))
    exclude_splits: tuple[str, ...] = ()
    group: str | None = None
    label: Label | None = None
    boxes: Boxes | None = None
    tile: int | None = None
    stride: int | None = None
    bands: dict[str, tuple[str, ...]] = field(default_factory=dict)
    select: dict[str, tuple[str, ...]] = field(default_factory=dict)
    scaling: dict[str, str] = field(default_factory=dict)
    stack: dict[str, Stack] = field(default_factory=dict)
    generic: str | None = None

    def sides(self) -> dict[str, tuple[str, ...]]:
        """Side to templates, of the sides there are; a stacked side is found by its first band."""
        first = {side: (stack.bands[0],) for side, stack in self.stack.items()}
        found = {side: first.get(side) or getattr(self, side) for side in SIDES}
        return {side: templates for side, templates in found.items() if templates}

    def band_names(self) -> dict[str, tuple[str, ...]]:
        """Modality to the names of the stored bands, of those that have names."""
        return self.bands | {side: stack.names for side, stack in self.stack.items()}


@dataclass(frozen=True, kw_only=True)
class Card:
    """All of ``datasets/cards/<name>.yaml``."""

    name: str
    title: str
    use: tuple[str, ...]
    task: str
    modalities: tuple[str, ...]
    resolution: str
    samples: str
    size: str | None = None
    licence: str = "not stated"
    citation: str
    homepage: str
    get: str
    layout: str
    layout_source: str | None = None
    notes: str = ""
    classes: tuple[str, ...] = ()
    class_values: tuple[Any, ...] = ()
    ignore: tuple[Any, ...] = ()
    expected: dict[str, int] = field(default_factory=dict)
    torchgeo: str | None = None
    recipe: CardRecipe

    @property
    def command(self) -> str:
        """The line that prepares it."""
        return f"python datasets/prepare.py {self.name} --root DIR --out INDEX_DIR"


def card_names() -> tuple[str, ...]:
    """Names of all cards, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def read_card(name: str, folder: Path = FOLDER) -> Card:
    """Reads one card.

    Raises:
        PrepareError: There is none, or it is not written as cards are.
    """
    path = folder / f"{name}.yaml"
    try:
        plain = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise PrepareError(f"no card {path}") from None
    except yaml.YAMLError as error:
        raise PrepareError(f"{path} is not YAML: {error}") from None
    if not isinstance(plain, dict):
        raise PrepareError(f"{path} is not a mapping of the keys of a card")
    card = _build(Card, {"name": name} | plain, str(path))
    _check(card, str(path))
    return card


def _build(kind: Any, plain: Any, where: str) -> Any:
    """A dataclass from a mapping; unknown and missing keys are errors that name them."""
    if not isinstance(plain, dict):
        raise PrepareError(f"{where} is a mapping, got {plain!r}")
    hints = get_type_hints(kind)
    known = {entry.name: entry for entry in fields(kind)}
    unknown = [str(key) for key in plain if key not in known]
    if unknown:
        raise PrepareError(f"{where} has the unknown key {', '.join(unknown)}; known: {', '.join(known)}")
    values = {
        key: _value(hints[key], value, f"{where}: {key}") for key, value in plain.items() if value is not None
    }
    try:
        return kind(**values)
    except TypeError as error:
        missing = str(error).split(": ")[-1]
        raise PrepareError(f"{where} lacks {missing}") from None


def _value(kind: Any, value: Any, where: str) -> Any:
    """A value of YAML as the type of its key; a single one is a list of one."""
    origin, inside = get_origin(kind), get_args(kind)
    if kind is Any:
        return tuple(value) if isinstance(value, list) else value
    if origin in (Union, UnionType):
        if value is None and NoneType in inside:
            return None
        kinds = [choice for choice in inside if choice is not NoneType]
        for choice in kinds[:-1]:
            if isinstance(value, choice):
                return value
        return _value(kinds[-1], value, where)
    if origin is tuple:
        listed = value if isinstance(value, list) else [value]
        return tuple(_value(inside[0], item, where) for item in listed)
    if origin is dict:
        if not isinstance(value, dict):
            raise PrepareError(f"{where} is a mapping, got {value!r}")
        return {str(key): _value(inside[1], item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(kind, type) and hasattr(kind, "__dataclass_fields__"):
        return _build(kind, value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise PrepareError(f"{where} is a {kind.__name__}, got {value!r}")
    return value


def _check(card: Card, where: str) -> None:
    """Refuses a card that contradicts itself."""
    recipe, split, label = card.recipe, card.recipe.split, card.recipe.label
    one_of = [(card.task, TASKS, "task"), (card.layout, LAYOUTS, "layout")]
    one_of += [(use, USES, "use") for use in card.use]
    one_of += [(modality, MODALITY_NAMES, "modalities") for modality in card.modalities]
    for value, known, key in one_of:
        if value not in known:
            raise PrepareError(f"{where}: {key} is one of {', '.join(known)}, got {value!r}")
    if card.layout == "unverified":
        if recipe.generic not in GENERIC:
            raise PrepareError(f"{where}: an unverified layout needs recipe.generic: {' | '.join(GENERIC)}")
        return
    if recipe.generic not in (None, "ospretrain"):
        raise PrepareError(f"{where}: recipe.generic {recipe.generic} is for layout: unverified only")
    if not card.layout_source:
        raise PrepareError(f"{where}: a verified layout says in layout_source where it was learned")
    if recipe.generic:
        return
    _check_stacks(recipe, where)
    if not recipe.sides().keys() & {"optical", "sar"}:
        raise PrepareError(f"{where}: the recipe has neither optical nor sar images")
    if sum(map(bool, (split.all, split.path, split.lists, split.draw))) != 1:
        raise PrepareError(f"{where}: recipe.split has exactly one of all, path, lists, draw")
    if split.draw and "rest" not in split.draw:
        raise PrepareError(f"{where}: recipe.split.draw names the split of the rest, as in rest: test")
    if label is not None and sum(v is not None for v in (label.path, label.mask, label.npy, label.json)) != 1:
        raise PrepareError(f"{where}: recipe.label has exactly one of path, mask, npy, json")
    if label is not None and label.mask is not None and not recipe.mask:
        raise PrepareError(f"{where}: labels of the mask need recipe.mask")
    if recipe.boxes is not None and bool(recipe.boxes.coco) == bool(recipe.boxes.voc):
        raise PrepareError(f"{where}: recipe.boxes has exactly one of coco, voc")
    if recipe.boxes is not None and not card.classes:
        raise PrepareError(f"{where}: boxes need classes, in the order of the category numbers")
    if card.class_values and len(card.class_values) != len(card.classes):
        raise PrepareError(f"{where}: class_values has one entry for each of the {len(card.classes)} classes")
    templates = [text for listed in recipe.sides().values() for text in listed]
    templates += [text for stack in recipe.stack.values() for text in stack.bands]
    templates += [text for text in (recipe.group, label and label.npy, label and label.json) if text]
    templates += [recipe.boxes.voc] if recipe.boxes and recipe.boxes.voc else []
    for text in templates:
        try:
            Template(text)
        except TemplateError as error:
            raise PrepareError(f"{where}: {error}") from None


def _check_stacks(recipe: CardRecipe, where: str) -> None:
    """Refuses stacks that do not say one thing."""
    for side, stack in recipe.stack.items():
        at = f"{where}: recipe.stack.{side}"
        if recipe.boxes is not None:
            raise PrepareError(f"{at}: boxes belong to images as they are stored")
        if side not in MODALITY_NAMES:
            raise PrepareError(f"{at}: only {' and '.join(MODALITY_NAMES)} are stacked")
        if getattr(recipe, side) or side in recipe.bands:
            raise PrepareError(f"{at} stands in the place of recipe.{side} and recipe.bands.{side}")
        if not len(stack.bands) == len(stack.names) == len(set(stack.names)) > 0:
            raise PrepareError(f"{at} has {len(stack.bands)} bands, which need as many different names")
        if stack.side < 1:
            raise PrepareError(f"{at}.side is at least 1 pixel, got {stack.side}")
        try:
            known, *others = (set(Template(text).fields) for text in stack.bands)
        except TemplateError as error:
            raise PrepareError(f"{where}: {error}") from None
        for text, own in zip(stack.bands[1:], others, strict=True):
            if own - known:
                lacking = ", ".join(sorted(own - known))
                raise PrepareError(f"{at}: {text!r} has the field {lacking}, which its first band lacks")
