"""A dataset of the catalogue: its card says how its files become rows."""

import argparse
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recipes import folder, images, ospretrain, pairs
from recipes.boxes import box_writer
from recipes.candidates import Candidate, Candidates
from recipes.card import Card, Label, Split, read_card
from recipes.labels import LabelError, MaskClasses, from_json, from_npy
from recipes.left_out import LeftOut, LeftOuts
from recipes.listing import Keyed
from recipes.plan import Plan, PrepareError, require_folder
from recipes.splits import SPLITS, Lists, draw, list_writer, stem
from recipes.stacking import Bands
from recipes.template import Template

_IMAGES = ("optical", "sar")
_ROWS = 16_384
"""Rows that are joined at a time; each time all partners are hashed once."""

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
        if self.card.recipe.generic is None:
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
        if self.card.recipe.generic is None:
            return plan(self.card, args)
        recipe = self.card.recipe
        found = _GENERIC[recipe.generic or ""].plan(args)
        found.notes |= {"layout": f"{self.card.layout}; indexed as {recipe.generic}"}
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
    left_out = LeftOuts()
    notes: dict[str, object] = {}
    joiner = _Joiner(card, root, left_out)
    naming = _Naming(card)
    splitting = _Splitting(card, root, args)
    candidates = Candidates()
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
    classes = card.classes
    if labelling is not None:
        if labelling.by_sight:
            candidates.renumber(labelling.renumbered())
        classes = labelling.classes
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
        bands=recipe.band_names(),
        stacks={side: Bands(each.bands, each.names, each.side) for side, each in recipe.stack.items()},
        select=recipe.select,
        expected=card.expected,
    )
    if recipe.label is not None and recipe.label.mask is not None:
        values = card.class_values or tuple(range(len(card.classes)))
        result.mask_classes = MaskClasses(recipe.label.mask, values)
    if recipe.split.draw and not splitting.community:
        _draw(result, recipe.split)
    if recipe.exclude_splits:
        splits = candidates.column("split").combine_chunks()
        away = pc.is_in(splits, value_set=pa.array(recipe.exclude_splits))
        candidates.replace("split", pc.if_else(away, "test", splits))
    if recipe.boxes is not None:
        if recipe.tile is not None or args.tile is not None:
            raise PrepareError(f"{card.name} has boxes of whole images; leave --tile away")
        result.write_beside.append(box_writer(recipe.boxes, card.classes, root, voc_files))
    return result


class _Joiner:
    """Finds the files of each side and joins them into rows."""

    def __init__(self, card: Card, root: Path, left_out: LeftOuts) -> None:
        self._card = card
        self._root = root
        self._left_out = left_out
        self._sides = {side: [Template(t) for t in texts] for side, texts in card.recipe.sides().items()}
        self._partners: dict[tuple[str, ...], _Partners] = {}
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
        others = {side: self._found(side, sides[side], base, sides[base]) for side in sides if side != base}
        files = self._files(base, sides[base])
        while batch := list(islice(files, _ROWS)):
            beside = {side: partners.of([fields for fields, _ in batch]) for side, partners in others.items()}
            for number, (fields, path) in enumerate(batch):
                row = {base: path} | {
                    side: partner for side, paths in beside.items() if (partner := paths[number]) is not None
                }
                lacking = [side for side in others if side not in row]
                if lacking:
                    reason = f"{path} has no {' and no '.join(lacking)}"
                    self._left_out.append(LeftOut(stem(path), "missing partner", reason))
                    continue
                yield fields, {side: row[side] for side in sides}

    def _found(self, side: str, templates: list[Template], base: str, bases: list[Template]) -> "_Partners":
        """The files of a side by the fields they share with the base; looked for once."""
        theirs, own = (
            set.intersection(*(set(template.fields) for template in listed)) for listed in (templates, bases)
        )
        shared = tuple(sorted(own & theirs))
        if not shared and own:
            raise PrepareError(f"card {self._card.name}: the templates of {base} and {side} share no field")
        known = (side, *(template.text for template in templates), "", *shared)
        if known not in self._partners:
            partners = _Partners(shared, self._files(side, templates))
            for path, first in partners.doubled():
                reason = f"{path} and {first} go with one {base} image"
                self._left_out.append(LeftOut(stem(path), "ambiguous", reason))
            self._partners[known] = partners
        return self._partners[known]

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
        for partners in self._partners.values():
            for path in partners.unused():
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


class _Partners:
    """The files of one side, by the texts of the fields they share with another."""

    def __init__(self, shared: tuple[str, ...], files: Iterator[tuple[Fields, str]]) -> None:
        self._shared = shared
        self._files = Keyed((self._key(fields), path) for fields, path in files)
        self._used = np.zeros(len(self._files), dtype=bool)

    def _key(self, fields: Fields) -> str:
        return "\0".join(fields[name] for name in self._shared)

    def of(self, wanted: list[Fields]) -> list[str | None]:
        """Path that goes with each; None where no file, or more than one, does."""
        places = self._files.places([self._key(fields) for fields in wanted])
        self._used[places[places >= 0]] = True
        return self._files.paths.take(pa.array(places, mask=places < 0)).to_pylist()

    def doubled(self) -> Iterator[tuple[str, str]]:
        """Files whose texts another file has, each with the first of those."""
        for _, first, path in self._files.doubled:
            yield path, first

    def unused(self) -> list[str]:
        """Files that went with nothing, sorted."""
        rest = self._files.paths.filter(pa.array(~self._used))
        return sorted(rest.to_pylist())


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

    def finish(self, left_out: LeftOuts) -> dict[str, object]:
        """Lists the names that no image has; returns facts for the report."""
        for split, name in self._lists.unmet() if self._lists else ():
            left_out.append(LeftOut(name, "missing", f"the {split} list names it, no image has that name"))
        unused = {text: count for text, count in self._unused.items() if count}
        notes: dict[str, object] = {"samples of no split that is used": unused} if unused else {}
        repeated = self._lists.repeated if self._lists else {}
        return notes | ({"names of two lists, kept in the first": repeated} if repeated else {})


class _Labelling:
    """Label of a row by its path or by a file beside it."""

    def __init__(self, card: Card, root: Path, left_out: LeftOuts) -> None:
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
                found = from_npy(path, len(self.classes))
            else:
                found = from_json(path, self._label.field, self._label.map, self._numbers)
        except LabelError as error:
            self._left_out.append(LeftOut(key, "no label", str(error)))
            return None
        if not found:
            self._left_out.append(LeftOut(key, "no label", f"{path.name} names none of the classes"))
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


def _check_keys(card: Card, candidates: Candidates) -> None:
    """Renames the samples after their paths where two have one name, which lists could not tell apart."""
    if card.task == "unpaired" or not candidates.has_doubled_keys():
        return
    grouped = card.recipe.group is not None

    def after_its_path(candidate: Candidate) -> Candidate:
        path = stem(next(iter(candidate.paths.values())))
        candidate.group = candidate.group if grouped else path
        candidate.key = path
        return candidate

    candidates.update(after_its_path)
