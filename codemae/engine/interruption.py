"""SIGTERM and Ctrl-C as a flag that the loop reads between steps."""

import signal
import sys
from types import FrameType, TracebackType
from typing import Any


class Interrupted(Exception):
    """The run was asked to stop and has saved itself.

    Args:
        signum: The signal that asked.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


class Interruption:
    """Catches SIGTERM and SIGINT while active; a second SIGINT is not caught any more.

    Attributes:
        signum: The signal that came; 0 for none.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        print(f"\n{signal.Signals(signum).name}: finishing this step and saving", file=sys.stderr, flush=True)
        if signum == signal.SIGINT:
            signal.signal(signum, signal.default_int_handler)
