"""The command line of llmgym: ``llmgym --help`` lists its commands. Each group has a file of its own."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import typer

from llmgym.cli import (
    benchmarks,
    calibration,
    discovery,
    evaluation,
    measuring,
    optimum,
    reproduction,
    simulation,
    speed,
    studies,
    training,
)
from llmgym.cli.output import any_character, complain, messages
from llmgym.core.compile_cache import keep_programs
from llmgym.core.errors import LLMGymError, UnservableWarning
from llmgym.core.foreign_names import here
from llmgym.core.precision import in_32_bits

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Reinforcement-learning environments for scheduling LLM inference.",
)
for group in (
    discovery, simulation, benchmarks, training, evaluation, optimum, reproduction, studies,
    measuring, calibration, speed,
):  # fmt: skip
    app.add_typer(group.app)


STOPPED = 128 + signal.SIGINT
"""Exit code after Ctrl-C or SIGTERM."""


@in_32_bits
def main() -> None:
    """Entry point: bad input is one line on standard error and exit code 2."""
    any_character()
    keep_programs()
    with _terminated_as_interrupted():
        code = _run()
        if code == STOPPED:
            messages.print(
                "Stopped. The same command resumes a benchmark, a training, an evaluation or a reproduction.",
                soft_wrap=True,
            )
            _end_at_once(code)
    sys.exit(code)


def _end_at_once(code: int) -> None:
    """End without Python's tidying up, in which XLA, still busy in threads of its own, would crash."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def _run() -> int:
    """Run the command that was typed; its exit code."""
    try:
        code = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return STOPPED
    except (LLMGymError, UnservableWarning) as error:
        complain(str(error))
        return 2
    except OSError as error:  # the machine's fault, such as a full disk; never a slip of the code
        complain(f"{error.filename or 'The system'}: {error.strerror or error}.")
        return 2
    except MemoryError:
        complain("There is not enough memory. Use fewer environments, slots or requests.")
        return 2
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return _misused(error)
    return code if isinstance(code, int) else 0


def _misused(error: Any) -> int:
    """Say in one line what is wrong with the options that were typed, as Typer found it."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return int(error.exit_code)
    option = getattr(error, "option_name", "")
    hint = f"See {context.command_path} --help." if context is not None else ""
    if here(option):
        hint = f"{option} of other servers is here: {here(option)}; see --set."
    complain(str(LLMGymError(f"{error.format_message().rstrip('.')}. {hint}".rstrip())))
    return int(error.exit_code)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM, which batch systems send, stop a command as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # only there are signals heard
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()
