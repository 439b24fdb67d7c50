"""Path templates: finds the files of a layout and the fields of their names."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")


class TemplateError(ValueError):
    """A template is not written in the language of templates."""


@dataclass(frozen=True, slots=True)
class Field:
    """A named part of a path.

    Attributes:
        name: Name of the field.
        pattern: Regular expression of its text.
    """

    name: str
    pattern: str


Piece = str | Field


class Template:
    """A relative path with fields, such as ``"{split}/sar/{key}.tif"``.

    ``{name}`` stands for one or more characters without a slash, ``{name:REGEX}`` for what REGEX matches; a
    REGEX crosses folders only if a slash is written in it. A field that stands twice has one text. The suffix
    of the file name matches in either case.

    Attributes:
        text: The template as written.
        fields: Names of its fields, in the order of their first occurrence.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        pieces = _pieces(text)
        self.fields = tuple(dict.fromkeys(piece.name for piece in pieces if isinstance(piece, Field)))
        self._pieces = pieces
        self._components = _components(pieces)

    def __repr__(self) -> str:
        return f"Template({self.text!r})"

    @property
    def prefix(self) -> str:
        """Folders before the first field, without a slash at the end."""
        literal: list[str] = []
        for component in self._components[:-1]:
            if any(isinstance(piece, Field) for piece in component):
                break
            literal.append("".join(str(piece) for piece in component))
        return "/".join(literal)

    def fill(self, fields: Mapping[str, str]) -> str:
        """The path of given fields.

        Raises:
            KeyError: A field is not given.
        """
        return "".join(fields[piece.name] if isinstance(piece, Field) else piece for piece in self._pieces)

    def match(self, path: str) -> dict[str, str]:
        """Texts of the fields in a path that this template found.

        Raises:
            ValueError: The path is not like the template.
        """
        known: dict[str, str] = {}
        rest = path
        for place, component in enumerate(self._components):
            last = place == len(self._components) - 1
            name, rest = (rest, "") if last else rest.split("/", 1)
            found = _expression(component, known, is_file=last).fullmatch(name)
            if found is None:
                raise ValueError(f"{path!r} is not like the template {self.text!r}")
            known |= found.groupdict()
        return known

    def find(self, root: Path) -> Iterator[tuple[dict[str, str], str]]:
        """The files below a root that match, sorted folder by folder, hidden ones left aside.

        Yields:
            Texts of the fields, and the path relative to the root.
        """
        yield from _descend(str(root), "", self._components, {})


def _pieces(text: str) -> list[Piece]:
    """Literal texts and fields; braces inside a REGEX are balanced."""
    if not text or text.startswith("/") or "\\" in text.split("{")[0] or ".." in text.split("/"):
        raise TemplateError(f"template {text!r} is not a path relative to the root")
    pieces: list[Piece] = []
    literal, place = "", 0
    while place < len(text):
        if text[place] == "}":
            raise TemplateError(f"template {text!r} closes a brace that is not open")
        if text[place] != "{":
            literal += text[place]
            place += 1
            continue
        end, depth = place + 1, 1
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if depth:
            raise TemplateError(f"template {text!r} opens a brace that is not closed")
        name, _, pattern = text[place + 1 : end - 1].partition(":")
        if not _NAME.fullmatch(name):
            raise TemplateError(f"template {text!r} has a field named {name!r}; names are letters, digits, _")
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise TemplateError(f"template {text!r}: {pattern!r} is no regular expression: {error}") from None
        if groups:
            raise TemplateError(f"template {text!r}: write (?:...) instead of (...) in {pattern!r}")
        pieces += [literal] if literal else []
        pieces.append(Field(name, pattern or "[^/]+"))
        literal, place = "", end
    pieces += [literal] if literal else []
    return pieces


def _components(pieces: list[Piece]) -> list[list[Piece]]:
    """The pieces of each folder and of the file; a field that crosses folders keeps all that follows."""
    components: list[list[Piece]] = [[]]
    for place, piece in enumerate(pieces):
        if isinstance(piece, Field):
            if _crosses(piece):
                components[-1] += pieces[place:]
                return components
            components[-1].append(piece)
            continue
        first, *further = piece.split("/")
        components[-1] += [first] if first else []
        components += [[part] if part else [] for part in further]
    return components


def _crosses(field: Field) -> bool:
    return field.pattern != "[^/]+" and "/" in re.sub(r"\[\^[^\]]*\]", "", field.pattern)


def _expression(component: list[Piece], known: Mapping[str, str], is_file: bool) -> re.Pattern[str]:
    """A regular expression for the names that fit, given the texts of fields that stood further up."""
    text = ""
    seen: set[str] = set()
    for place, piece in enumerate(component):
        if isinstance(piece, str):
            stem, dot, suffix = piece.rpartition(".")
            if is_file and dot and place == len(component) - 1 and "/" not in suffix:
                text += re.escape(stem + dot) + f"(?i:{re.escape(suffix)})"
            else:
                text += re.escape(piece)
        elif piece.name in known:
            text += re.escape(known[piece.name])
        elif piece.name in seen:
            text += f"(?P={piece.name})"
        else:
            seen.add(piece.name)
            text += f"(?P<{piece.name}>{piece.pattern})"
    return re.compile(text)


def _descend(
    root: str, folder: str, components: list[list[Piece]], known: dict[str, str]
) -> Iterator[tuple[dict[str, str], str]]:
    component, *further = components
    crossing = any(isinstance(piece, Field) and _crosses(piece) for piece in component)
    plain = all(isinstance(piece, str) or piece.name in known for piece in component)
    if further and plain and not crossing:
        name = "".join(piece if isinstance(piece, str) else known[piece.name] for piece in component)
        if os.path.isdir(os.path.join(root, folder, name)):
            yield from _descend(root, folder + name + "/", further, known)
        return
    expression = _expression(component, known, is_file=not further)
    names = (
        _below(os.path.join(root, folder)) if crossing else _names(os.path.join(root, folder), not further)
    )
    for name in names:
        match = expression.fullmatch(name)
        if match is None:
            continue
        found = known | match.groupdict()
        if further:
            yield from _descend(root, folder + name + "/", further, found)
        else:
            yield found, folder + name


def _names(folder: str, files: bool) -> list[str]:
    """Names of the files, or of the folders, in a folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith(".") and (entry.is_file() if files else entry.is_dir())
            )
    except (FileNotFoundError, NotADirectoryError):
        return []


def _below(folder: str) -> Iterator[str]:
    """Paths of all files below a folder, relative to it."""
    yield from _names(folder, files=True)
    for name in _names(folder, files=False):
        for path in _below(os.path.join(folder, name)):
            yield f"{name}/{path}"
