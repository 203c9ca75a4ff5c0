"""A policy's file as a policy under a shield."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agents.rules.greedy import PricedGreedy
from agents.seen import read_seen
from agents.shield import MARGIN, shielded
from agents.shield_play import ShieldedPlay


def load_shield(
    path: Path, rule: PricedGreedy | None = None, *, margin: float = MARGIN, **settings: Any
) -> ShieldedPlay:
    """The policy in a file under its shield.

    Args:
        path: the policy's file.
        rule: who decides where the policy is not sure; by default the rule that the policy started from.
        margin: see `agents.shield.Shielded`.
        settings: of `ShieldedPlay`.

    Raises:
        ValueError: the file is missing, damaged, or no policy, or a setting is out of range.
    """
    import torch  # takes a second: only who needs it waits

    from agents.ppo.storage import load_policy

    torch.set_num_threads(1)  # the networks are small: more threads only wait for each other
    policy, _ = load_policy(path)
    return ShieldedPlay(shielded(policy, rule, read_seen(path), margin), **settings)
