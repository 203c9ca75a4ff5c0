"""The subcommands of `numa-rl`, one for each typed dataclass: their options are the dataclasses' fields."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from experiments.bench import Bench
from experiments.calibrate import Calibrate
from experiments.compare import Compare
from experiments.demo import Demo
from experiments.diagnose import Diagnose
from experiments.exercises import Exercises
from experiments.explain import Explain
from experiments.export import Export
from experiments.fidelity.judge import Referee
from experiments.fidelity.study import Fidelity
from experiments.machine import MachineList, MachineShow
from experiments.partition import Partition
from experiments.plan import MemoryPlan
from experiments.roofline import Roofline
from experiments.ship import Ship
from experiments.studies.ablations import Ablations
from experiments.studies.adversarial import Adversarial
from experiments.studies.case_200t import Case200T
from experiments.studies.learning import Learning
from experiments.studies.listing import StudyList
from experiments.studies.measured import MeasuredMachines
from experiments.suite.command import Suite
from experiments.train import Train
from experiments.transformer.attention import Attention
from experiments.transformer.ffn import Ffn
from experiments.transformer.kv_cache import KvCache
from experiments.transformer.pipeline import Pipeline
from experiments.tune import Tune

Machine = Annotated[MachineShow, tyro.conf.subcommand("show")] | Annotated[MachineList, tyro.conf.subcommand("list")]
Transformer = (
    Annotated[Attention, tyro.conf.subcommand("attention")]
    | Annotated[Ffn, tyro.conf.subcommand("ffn")]
    | Annotated[KvCache, tyro.conf.subcommand("kv-cache")]
    | Annotated[Pipeline, tyro.conf.subcommand("pipeline")]
)
Study = (
    Annotated[Ablations, tyro.conf.subcommand("ablations")]
    | Annotated[Adversarial, tyro.conf.subcommand("adversarial")]
    | Annotated[Case200T, tyro.conf.subcommand("case-200t")]
    | Annotated[Fidelity, tyro.conf.subcommand("fidelity")]
    | Annotated[Learning, tyro.conf.subcommand("learning")]
    | Annotated[MeasuredMachines, tyro.conf.subcommand("machines")]
    | Annotated[Referee, tyro.conf.subcommand("referee")]
    | Annotated[StudyList, tyro.conf.subcommand("list")]
)
TRANSFORMER = "How a transformer's layers, its cache and its pipeline are best spread over the sockets of a machine."
STUDY = "Play a case of the chapter's step by step, and measure how far the model is to be trusted."

# What tyro draws around an error, and the name of its own that it puts before ours.
FRAME = re.compile(r"[\u2500-\u257f]+|-{4,}|^\s*[|+]|[|+]\s*$|Error parsing \S+: ", re.MULTILINE)
TITLES = re.compile(
    r"^\s*((Value|Parsing) error|Invalid choice(?=\s+invalid)|Unrecognized options(?=\s+Unrec))\s*", re.MULTILINE
)


def parse(arguments: Sequence[str] | None = None) -> Any:
    """The command that the arguments name.

    Raises:
        ValueError: they name none, or an option is wrong.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(
                Annotated[Demo, tyro.conf.subcommand("demo")]
                | Annotated[Train, tyro.conf.subcommand("train")]
                | Annotated[Tune, tyro.conf.subcommand("tune")]
                | Annotated[Compare, tyro.conf.subcommand("compare")]
                | Annotated[Machine, tyro.conf.subcommand("machine", description="Show machines: presets and files.")]
                | Annotated[Calibrate, tyro.conf.subcommand("calibrate")]
                | Annotated[Suite, tyro.conf.subcommand("suite")]
                | Annotated[Partition, tyro.conf.subcommand("partition")]
                | Annotated[Roofline, tyro.conf.subcommand("roofline")]
                | Annotated[Diagnose, tyro.conf.subcommand("diagnose")]
                | Annotated[Transformer, tyro.conf.subcommand("transformer", description=TRANSFORMER)]
                | Annotated[MemoryPlan, tyro.conf.subcommand("plan")]
                | Annotated[Study, tyro.conf.subcommand("study", description=STUDY)]
                | Annotated[Explain, tyro.conf.subcommand("explain")]
                | Annotated[Export, tyro.conf.subcommand("export")]
                | Annotated[Ship, tyro.conf.subcommand("ship")]
                | Annotated[Exercises, tyro.conf.subcommand("exercises")]
                | Annotated[Bench, tyro.conf.subcommand("bench")],
                prog="numa-rl",
                description="Learn where tasks should run and data should live on a NUMA machine.",
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes),
                args=arguments,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        message = TITLES.sub("", FRAME.sub("", printed.getvalue()))
        raise ValueError(" ".join(message.split())) from None
