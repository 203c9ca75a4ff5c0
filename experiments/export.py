"""Writing a policy in a form that runs without this package, and checking that it decides the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.console import Console

from envs.observation_kernel import Float32
from experiments.files import require_outputs, write_bytes
from numa_rl.machines.drawn import MOST_NODES
from numa_rl.wording import quoted

if TYPE_CHECKING:  # torch takes a second
    from agents.ppo.storage import LearnedScheduler
    from experiments.export_forms import Form

COMPARED = 10_000  # observations
SIZES = (2, 4, 8, 16)  # nodes of the machines that a form for any size is compared on
ONNX_NODES = 8
AT_ONCE = 500  # rows decided together
CLOSED = -1e8  # logits below this are of closed pairs, whatever their exact number
README, TITLE = "README.md", "# A placement policy"


@dataclass(frozen=True)
class Export:
    """Write a policy in a form that runs without this package, and check that it decides the same.

    Attributes:
        policy: a learned policy, as `train` saves it.
        format: "numpy", numbers and a Python module that needs numpy alone; or "onnx", a graph for ONNX Runtime and
            others.
        nodes: of the machines it is for. A graph knows machines of one size, by default 8 nodes. The numpy form
            knows every size, and is compared on this one, by default on 2, 4, 8 and 16 nodes.
        out: a folder for the files.
    """

    policy: Path
    format: Literal["onnx", "numpy"]
    nodes: int | None = None
    out: Path = Path("exported")

    def run(self) -> None:
        """Write, compare and print.

        Raises:
            ValueError: a file cannot be read or written, the folder has a README.md of its own, packages are missing,
                or the form decides otherwise.
        """
        if self.nodes is not None and not 2 <= self.nodes <= MOST_NODES:
            raise ValueError(f"--nodes must be in 2..{MOST_NODES}, got {self.nodes}.")
        import torch  # takes a second

        from agents.ppo.storage import load_policy
        from experiments.export_forms import DECIDE, POLICY_NPZ, POLICY_ONNX, require_onnx, write_numpy, write_onnx

        names = {"numpy": (POLICY_NPZ, DECIDE, README), "onnx": (POLICY_ONNX, README)}[self.format]
        require_outputs({f"--out {name}": self.out / name for name in names}, {"--policy": self.policy})
        _require_own(self.out / README)
        if self.format == "onnx":
            require_onnx()
        torch.set_num_threads(1)
        learned, about = load_policy(self.policy)
        console = Console()
        with console.status("writing"):
            if self.format == "numpy":
                sizes = SIZES if self.nodes is None else (self.nodes,)
                form = write_numpy(self.out, learned.scorer)
            else:
                sizes = (self.nodes or ONNX_NODES,)
                form = write_onnx(self.out, learned.scorer, sizes[0])
        with console.status("comparing"):
            agreement = compare_forms(learned, form, sizes)
        where = f"{agreement.count:,} observations of machines of {_listed(sizes)} nodes"
        if agreement.differ:
            for name in names:  # a README from before would vouch for them
                (self.out / name).unlink(missing_ok=True)
            raise ValueError(
                f"--out {quoted(str(self.out))}: the exported policy must decide as the policy does, got other "
                f"actions for {agreement.differ} of {where}. Nothing is left there."
            )
        verdict = f"Same actions on {where}; the largest difference of a logit is {agreement.logit_difference:.1e}."
        write_bytes(self.out / README, _readme(self.format, about, sizes, verdict).encode())
        for name in names:
            console.print(f"Written to {self.out / name}", highlight=False)
        console.print(verdict, highlight=False)


@dataclass(frozen=True)
class Agreement:
    """How a form of a policy decides beside the policy.

    Attributes:
        count: observations compared.
        differ: how many of them it decides otherwise.
        logit_difference: the largest, over open pairs.
    """

    count: int
    differ: int
    logit_difference: float


def compare_forms(learned: LearnedScheduler, form: Form, sizes: Sequence[int], count: int = COMPARED) -> Agreement:
    """Compare actions with the policy's own and logits with those of the network in torch.

    Args:
        learned: the policy.
        form: the same in another form.
        sizes: nodes of the machines, which are drawn and at work for every family of the suite.
        count: observations in all.
    """
    from experiments.export_play import visited

    each = -(-count // len(sizes))
    parts = [_compare(learned, form, visited(learned, num_nodes, each)) for num_nodes in sizes]
    return Agreement(
        sum(part.count for part in parts),
        sum(part.differ for part in parts),
        max(part.logit_difference for part in parts),
    )


def _compare(learned: LearnedScheduler, form: Form, rows: Float32) -> Agreement:
    scorer, differ, difference = learned.scorer, 0, 0.0
    for first in range(0, len(rows), AT_ONCE):
        part = rows[first : first + AT_ONCE]
        differ += int((form.decide(part) != learned.predict(part)[0]).any(axis=1).sum())
        want, got = scorer.logits(part), form.logits(part)
        both_open = (want > CLOSED) | (got > CLOSED)
        difference = max(difference, float(np.abs(got - want)[both_open].max(initial=0.0)))
    return Agreement(len(rows), differ, difference)


def _require_own(readme: Path) -> None:
    """Raise ValueError if a folder has a README that is not of an exported policy, and would be lost."""
    if readme.exists() and not readme.read_bytes().startswith(TITLE.encode()):
        raise ValueError(
            f"--out must be a folder without a {README} of its own, got {quoted(str(readme.parent))}: name another."
        )


def _listed(sizes: Sequence[int]) -> str:
    return str(sizes[0]) if len(sizes) == 1 else f"{', '.join(map(str, sizes[:-1]))} and {sizes[-1]}"


def _readme(form: str, about: Mapping[str, Any], sizes: Sequence[int], verdict: str) -> str:
    """What the folder holds, for who has nothing else."""
    trained = about.get("scenario")
    origin = f"trained on {quoted(trained)}" if isinstance(trained, str) else "of unknown training"
    if form == "numpy":
        use = (
            "`policy.npz` holds the network's numbers, `decide.py` decides by them with numpy alone, for machines of\n"
            "any number of nodes:\n\n"
            "    from decide import Policy\n\n"
            '    policy = Policy.load("policy.npz")\n'
            "    actions = policy.decide(rows)\n\n"
            "The text at the top of `decide.py` says what a row is."
        )
    else:
        size = sizes[0]
        use = (
            f"`policy.onnx` is a graph for machines of {size} nodes. Its input `rows` are B observations as float32;\n"
            f"its outputs are `actions`, (task node, data node) of each row, shape (B, 2), and `logits`, shape\n"
            f"(B, {size * size}), the score of every pair, task nodes first; closed pairs have a very low one.\n\n"
            "    import onnxruntime\n\n"
            '    session = onnxruntime.InferenceSession("policy.onnx")\n'
            '    actions, logits = session.run(None, {"rows": rows})\n\n'
            "What a row is: see `envs/observation.py` of numa-rl, or `decide.py` of `numa-rl export --format numpy`."
        )
    return f"{TITLE}\n\nA numa-rl policy {origin}.\n\n{use}\n\nChecked when it was written: {verdict}\n"
