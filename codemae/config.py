"""One call from a dataclass schema, YAML files and ``--a.b=value`` to a typed config, and back to YAML."""

import dataclasses
import difflib
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, Union

import yaml
from jsonargparse import ArgumentError, ArgumentParser

T = TypeVar("T")
Tree = dict[str, Any]


class ConfigError(ValueError):
    """A config cannot be used; the message names the key and what to write instead."""


def load_config(
    schema: type[T],
    argv: Sequence[str] | None = None,
    *,
    variants: Mapping[str, Callable[[str], type]] | None = None,
    description: str = "",
) -> T:
    """Fills a schema from ``--config FILE.yaml`` and ``--a.b value``; the later of two values wins.

    A YAML file may name another in ``base`` (relative to itself) and then holds only what differs. Fields
    typed as lists also take one comma separated string. On any mistake the process says what and where on
    standard error and exits with code 2, before any work.

    Args:
        schema: Keyword-only dataclass, nested ones included.
        argv: Words of the command line; those of this process by default.
        variants: For a top-level field, from its ``name`` entry to the dataclass of that name.
        description: Printed by ``--help``.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        sources, wants_help = _read_sources(words)
        if wants_help:
            _print_help(schema, sources, variants or {}, description)
            raise SystemExit(0)
        return build_config(schema, sources, variants=variants)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def build_config(
    schema: type[T],
    sources: Sequence[tuple[str, Tree]],
    *,
    variants: Mapping[str, Callable[[str], type]] | None = None,
) -> T:
    """Fills a schema from labelled trees of values; later ones win.

    Raises:
        ConfigError: A key is unknown, a value has the wrong type, or one that is required is missing.
    """
    sources = [(label, _spell_out_names(tree, variants or {})) for label, tree in sources]
    merged: Tree = {}
    for _, tree in sources:
        merged = _merge(merged, tree)
    resolved = _resolve_variants(schema, merged, variants or {})
    known = list(_keys(resolved))
    for label, tree in sources:
        _refuse_unknown(tree, resolved, known, label)
    _split_lists(merged, resolved)
    parser = _parser(resolved, "")
    try:
        values = parser.instantiate(parser.parse_object(merged))
        return resolved(**vars(values))
    except (ArgumentError, ValueError, TypeError) as error:
        raise ConfigError(_in_words(error)) from error


def to_dict(config: Any) -> Tree:
    """A config as plain dicts, lists, strings and numbers."""
    return _plain(config)


def save_config(config: Any, path: str | Path) -> None:
    """Writes a config as YAML that ``load_config`` reads back; a crash leaves the old file or the new one."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")
    os.replace(partial, path)


def read_yaml(path: str | Path) -> Tree:
    """Reads a YAML file and those it names as ``base``, merged.

    Raises:
        ConfigError: It is missing, is no mapping, is not YAML, holds a key twice, or is its own base.
    """
    merged: Tree = {}
    for _, tree in _read_chain(Path(path), ()):
        merged = _merge(merged, tree)
    return merged


def diff_configs(a: Tree, b: Tree) -> list[tuple[str, Any, Any]]:
    """The dotted keys in which two trees differ, with both values; None where a key is missing."""
    flat_a, flat_b = _flatten(a), _flatten(b)
    keys = list(dict.fromkeys([*flat_a, *flat_b]))
    return [(key, flat_a.get(key), flat_b.get(key)) for key in keys if flat_a.get(key) != flat_b.get(key)]


class _RepeatedKeyError(yaml.YAMLError):
    """A mapping holds a key twice; YAML forbids it, PyYAML keeps the last."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers: 1e-4 is a float. A key stands once in its mapping."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in lines:
                where = sorted({lines[key.value], line})
                raise _RepeatedKeyError(
                    f"has the key {key.value!r} twice (line {' and line '.join(map(str, where))}); keep one"
                )
            lines[key.value] = line
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def _read_sources(words: list[str]) -> tuple[list[tuple[str, Tree]], bool]:
    files: list[tuple[str, Tree]] = []
    given: list[tuple[str, Tree]] = []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word in ("-h", "--help"):
            return files + given, True
        if not word.startswith("--"):
            raise ConfigError(f"unexpected word {word!r}; write --key value or --key=value")
        key, has_value, value = word[2:].partition("=")
        if not has_value:
            value = "true"
            if position < len(words) and not words[position].startswith("--"):
                value = words[position]
                position += 1
            elif key == "config":
                raise ConfigError("--config needs the path of a YAML file")
        key = key.replace("-", "_")
        if key == "config":
            files += _read_chain(Path(value), ())
        else:
            given.append((f"--{key}", _nest(key, value)))
    return files + given, False


def _read_chain(path: Path, seen: tuple[Path, ...]) -> list[tuple[str, Tree]]:
    if path.resolve() in seen:
        raise ConfigError(f"{path} is its own base; remove the `base:` line of one of the files")
    if not path.is_file():
        raise ConfigError(f"no config file at {path}")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader) or {}
    except _RepeatedKeyError as error:
        raise ConfigError(f"{path} {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise ConfigError(f"{path} must hold `key: value` lines, not a {type(tree).__name__}")
    base = tree.pop("base", None)
    before = _read_chain(path.parent / base, (*seen, path.resolve())) if base else []
    return [*before, (str(path), tree)]


def _nest(key: str, value: Any) -> Tree:
    *parents, leaf = key.split(".")
    tree: Tree = {leaf: value}
    for parent in reversed(parents):
        tree = {parent: tree}
    return tree


def _merge(below: Tree, above: Tree) -> Tree:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _flatten(tree: Tree, prefix: str = "") -> Tree:
    flat: Tree = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _spell_out_names(tree: Tree, variants: Mapping[str, Callable[[str], type]]) -> Tree:
    return {
        key: {"name": value} if key in variants and isinstance(value, str) else value
        for key, value in tree.items()
    }


def _resolve_variants(schema: type, merged: Tree, variants: Mapping[str, Callable[[str], type]]) -> Any:
    fields: list[Any] = []
    for key, lookup in variants.items():
        name = (merged.get(key) or {}).get("name")
        if name is None:
            raise ConfigError(f"{key}.name is missing; name one in a YAML file or with --{key}.name")
        try:
            variant = lookup(name)
        except KeyError as error:
            raise ConfigError(f"{key}.name: {error.args[0]}") from error
        if "name" not in {f.name for f in dataclasses.fields(variant)}:
            variant = dataclasses.make_dataclass(
                variant.__name__, [("name", str, name)], bases=(variant,), kw_only=True
            )
        fields.append((key, variant))
    return (
        dataclasses.make_dataclass(schema.__name__, fields, bases=(schema,), kw_only=True)
        if fields
        else schema
    )


def _parser(schema: type, description: str) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, description=description, add_help=False)
    parser.add_class_arguments(schema, None)
    return parser


def _print_help(
    schema: type,
    sources: list[tuple[str, Tree]],
    variants: Mapping[str, Callable[[str], type]],
    description: str,
) -> None:
    merged: Tree = {}
    for _, tree in sources:
        merged = _merge(merged, _spell_out_names(tree, variants))
    named = {key: lookup for key, lookup in variants.items() if (merged.get(key) or {}).get("name")}
    print(f"{description}\n\n--config FILE.yaml and any of these keys, as --key value:\n")
    resolved = _resolve_variants(schema, merged, named)
    for key, type_, default in _leaves(resolved):
        print(f"  --{key} {_type_name(type_)}{default}")
    for key in set(variants) - set(named):
        print(f"\nthe keys of --{key} appear once --{key}.name or a --config is given")


def _dataclass_in(type_: Any) -> type | None:
    if isinstance(type_, type) and dataclasses.is_dataclass(type_):
        return type_
    if typing.get_origin(type_) in (Union, types.UnionType):
        return next(filter(None, map(_dataclass_in, typing.get_args(type_))), None)
    return None


def _hints(schema: type) -> dict[str, Any]:
    hints = typing.get_type_hints(schema)
    return {f.name: hints[f.name] for f in dataclasses.fields(schema) if f.init}


def _leaves(schema: type, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    hints = _hints(schema)
    for field in dataclasses.fields(schema):
        if not field.init:
            continue
        inner = _dataclass_in(hints[field.name])
        if inner is not None:
            yield from _leaves(inner, f"{prefix}{field.name}.")
            continue
        default = " (required)"
        if field.default is not dataclasses.MISSING:
            default = f" (default: {field.default})"
        elif field.default_factory is not dataclasses.MISSING:
            default = f" (default: {field.default_factory()})"
        yield f"{prefix}{field.name}", hints[field.name], default


def _keys(schema: type, prefix: str = "") -> Iterator[str]:
    for name, type_ in _hints(schema).items():
        yield f"{prefix}{name}"
        inner = _dataclass_in(type_)
        if inner is not None:
            yield from _keys(inner, f"{prefix}{name}.")


def _refuse_unknown(tree: Tree, schema: type, known: list[str], label: str, prefix: str = "") -> None:
    hints = _hints(schema)
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if name not in hints:
            where = "" if label == f"--{key}" else f" in {label}"
            raise ConfigError(
                f"unknown key {key!r}{where}{_suggest(key, known, [f'{prefix}{h}' for h in hints])}"
            )
        inner = _dataclass_in(hints[name])
        if inner is not None and isinstance(value, dict):
            _refuse_unknown(value, inner, known, label, f"{key}.")
        elif inner is hints[name]:
            raise ConfigError(f"{key} in {label} takes keys ({', '.join(_hints(inner))}), not {value!r}")


def _suggest(key: str, known: list[str], siblings: list[str]) -> str:
    leaf = key.rsplit(".", 1)[-1]
    leaves: dict[str, str] = {}
    for candidate in known:
        leaves.setdefault(candidate.rsplit(".", 1)[-1], candidate)
    near = difflib.get_close_matches(key, siblings, n=1, cutoff=0.75)
    near = near or [leaves[name] for name in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.75)]
    near = near or difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(siblings)}"


def _split_lists(tree: Tree, schema: type) -> None:
    for name, type_ in _hints(schema).items():
        value = tree.get(name)
        inner = _dataclass_in(type_)
        if inner is not None and isinstance(value, dict):
            tree[name] = dict(value)
            _split_lists(tree[name], inner)
        elif isinstance(value, str) and _is_list(type_) and not value.lstrip().startswith("["):
            none = value in ("null", "None")
            tree[name] = None if none else [part.strip() for part in value.split(",") if part.strip()]


def _is_list(type_: Any) -> bool:
    if typing.get_origin(type_) in (Union, types.UnionType):
        parts = typing.get_args(type_)
        return str not in parts and any(map(_is_list, parts))
    return type_ in (list, tuple) or typing.get_origin(type_) in (list, tuple)


def _type_name(type_: Any) -> str:
    return (
        type_.__name__
        if isinstance(type_, type) and not typing.get_args(type_)
        else str(type_).replace("typing.", "")
    )


def _in_words(error: Exception) -> str:
    text = " ".join(str(error).split())
    text = re.sub(r"a <class '([\w.]+)'>", r"\1", text).replace("typing.", "")
    return re.sub(r'Parser key "([\w.]+)":', r"\1:", text)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value
