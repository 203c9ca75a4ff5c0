"""Digests of the code that results come from: with other code, cached results count for nothing."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from pathlib import Path

import numba
import numpy as np
import scipy

import agents
import envs
import experiments
import numa_rl
from numa_rl.compilation import source_digest

RULE, PLANNER, ORACLE, LEARNED = KINDS = ("rule", "planner", "oracle", "learned")  # of schedulers

PACKAGES = (numa_rl, envs, agents, experiments)
NUMA_RL, ENVS, AGENTS, EXPERIMENTS = (Path(str(package.__file__)).parent for package in PACKAGES)

# Machines and families count by their figures and parameters; how those become episodes and outcomes is code.
EVERYBODY = (
    *(NUMA_RL / pattern for pattern in ("*.py", "simulator/*.py", "workloads/*.py", "communication/*.py")),
    *(NUMA_RL / pattern for pattern in ("coherence/*.py", "stealing/*.py", "partition/tree_match.py")),
    NUMA_RL / "transformer/*.py",
    ENVS / "*.py",
    *(AGENTS / pattern for pattern in ("evaluation.py", "scheduler.py", "settings.py", "tuning.py", "rules/*.py")),
    *(EXPERIMENTS / pattern for pattern in ("scenario.py", "tune.py", "suite/work.py")),
)
OF_KIND = {
    RULE: (),
    PLANNER: (AGENTS / "accesses.py", AGENTS / "planners/*.py", NUMA_RL / "partition/*.py"),
    ORACLE: (AGENTS / "rollouts.py", AGENTS / "oracle/*.py"),
    LEARNED: (
        *(AGENTS / pattern for pattern in ("ppo/*.py", "shield*.py", "seen.py", "lookahead*.py", "rollouts.py")),
        *(AGENTS / "oracle/*.py", EXPERIMENTS / "shielding.py"),
    ),
}


@cache
def code_digest(kind: str) -> str:
    """Short hash of all code and libraries that decide how a scheduler of this kind fares."""
    patterns = (*EVERYBODY, *OF_KIND[kind])
    files = sorted({path for pattern in patterns for path in pattern.parent.glob(pattern.name)})
    libraries = [*versions().values(), *([version("torch")] if kind == LEARNED else [])]
    return f"{source_digest([str(path) for path in files])}-{'-'.join(libraries)}"


def versions() -> dict[str, str]:
    """Versions of the libraries that compute results."""
    return {module.__name__: module.__version__ for module in (np, numba, scipy)}
