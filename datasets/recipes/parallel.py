"""Work on a stream, in this process or in several, never far ahead of what is asked for."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_AHEAD = 4


class Workers:
    """Processes that work through streams, as a context manager.

    Args:
        number: How many; below two the work is done in this process.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._executor = ProcessPoolExecutor(number) if number > 1 else None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: object) -> None:
        if self._executor:
            self._executor.shutdown(cancel_futures=True)

    def map(
        self, function: Callable[[_Item], _Result], items: Iterable[_Item]
    ) -> Iterator[tuple[_Item, _Result]]:
        """Each item and its result, in order; only a few items a process are taken ahead."""
        if self._executor is None:
            for item in items:
                yield item, function(item)
            return
        waiting: deque[tuple[_Item, Future[_Result]]] = deque()
        for item in items:
            waiting.append((item, self._executor.submit(function, item)))
            if len(waiting) >= _AHEAD * self._number:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
