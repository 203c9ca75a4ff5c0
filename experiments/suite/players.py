"""Who plays in the suite, described by little text, so that other processes can make them and caches name them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from agents.lookahead import SUFFIX, Lookahead
from agents.lookahead_scores import LogitScores
from agents.oracle.beam import Oracle
from agents.planners.catalog import make_planner, planner_names
from agents.rules.catalog import RULES, make_rule
from agents.rules.greedy import PricedGreedy
from agents.scheduler import Planner, Scheduler
from experiments.files import file_digest
from experiments.shielding import load_shield
from experiments.suite.sources import AGENTS, LEARNED, ORACLE, PLANNER, RULE, code_digest
from numa_rl.compilation import source_digest


@dataclass(frozen=True)
class Player(ABC):
    """A scheduler to be made where it plays.

    Attributes:
        name: how tables call it.
    """

    kind: ClassVar[str]
    name: str

    @abstractmethod
    def make(self) -> Scheduler | Planner:
        """The scheduler itself."""

    @property
    @abstractmethod
    def inputs(self) -> dict[str, Any]:
        """What tells it from all others, as JSON values."""


@dataclass(frozen=True)
class RulePlayer(Player):
    """A rule with its parameters."""

    kind: ClassVar[str] = RULE
    parameters: Mapping[str, float] = field(default_factory=dict)

    def make(self) -> Scheduler:
        """See `Player.make`."""
        return make_rule(self.name, **self.parameters)

    @property
    def inputs(self) -> dict[str, Any]:
        """See `Player.inputs`."""
        return {"kind": self.kind, "name": self.name, "parameters": dict(self.parameters)}


@dataclass(frozen=True)
class PlannerPlayer(Player):
    """A planner, with nothing to tune."""

    kind: ClassVar[str] = PLANNER

    def make(self) -> Planner:
        """See `Player.make`."""
        return make_planner(self.name)

    @property
    def inputs(self) -> dict[str, Any]:
        """See `Player.inputs`."""
        return {"kind": self.kind, "name": self.name}


@dataclass(frozen=True)
class LearnedPlayer(Player):
    """A learned policy.

    Attributes:
        path: its file.
        digest: SHA-256 of the file's content.
        trained_on: the scenario that it was trained on.
    """

    kind: ClassVar[str] = LEARNED
    path: Path
    digest: str
    trained_on: str

    @classmethod
    def read(cls, path: Path) -> LearnedPlayer:
        """The policy in a file.

        Raises:
            ValueError: the file is missing, damaged, or no policy.
        """
        digest = file_digest(path)
        policy, about = _load(path, digest)
        return cls(policy.name, path, digest, str(about.get("scenario", "an unknown scenario")))

    def make(self) -> Scheduler:
        """See `Player.make`."""
        return _load(self.path, self.digest)[0]

    @property
    def inputs(self) -> dict[str, Any]:
        """See `Player.inputs`."""
        return {"kind": self.kind, "name": self.name, "policy": self.digest}


@dataclass(frozen=True)
class LookaheadPlayer(Player):
    """A learned policy that tries placements in the model before it decides; see `agents.lookahead`.

    Attributes:
        policy: proposes placements; the rule that it starts from places what follows.
        others: whose plans it may take where the graph of tasks is known.
    """

    kind: ClassVar[str] = LEARNED
    policy: LearnedPlayer
    others: tuple[Player, ...]

    @classmethod
    def of(cls, policy: LearnedPlayer) -> LookaheadPlayer:
        """Beside all planners, and the rules as they are by default: nothing is tuned to a cell."""
        others = (*map(PlannerPlayer, planner_names()), *map(RulePlayer, RULES))
        return cls(f"{policy.name}{SUFFIX}", policy, others)

    def make(self) -> Planner:
        """See `Player.make`."""
        scores = LogitScores(self.policy.make())
        return Lookahead(scores, scores.rule, tuple(player.make() for player in self.others))

    @property
    def inputs(self) -> dict[str, Any]:
        """See `Player.inputs`."""
        kinds = sorted({ORACLE, *(player.kind for player in self.others)})  # it searches graphs as the oracle does
        return {
            "kind": self.kind,
            "lookahead": self.policy.inputs,
            "others": [player.inputs for player in self.others],
            "code": [
                source_digest([str(path) for path in sorted(AGENTS.glob("lookahead*.py"))]),
                *map(code_digest, kinds),
            ],
        }


@dataclass(frozen=True)
class ShieldedPlayer(Player):
    """A learned policy under a shield, by the rule that it started from.

    Attributes:
        policy: the policy alone.
    """

    kind: ClassVar[str] = LEARNED
    policy: LearnedPlayer

    @classmethod
    def over(cls, policy: LearnedPlayer) -> ShieldedPlayer:
        """The same policy with a shield."""
        return cls(f"{policy.name}+shield", policy)

    def make(self) -> Planner:
        """See `Player.make`."""
        return load_shield(self.policy.path)

    @property
    def inputs(self) -> dict[str, Any]:
        """See `Player.inputs`."""
        return self.policy.inputs | {"shield": True}


@dataclass(frozen=True)
class OraclePlayer(Player):
    """The clairvoyant beam search.

    Attributes:
        parameters: of the priced greedy rule, by which it looks ahead.
        others: whose plans it takes in episodes in which they are better than its own.
        width: of the beam.
    """

    kind: ClassVar[str] = ORACLE
    parameters: Mapping[str, float]
    others: tuple[Player, ...]
    width: int

    def make(self) -> Planner:
        """See `Player.make`."""
        others = tuple(player.make() for player in self.others)
        return Oracle(PricedGreedy(**self.parameters), others, self.width)

    @property
    def inputs(self) -> dict[str, Any]:
        """See `Player.inputs`."""
        others = [{**player.inputs, "code": code_digest(player.kind)} for player in self.others]
        return {"kind": self.kind, "rule": dict(self.parameters), "others": others, "width": self.width}


@lru_cache(maxsize=1)
def _load(path: Path, digest: str) -> tuple[Scheduler, Mapping[str, Any]]:
    """The policy in a file of this content: one that is written anew is read anew."""
    import torch  # takes a second: only who needs it waits

    from agents.ppo.storage import load_policy

    torch.set_num_threads(1)  # the networks are small: more threads only wait for each other
    return load_policy(path)
