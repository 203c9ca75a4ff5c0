"""What a policy is judged on: test episodes of the standard suite at the suite's own loads, and against whom."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from agents.planners.catalog import planner_names
from agents.rules.catalog import RULES, rule_names
from agents.rules.greedy import Greedy, PricedGreedy
from experiments.fidelity.cells import HELD_OUT, LoadedCell
from experiments.suite.definition import STANDARD, read_definition
from experiments.suite.players import PlannerPlayer, Player, RulePlayer
from experiments.suite.tuning import Tuned, parameters_in
from experiments.tune import require_at_least

# 4 and 16 nodes, and the two machines on which nothing is ever trained or tuned, of 8 nodes each.
MACHINES = ("kunpeng-920", "phytium-ft2500", "r815", "hygon-7280")
RIVALS = (PricedGreedy.name, Greedy.name)
TO_THE_CELL = ", to the cell"  # after the name of a rule whose parameters were tuned to the cell that it plays


@dataclass(frozen=True)
class Contest:
    """What is played.

    Attributes:
        families: of the standard suite; all of them where none is named.
        machines: names or files of machines.
        rules: names of rules and planners; planners play where an episode is one graph, known in advance.
        per_cell: whether rules also play with the parameters tuned to each cell, where there are any: nothing is tuned
            to a cell that is held out.
        num_episodes: test episodes of each cell, the same for everybody.
        seed: of the episodes and of the bootstrap.

    Raises:
        ValueError: an unknown family or rule, nothing to compare with, or a value out of range.
    """

    families: tuple[str, ...] = ()
    machines: tuple[str, ...] = MACHINES
    rules: tuple[str, ...] = RIVALS
    per_cell: bool = False
    num_episodes: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        """Check names and ranges; what is named twice counts once."""
        known = list(read_definition(STANDARD).families)
        object.__setattr__(self, "families", tuple(dict.fromkeys(self.families or known)))
        for name in ("machines", "rules"):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
            if not getattr(self, name):
                raise ValueError(f"{name} must name at least one, got none.")
        _require_known("family", self.families, known)
        _require_known("rule", self.rules, [*rule_names(), *planner_names()])
        require_at_least(1, self.num_episodes, "episodes")
        require_at_least(0, self.seed, "seed")

    @property
    def tunable(self) -> tuple[str, ...]:
        """The rules that have something to tune."""
        return tuple(name for name in self.rules if name in RULES and RULES[name].tunable)

    def cells(self) -> list[LoadedCell]:
        """Every family on every machine, at the load that the suite has it offer.

        Raises:
            ValueError: an unknown machine.
        """
        suite = read_definition(STANDARD)
        part = replace(
            suite,
            machines={name: suite.machines.get(name, HELD_OUT) for name in self.machines},
            families={name: suite.families[name] for name in self.families},
        )
        loads = {name: entry.load for name, entry in part.families.items()}
        return [
            LoadedCell(cell, None if (load := loads[cell.family]) is None else 100.0 * load) for cell in part.cells()
        ]

    def rivals(self, cell: LoadedCell, tuned: Tuned) -> dict[str, Player]:
        """Who plays a cell besides the policy, by the name that tables use.

        Args:
            cell: where they play.
            tuned: parameters of all tunable rules.

        Raises:
            ValueError: a rule is to play as tuned to the cell, and it was not tuned there though it is no held out one.
        """
        found: dict[str, Player] = {}
        for name in self.rules:
            if name not in RULES:
                if cell.cell.is_graph:  # in a stream a planner sees what nobody can know
                    found[name] = PlannerPlayer(name)
                continue
            scenario = cell.cell.scenario
            single = tuned.single[name] if name in self.tunable else {}
            found[name] = RulePlayer(name, parameters_in(scenario, name, single))
            if self.per_cell and name in self.tunable and not cell.cell.held_out:
                own = tuned.by_cell.get(cell.cell.name, {}).get(name)
                if own is None:
                    raise ValueError(f"tuned rules must have parameters of {name} for {cell.cell.name}, got none.")
                found[f"{name}{TO_THE_CELL}"] = RulePlayer(name, parameters_in(scenario, name, own))
        return found


def _require_known(kind: str, names: Collection[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{kind} must be one of {', '.join(known)}, got {name!r}.")
