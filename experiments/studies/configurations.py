"""What the case study plays: the chapter's configurations of a training step, from the scenario that is their end.

Dimension key: N sockets, T tasks.

References:
    [1] The chapter, section 16.4.4: the initial configuration, and three steps to the hybrid one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from agents.scheduler import Actions
from envs.world import World
from experiments.scenario import Scenario
from numa_rl.machines.builders import eight_socket_cube, four_socket, from_links, two_socket
from numa_rl.topology import Topology
from numa_rl.workloads.training import TransformerTraining

SMALL_MESSAGE_BYTES, LARGE_MESSAGE_BYTES = 1e6, 16e6  # before and after [1]
GROUP_RANKS = 4  # of the hierarchical all-reduce: a face of the cube
ONE_SOCKET = from_links("1 socket", 1, [])
CHAPTER_MACHINES = {1: ONE_SOCKET, 2: two_socket(), 4: four_socket(), 8: eight_socket_cube()}


@dataclass(frozen=True)
class HandTuned:
    """The program's own layout as a planner: every rank on a socket of its own, its data with it.

    Attributes:
        family: the program.
        name: how tables call it.
    """

    family: TransformerTraining
    name: str = "hand-tuned"

    def plan(self, world: World, machine: npt.NDArray[np.int64], episode: npt.NDArray[np.int64]) -> Actions:
        """See `agents.scheduler.Planner.plan`."""
        plans = np.stack([self.family.layout(topology) for topology in world.topologies])
        return np.asarray(plans[machine])


def training_of(scenario: Scenario) -> TransformerTraining:
    """The program of a scenario that the study can play.

    Raises:
        ValueError: its workload is no transformer's training, its machine none of the chapter's with several sockets,
            or it is not split over all of these.
    """
    family, topology = scenario.family, scenario.topology
    names = [machine.name for sockets, machine in CHAPTER_MACHINES.items() if sockets > 1]
    if topology.name not in names:
        raise ValueError(f"{scenario.name}: machine must be one of {', '.join(names)}, got {topology.name!r}.")
    if not isinstance(family, TransformerTraining):
        raise ValueError(f"{scenario.name}: family must be transformer-training, got {type(family).__name__}.")
    if family.num_ranks != topology.num_nodes:
        raise ValueError(
            f"{scenario.name}: model_parallel x data_parallel x pipeline_parallel must be {topology.num_nodes}, a rank "
            f"for each socket, got {family.num_ranks}."
        )
    return family


def split_name(family: TransformerTraining) -> str:
    """MP8 DP1 PP1."""
    return f"MP{family.model_parallel} DP{family.data_parallel} PP{family.pipeline_parallel}"


def splits(family: TransformerTraining, num_sockets: int) -> Iterator[TransformerTraining]:
    """The same work split in every way over so many sockets that the model allows, the most replicas first.

    Gradients are summed hierarchically, in groups of up to four replicas, and as large messages. A task takes as many
    layers as there are ranks that share each, so that tasks have the same arithmetic in every split.

    Args:
        family: the work.
        num_sockets: N.
    """
    for data in range(num_sockets, 0, -1):
        for model in range(1, num_sockets // data + 1):
            if num_sockets % (data * model):
                continue
            found = split(family, model, data, num_sockets // (data * model))
            if found is not None:
                yield found


def split(family: TransformerTraining, model: int, data: int, pipeline: int) -> TransformerTraining | None:
    """The same work split MP x DP x PP, see `splits`; None where the model does not allow it."""
    try:
        return replace(
            family,
            model_parallel=model,
            data_parallel=data,
            pipeline_parallel=pipeline,
            layers_per_task=min(model, family.layers // pipeline),
            algorithm="hierarchical",
            group_ranks=min(GROUP_RANKS, data),
            message_bytes=LARGE_MESSAGE_BYTES,
        )
    except (ValueError, ZeroDivisionError):
        return None


def initial(family: TransformerTraining, num_sockets: int) -> TransformerTraining:
    """Pure data parallelism, a flat ring in the order of ranks, small messages [1].

    Raises:
        ValueError: the model cannot be split so.
    """
    return replace(
        family,
        model_parallel=1,
        data_parallel=num_sockets,
        pipeline_parallel=1,
        layers_per_task=1,
        algorithm="ring",
        message_bytes=SMALL_MESSAGE_BYTES,
    )


def hierarchical(family: TransformerTraining, num_sockets: int) -> TransformerTraining:
    """Pure data parallelism with a hierarchical all-reduce and large messages [1].

    Raises:
        ValueError: the model cannot be split so.
    """
    return replace(
        initial(family, num_sockets),
        algorithm="hierarchical",
        group_ranks=min(GROUP_RANKS, num_sockets),
        message_bytes=LARGE_MESSAGE_BYTES,
    )


def on_one_socket(scenario: Scenario) -> Scenario:
    """The scenario's work as a program for one socket, where everything is local.

    Raises:
        ValueError: the study cannot play this scenario.
    """
    family = training_of(scenario)
    one_rank = replace(family, model_parallel=1, data_parallel=1, pipeline_parallel=1, layers_per_task=1, group_ranks=1)
    return replace(scenario, topology=ONE_SOCKET, family=one_rank)


def with_program(scenario: Scenario, family: TransformerTraining, topology: Topology | None = None) -> Scenario:
    """The scenario with another program, and on another machine if one is given."""
    return replace(scenario, family=family, topology=topology or scenario.topology)
