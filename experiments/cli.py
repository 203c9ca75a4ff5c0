"""The command `numa-rl`: one subcommand for each typed dataclass below."""

from __future__ import annotations

import sys
from typing import Annotated

import tyro

from experiments.bench import Bench
from experiments.compare import Compare
from experiments.demo import Demo
from experiments.machine import MachineList, MachineShow
from experiments.train import Train
from experiments.tune import Tune

BAD_INPUT = 2  # exit code

Machine = Annotated[MachineShow, tyro.conf.subcommand("show")] | Annotated[MachineList, tyro.conf.subcommand("list")]


def main() -> None:
    """Run a subcommand; bad input ends with one line on standard error and exit code 2."""
    try:
        command = tyro.cli(
            Annotated[Demo, tyro.conf.subcommand("demo")]
            | Annotated[Train, tyro.conf.subcommand("train")]
            | Annotated[Tune, tyro.conf.subcommand("tune")]
            | Annotated[Compare, tyro.conf.subcommand("compare")]
            | Annotated[Machine, tyro.conf.subcommand("machine", description="Show machines: presets and files.")]
            | Annotated[Bench, tyro.conf.subcommand("bench")],
            prog="numa-rl",
            description="Learn where each task should run and where its data should live on a NUMA machine.",
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes),
        )
        command.run()
    except (ValueError, OSError) as error:
        print(f"numa-rl: {error}", file=sys.stderr)
        raise SystemExit(BAD_INPUT) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
