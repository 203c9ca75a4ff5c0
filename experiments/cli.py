"""The command `numa-rl`."""

from __future__ import annotations

import sys

BAD_INPUT = 2  # exit code
INTERRUPTED = 130  # exit code of a shell command ended by Ctrl-C


def main() -> None:
    """Run a subcommand; bad input ends with one line on standard error and exit code 2."""
    try:
        from experiments.commands import parse  # takes seconds, in which a person may press Ctrl-C

        parse().run()
    except MemoryError as error:
        _end(f"not enough memory for what was asked for: {error}", BAD_INPUT)
    except OverflowError as error:
        _end(f"a number is too large or too small: {error}", BAD_INPUT)
    except (ValueError, OSError) as error:
        _end(str(error), BAD_INPUT)
    except KeyboardInterrupt:
        _end("stopped", INTERRUPTED)
    except RuntimeError as error:
        if not isinstance(error.__cause__, KeyboardInterrupt):  # so Python 3.11 wraps one that comes during an import
            raise
        _end("stopped", INTERRUPTED)


def _end(message: str, code: int) -> None:
    print(f"numa-rl: {message}", file=sys.stderr)
    raise SystemExit(code) from None


if __name__ == "__main__":
    main()
