"""A dataset of the catalogue: its card says how its files become rows."""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from recipes import folder, images, ospretrain, pairs
from recipes.boxes import box_writer
from recipes.card import Card, Label, Split, read_card
from recipes.labels import LabelError, MaskClasses, from_json, from_npy
from recipes.plan import Candidate, LeftOut, Plan, PrepareError, require_folder
from recipes.splits import SPLITS, Lists, draw, list_writer, stem
from recipes.template import Template

_IMAGES = ("optical", "sar")

Fields = dict[str, str]

_GENERIC = {"pairs": pairs, "folder": folder, "images": images, "ospretrain": ospretrain}


class Catalogued:
    """The recipe of one card: its own layout, or the generic recipe where the layout is not verified.

    Attributes:
        card: The card.
    """

    def __init__(self, name: str) -> None:
        self.card = read_card(name)

    @property
    def HELP(self) -> str:  # noqa: N802  (a constant of the modules of recipes)
        """One line about the dataset."""
        if self.card.layout == "verified":
            return self.card.title
        return f"{self.card.title}: layout unverified, the options are those of {self.card.recipe.generic}"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the options, the card's values as defaults."""
        if self.card.layout == "verified":
            add_arguments(parser)
            return
        recipe = self.card.recipe
        _GENERIC[recipe.generic or ""].add_arguments(parser)
        given = {
            "source": recipe.source,
            "tile": recipe.tile,
            "stride": recipe.stride,
            "split": recipe.split.all,
        }
        if len(self.card.modalities) == 1:
            given["modality"] = self.card.modalities[0]
        for option in parser._actions:
            if given.get(option.dest) is not None:
                option.default, option.required = given[option.dest], False

    def plan(self, args: argparse.Namespace) -> Plan:
        """Finds the samples."""
        if self.card.layout == "verified":
            return plan(self.card, args)
        recipe = self.card.recipe
        found = _GENERIC[recipe.generic or ""].plan(args)
        found.notes |= {"layout": f"unverified; indexed as {recipe.generic}"}
        found.expected = self.card.expected
        said = [getattr(args, f"{split}_list", None) for split in SPLITS]
        if recipe.generic == "folder" and recipe.split.draw and not any(said) and args.split_fraction is None:
            _draw(found, recipe.split)
        return found


def _draw(found: Plan, rule: Split) -> None:
    """Splits the samples as a card says, and has the lists written beside the index."""
    amounts = {split: amount for split, amount in rule.draw.items() if split not in ("rest", "seed")}
    seed = int(rule.draw.get("seed", 0))
    draw(found.candidates, amounts, str(rule.draw["rest"]), seed)
    found.write_beside.append(list_writer(found.candidates, seed))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of every card with a verified layout."""
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder of the dataset")
    parser.add_argument("--tile", type=int, metavar="PIXELS", help="side of the windows; default: the card's")
    parser.add_argument("--stride", type=int, metavar="PIXELS", help="step between windows")
    for split in SPLITS:
        parser.add_argument(
            f"--{split}-list",
            type=Path,
            metavar="FILE",
            help=f"a key or file name a line: the {split} samples, instead of the card's split",
        )


def plan(card: Card, args: argparse.Namespace) -> Plan:
    """Finds the samples of a dataset.

    The images of one row are those whose templates agree in all fields they share; where several sides have
    lists of templates of one length, the first goes with the first and so on.
    """
    recipe = card.recipe
    root = require_folder(args.root, f"--root of {card.command}; {card.get}")
    left_out: list[LeftOut] = []
    notes: dict[str, object] = {}
    joiner = _Joiner(card, root, left_out)
    naming = _Naming(card)
    splitting = _Splitting(card, root, args)
    candidates: list[Candidate] = []
    labelling = _Labelling(card, root, left_out) if recipe.label and recipe.label.mask is None else None
    voc = Template(recipe.boxes.voc) if recipe.boxes and recipe.boxes.voc else None
    voc_files: dict[str, str] = {}
    for fields, paths in joiner.rows():
        key, group = naming.of(fields, paths)
        split = splitting.of(key, fields, paths)
        if split is None:
            continue
        label = None
        if labelling is not None:
            label = labelling.of(key, fields)
            if label is None:
                continue
        if voc is not None:
            voc_files[key] = voc.fill(fields)
            if not (root / voc_files[key]).is_file():
                left_out.append(LeftOut(key, "missing boxes", f"no {voc_files[key]}"))
                continue
        candidates.append(Candidate(key, recipe.source, split, group, label=label, **paths))
    joiner.finish()
    notes |= splitting.finish(left_out)
    _check_keys(card, candidates)
    classes = labelling.classes if labelling is not None else card.classes
    if labelling is not None:
        _number(candidates, labelling)
        lacking = [name for number, name in enumerate(classes) if number not in labelling.met]
        notes |= {"classes without an image": lacking} if lacking else {}
    result = Plan(
        root=root,
        candidates=candidates,
        left_out=left_out,
        classes=classes,
        notes=notes,
        tile=recipe.tile,
        stride=recipe.stride,
        scaling=recipe.scaling,
        bands=recipe.bands,
        select=recipe.select,
        expected=card.expected,
    )
    if recipe.label is not None and recipe.label.mask is not None:
        values = card.class_values or tuple(range(len(card.classes)))
        result.mask_classes = MaskClasses(recipe.label.mask, values)
    if recipe.split.draw and not splitting.community:
        _draw(result, recipe.split)
    for candidate in candidates:
        if candidate.split in recipe.exclude_splits:
            candidate.split = "test"
    if recipe.boxes is not None:
        if recipe.tile is not None or args.tile is not None:
            raise PrepareError(f"{card.name} has boxes of whole images; leave --tile away")
        result.write_beside.append(box_writer(recipe.boxes, card.classes, root, voc_files))
    return result


class _Joiner:
    """Finds the files of each side and joins them into rows."""

    def __init__(self, card: Card, root: Path, left_out: list[LeftOut]) -> None:
        self._card = card
        self._root = root
        self._left_out = left_out
        self._sides = {side: [Template(t) for t in texts] for side, texts in card.recipe.sides().items()}
        self._found: Counter[str] = Counter()
        self._unused: dict[str, set[str]] = {}
        self._texts: dict[str, set[str]] = {}

    def rows(self) -> Iterator[tuple[Fields, Fields]]:
        """Fields of each row, and side to path."""
        images = [side for side in _IMAGES if side in self._sides]
        if self._card.task == "unpaired":
            for side in images:
                yield from self._join({side: self._sides[side]})
            return
        most = max(map(len, self._sides.values()))
        if all(len(listed) in (1, most) for listed in self._sides.values()):
            for place in range(most):
                yield from self._join(
                    {side: [listed[place % len(listed)]] for side, listed in self._sides.items()}
                )
        else:
            yield from self._join(self._sides)

    def _join(self, sides: dict[str, list[Template]]) -> Iterator[tuple[Fields, Fields]]:
        images = [side for side in _IMAGES if side in sides]
        base = max(images, key=lambda side: len(sides[side][0].fields))
        own = set.intersection(*(set(template.fields) for template in sides[base]))
        lookups: dict[str, tuple[tuple[str, ...], dict[tuple[str, ...], str | None]]] = {}
        for side in sides:
            if side == base:
                continue
            theirs = set.intersection(*(set(template.fields) for template in sides[side]))
            shared = tuple(sorted(own & theirs))
            if not shared and own:
                raise PrepareError(
                    f"card {self._card.name}: the templates of {base} and {side} share no field"
                )
            paths: dict[tuple[str, ...], str | None] = {}
            for fields, path in self._files(side, sides[side]):
                values = tuple(fields[name] for name in shared)
                if values in paths:
                    self._left_out.append(
                        LeftOut(
                            stem(path), "ambiguous", f"{path} and {paths[values]} go with one {base} image"
                        )
                    )
                    paths[values] = None
                else:
                    paths[values] = path
            lookups[side] = shared, paths
            self._unused.setdefault(side, set())
        used: dict[str, set[str]] = {side: set() for side in lookups}
        for fields, path in self._files(base, sides[base]):
            row = {base: path}
            for side, (shared, paths) in lookups.items():
                partner = paths.get(tuple(fields[name] for name in shared))
                if partner is not None:
                    row[side] = partner
                    used[side].add(partner)
            lacking = [side for side in lookups if side not in row]
            if lacking:
                reason = f"{path} has no {' and no '.join(lacking)}"
                self._left_out.append(LeftOut(stem(path), "missing partner", reason))
                continue
            yield fields, {side: row[side] for side in sides}
        for side, (_, paths) in lookups.items():
            rest = {path for path in paths.values() if path is not None} - used[side]
            self._unused[side] = self._unused[side] & rest if self._unused[side] else rest

    def _files(self, side: str, templates: list[Template]) -> Iterator[tuple[Fields, str]]:
        for template in templates:
            empty = True
            for fields, path in template.find(self._root):
                empty = False
                if "split" in fields:
                    self._texts.setdefault(side, set()).add(fields["split"])
                yield fields, path
            if empty:
                raise self._missing(template, template.text)

    def finish(self) -> None:
        """Reports files without a row, and refuses a copy that lacks the folder of a split."""
        for paths in self._unused.values():
            for path in sorted(paths):
                reason = f"{path} has no image beside it"
                self._left_out.append(LeftOut(stem(path), "missing partner", reason))
        for side in _IMAGES:
            for template in self._sides.get(side, []):
                if "split" in template.fields:
                    self._check_splits(template, self._texts.get(side, set()))

    def _check_splits(self, template: Template, met: set[str]) -> None:
        rule = self._card.recipe.split.path
        for split in dict.fromkeys(rule.values()):
            texts = [text for text, name in rule.items() if name == split]
            if not met & set(texts):
                raise self._missing(template, template.text.replace("{split}", texts[0]))

    def _missing(self, template: Template, text: str) -> PrepareError:
        folder = self._root
        for part in Path(template.prefix).parts:
            if not (folder / part).is_dir():
                break
            folder = folder / part
        inside = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
        more = f" and {len(inside) - 6} more" if len(inside) > 6 else ""
        holds = f"holds {', '.join(inside[:6])}{more}" if inside else "is empty"
        return PrepareError(
            f"no file is like {text!r} in {self._root}; {folder} {holds}. Usage: {self._card.command}, "
            f"where DIR is the folder of {self._card.title}. {self._card.get}"
        )


class _Naming:
    """Key and group of a row."""

    def __init__(self, card: Card) -> None:
        self._group = Template(card.recipe.group) if card.recipe.group else None

    def of(self, fields: Fields, paths: Fields) -> tuple[str, str]:
        """Key and group: the field ``{key}`` (or the first path without suffix), and the card's group."""
        key = fields.get("key") or stem(next(iter(paths.values())))
        return key, self._group.fill(fields) if self._group else key


class _Splitting:
    """Split of a row, by the card or by the lists of the command line."""

    def __init__(self, card: Card, root: Path, args: argparse.Namespace) -> None:
        self._rule = card.recipe.split
        given = {split: [path] for split in SPLITS if (path := getattr(args, f"{split}_list", None))}
        self.community = bool(given)
        self._lists: Lists | None = None
        if given:
            self._lists = Lists(given)
        elif self._rule.lists:
            for name in (name for names in self._rule.lists.values() for name in names):
                if not (root / name).is_file():
                    raise PrepareError(
                        f"no split list {name!r} in {root}. Usage: {card.command}, where DIR is the folder "
                        f"of {card.title}. {card.get}"
                    )
            files = {split: [root / name for name in names] for split, names in self._rule.lists.items()}
            self._lists = Lists(files, self._rule.column, first_wins=True)
        self._unused: Counter[str] = Counter()

    def of(self, key: str, fields: Fields, paths: Fields) -> str | None:
        """The split; None: the row belongs to none that is used."""
        if self._lists is not None:
            split = self._lists.split_of((key, *paths.values()))
            self._unused["of no list"] += split is None
            return split
        if self._rule.path:
            split = self._rule.path.get(fields.get("split", ""))
            if split is None:
                self._unused[fields.get("split", "")] += 1
            return split
        return self._rule.all or str(self._rule.draw["rest"])

    def finish(self, left_out: list[LeftOut]) -> dict[str, object]:
        """Lists the names that no image has; returns facts for the report."""
        for split, name in self._lists.unmet() if self._lists else ():
            left_out.append(LeftOut(name, "missing", f"the {split} list names it, no image has that name"))
        unused = {text: count for text, count in self._unused.items() if count}
        notes: dict[str, object] = {"samples of no split that is used": unused} if unused else {}
        repeated = self._lists.repeated if self._lists else {}
        return notes | ({"names of two lists, kept in the first": repeated} if repeated else {})


class _Labelling:
    """Label of a row by its path or by a file beside it."""

    def __init__(self, card: Card, root: Path, left_out: list[LeftOut]) -> None:
        assert card.recipe.label is not None
        self._label: Label = card.recipe.label
        self._root = root
        self._left_out = left_out
        self._open = not card.classes
        self.classes = card.classes
        self._numbers = {name: number for number, name in enumerate(card.classes)}
        file = self._label.npy or self._label.json
        self._file = Template(file) if file else None
        self.met: set[int] = set()

    def of(self, key: str, fields: Fields) -> int | list[int] | None:
        """The label; None: the row is left out, with its reason noted."""
        if self._file is None:
            return self._by_path(key, fields)
        path = self._root / self._file.fill(fields)
        try:
            if self._label.npy:
                found = from_npy(path)
            else:
                found = from_json(path, self._label.field, self._label.map, self._numbers)
        except LabelError as error:
            self._left_out.append(LeftOut(key, "no label", str(error)))
            return None
        if not found or max(found) >= len(self.classes) > 0:
            reason = f"{path.name} names none of the classes" if not found else f"{path.name} is too long"
            self._left_out.append(LeftOut(key, "no label", reason))
            return None
        self.met |= set(found)
        return found

    def _by_path(self, key: str, fields: Fields) -> int | None:
        text = fields[self._label.path or "class"]
        name = self._label.folders.get(text, text)
        if self._open:
            return self._numbers.setdefault(name, len(self._numbers))
        if name not in self._numbers:
            self._left_out.append(LeftOut(key, "unknown class", f"{text!r} is no class of the card"))
            return None
        self.met.add(self._numbers[name])
        return self._numbers[name]

    def renumbered(self) -> dict[int, int]:
        """Numbers by first sight to numbers by name, where the card names no classes."""
        self.classes = tuple(sorted(self._numbers))
        order = {self._numbers[name]: place for place, name in enumerate(self.classes)}
        self.met = set(order.values())
        return order

    @property
    def by_sight(self) -> bool:
        """Whether the classes are those that were found."""
        return self._open and self._file is None


def _number(candidates: list[Candidate], labelling: _Labelling) -> None:
    if not labelling.by_sight:
        return
    order = labelling.renumbered()
    for candidate in candidates:
        assert isinstance(candidate.label, int)
        candidate.label = order[candidate.label]


def _check_keys(card: Card, candidates: list[Candidate]) -> None:
    """Refuses two samples of one name, which lists and exclusions could not tell apart."""
    if card.task == "unpaired":
        return
    seen: set[str] = set()
    for candidate in candidates:
        if candidate.key in seen:
            break
        seen.add(candidate.key)
    else:
        return
    grouped = card.recipe.group is not None
    for candidate in candidates:
        path = stem(next(iter(candidate.paths.values())))
        candidate.group = candidate.group if grouped else path
        candidate.key = path
