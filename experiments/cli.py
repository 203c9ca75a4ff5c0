"""The command `numa-rl`."""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType
from typing import NoReturn, Self

BAD_INPUT = 2  # exit code
INTERRUPTED = 130  # exit code of a shell command ended by Ctrl-C
BOUNCE_S = 1.0  # another Ctrl-C so soon is the same one: `timeout` sends each twice, and it must not stop what saves


def main() -> None:
    """Run a subcommand; bad input ends with one line on standard error and exit code 2."""
    with Interrupts() as interrupts:
        try:
            from experiments.commands import parse  # takes seconds, in which a person may press Ctrl-C

            parse().run()
        except KeyboardInterrupt:
            _end("stopped", INTERRUPTED)
        except Exception as error:
            # Python 3.11 wraps an interruption that comes during an import; one in a compiler's callback is lost.
            if interrupts.came or isinstance(error.__cause__, KeyboardInterrupt):
                _end("stopped", INTERRUPTED)
            told = _told(error)
            if told is None:
                raise
            _end(told, BAD_INPUT)


class Interrupts:
    """Whether Ctrl-C was pressed, told even where the exception is swallowed; a context manager.

    Attributes:
        came: whether it was.
    """

    def __init__(self) -> None:
        """None came yet."""
        self.came = False
        self._at = -BOUNCE_S
        self._tell = sys.unraisablehook

    def __enter__(self) -> Self:
        """Note interruptions from now on; a process that is to ignore them goes on doing so."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupt)
            sys.unraisablehook = lambda found: None if self.came else self._tell(found)
        return self

    def __exit__(self, *error: object) -> None:
        """Leave everything as it was."""
        if signal.getsignal(signal.SIGINT) == self._interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.unraisablehook = self._tell

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        again = time.monotonic() - self._at < BOUNCE_S
        self._at = time.monotonic()
        if not again:
            raise KeyboardInterrupt


def _told(error: Exception) -> str | None:
    """What to say of bad input; None for what is an error of ours."""
    if isinstance(error, MemoryError):
        return f"not enough memory for what was asked for: {error}"
    if isinstance(error, OverflowError):
        return f"a number is too large or too small: {error}"
    return str(error) if isinstance(error, ValueError | OSError) else None


def _end(message: str, code: int) -> NoReturn:
    print(f"numa-rl: {message}", file=sys.stderr)
    raise SystemExit(code) from None


if __name__ == "__main__":
    main()
