"""Published pages of results as studies: ``llmgym study NAME`` repeats one and writes its page."""

from __future__ import annotations

from pathlib import Path

from llmgym.core.errors import LLMGymError, unknown
from llmgym.core.files import write
from llmgym.studies.corner import Corner
from llmgym.studies.network import Network
from llmgym.studies.optimum import Optimum
from llmgym.studies.study import Study
from llmgym.studies.transfer import Transfer

STUDIES: dict[str, Study] = {s.name: s for s in (Optimum(), Transfer(), Network(), Corner())}


def select(name: str) -> Study:
    """The study of that name. Raises LLMGymError, with the nearest name, for an unknown one."""
    if name not in STUDIES:
        raise unknown("study", name, STUDIES)
    return STUDIES[name]


def publish(study: Study, out: Path, policy: str) -> list[Path]:
    """Write the page of a study, and tables beside it; their paths.

    Args:
        study: whose page it is.
        out: the folder that holds its measurements.
        policy: name or file of the learned policy that was measured.

    Raises:
        LLMGymError: the folder lacks measurements that the page shows.
    """
    try:
        pages = study.pages(out, policy)
    except LLMGymError:
        raise
    except (TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        raise LLMGymError(
            f"{out} holds damaged results ({type(error).__name__}: {error!s:.100}). Delete them and run "
            "the study without --page."
        ) from error
    except KeyError as error:
        raise LLMGymError(
            f"{out} lacks results for the page, {error} first. Run the study without --page."
        ) from None
    for name, text in pages.items():
        write(out / name, text)
    return [out / name for name in pages]
