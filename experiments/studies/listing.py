"""Which studies there are."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from rich.console import Console

from experiments.fidelity.judge import Referee
from experiments.fidelity.study import Fidelity
from experiments.studies.ablations import Ablations
from experiments.studies.adversarial import Adversarial
from experiments.studies.case_200t import Case200T
from experiments.studies.learning import Learning
from experiments.studies.measured import MeasuredMachines

STUDIES = {
    "ablations": Ablations,
    "adversarial": Adversarial,
    "case-200t": Case200T,
    "fidelity": Fidelity,
    "learning": Learning,
    "machines": MeasuredMachines,
    "referee": Referee,
}


@dataclass(frozen=True)
class StudyList:
    """Say which studies there are."""

    def run(self) -> None:
        """Print each with the first line of what it says of itself."""
        console = Console(highlight=False)
        for name, study in STUDIES.items():
            console.print(f"[bold]{name}[/bold]  {inspect.getdoc(study).splitlines()[0]}")  # type: ignore[union-attr]
