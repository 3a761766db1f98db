"""The command line of llmgym: ``llmgym --help`` lists its commands. Each group has a file of its own."""

from __future__ import annotations

import sys

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
from llmgym.cli.common import messages
from llmgym.core.errors import LLMGymError, UnservableWarning
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


@in_32_bits
def main() -> None:
    """Entry point: bad input is one line on standard error and exit code 2."""
    try:
        app()
    except (LLMGymError, UnservableWarning) as error:
        messages.print(
            f"llmgym: {error}", style="red", highlight=False, markup=False, soft_wrap=True
        )
        sys.exit(2)
    except KeyboardInterrupt:
        messages.print(
            "Stopped. The same command resumes a benchmark, a training, an evaluation or a reproduction."
        )
        sys.exit(130)


if __name__ == "__main__":
    main()
