"""Names for things that users choose by name."""

import difflib
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T", bound=Callable[..., Any])


class Registry(Generic[T]):
    """A mapping from lower-case names to factories or classes.

    Args:
        kind: What is registered, for messages ("encoder", "method").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, entry: T | str) -> Any:
        """Registers an entry, as ``@registry.register`` or, by a given name, ``@registry.register("x")``.

        Raises:
            ValueError: The name is taken.
        """
        if isinstance(entry, str):
            name = entry
            return lambda decorated: self._add(name, decorated)
        return self._add(entry.__name__.lower(), entry)

    def _add(self, name: str, entry: T) -> T:
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered twice; choose another name")
        self._entries[name] = entry
        return entry

    def get(self, name: str) -> T:
        """Returns the entry of this name.

        Raises:
            KeyError: There is none; the message names the nearest and lists all.
        """
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise KeyError(f"unknown {self.kind} {name!r}{hint} Known: {', '.join(self.names())}")
        return self._entries[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())
