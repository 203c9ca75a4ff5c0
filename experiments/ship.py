"""Putting a policy into the package: its weights, and a model card made from its run and its play in the suite."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from agents.shipped import MODEL_CARD, POLICY
from experiments.files import require_outputs, write_bytes
from experiments.suite.sources import LEARNED
from experiments.train import SUITE
from numa_rl.wording import counted

MOST_BYTES = 1_000_000  # what a package should carry
WORST = 8  # cells that the card names

CARD = """# Model card: the placement policy that comes with numa-rl

Where to run a task and where to keep its data, on a NUMA machine of any size: one set of weights, which reads the full
observation of `envs` and scores every (task node, data node) pair. Its prior is the priced greedy rule.

{facts}

## Scores on the test episodes of the suite

{scores}

one setting: interquartile mean of normalised cost, against that of the best rule with one setting for the whole suite.
each cell's best: mean over cells, against the best rule of each, tuned to it. headroom: share of what a clairvoyant
oracle saves, "-" where none played. In brackets 95% intervals, paired by episode.

Where it is worst against the best rule of a cell:

{worst}

## Limits

- It was trained and judged in this project's model of the machine. How far that is from SimGrid and from measured
  servers, and what its gains are worth there, is in the documentation, "How far to trust it".
- It sees the present: tasks that have not arrived are unknown to it, and of a graph that is known in advance it sees
  only the task at hand. Planners do better there; `--lookahead` makes up for it, at its price in time.
- It places objects whole; it never splits pages, as some rules do.
- Costs are those of the reward R = -(T_exec + alpha T_comm + beta Imbalance) with the suite's weights.
"""


@dataclass(frozen=True)
class Ship:
    """Put a trained policy into the package, with a model card: data, seeds, versions, scores and limits.

    Attributes:
        run_folder: folder of a run of `train --scenario suite`.
        suite: folder of `suite --policy`, in which this policy played the suite that it was taught on.
        policy: where the policy goes; into the package by default.
        card: where its model card goes; beside the policy by default.
    """

    run_folder: Path
    suite: Path
    policy: Path = POLICY
    card: Path | None = None

    def run(self) -> None:
        """Check that run and suite belong together, and write.

        Raises:
            ValueError: a file is missing or damaged, the run is not of the suite, another policy played the suite or
                not all of it, or the network is not one for machines of any size that starts from the rule.
        """
        from agents.ppo.storage import load_policy  # torch takes seconds

        source = self.run_folder / "policy.safetensors"
        policy, about = load_policy(source)
        if about.get("scenario") != SUITE:
            raise ValueError(f"{source}: must be trained on {SUITE!r}, got one trained on {about.get('scenario')!r}.")
        network = policy.scorer.config
        if network.encoder == "flat" or not network.prior:
            raise ValueError(
                f"{source}: a policy to ship must serve machines of any size and start from the rule, got encoder "
                f"{network.encoder!r} and prior {network.prior}."
            )
        content = source.read_bytes()
        if len(content) > MOST_BYTES:
            raise ValueError(f"{source}: a policy to ship must have at most {MOST_BYTES} bytes, got {len(content)}.")
        digest = hashlib.sha256(content).hexdigest()
        told = _suite_about(self.suite / "suite.parquet")
        played = told["policies"]
        if digest not in played.values():
            raise ValueError(f"{self.suite}: the suite must have been played by {source}, got policies {played}.")
        taught = about.get("cells")
        for name, scenario in taught.items() if isinstance(taught, dict) else ():
            if told["cells"].get(name) != scenario:
                raise ValueError(
                    f"{self.suite}: the suite must hold all cells taught, as they were, and {name} differs."
                )
        place = self.card or self.policy.with_name(MODEL_CARD.name)
        require_outputs({"--policy": self.policy, "--card": place}, {"the run's policy": source})
        try:
            card = model_card(about, told, self.suite, digest, len(content))
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{source}, {self.suite}: not a run and its suite: {type(error).__name__} {error}."
            ) from error
        write_bytes(self.policy, content)
        write_bytes(place, card.encode())
        Console().print(f"Shipped: {self.policy}, {len(content)} bytes\nModel card: {place}", highlight=False)


def _suite_about(path: Path) -> dict[str, Any]:
    """What a suite's table says of itself."""
    import pyarrow.parquet as pq  # takes a second

    try:
        about = json.loads((pq.read_schema(path).metadata or {})[b"suite"])
        if not isinstance(about, dict) or not isinstance(about.get("policies"), dict):
            raise ValueError("a file that names no policies")
        if not isinstance(about.get("cells"), dict):
            raise ValueError("a file that names no cells")
        about["learned"] = _learned(pq.read_table(path, columns=["scheduler", "kind"]).to_pylist())
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: must be the table of a suite that was played, got {error}.") from error
    return about


def _learned(rows: list[dict[str, Any]]) -> list[str]:
    """Names of the learned policies among a suite's rows, the plain one first: tables of other runs may lie beside."""
    return sorted({row["scheduler"] for row in rows if row["kind"] == LEARNED}, key=lambda name: (len(name), name))


def _rows(path: Path) -> list[list[str]]:
    """A table's rows, the headers first."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
        if not rows:
            raise csv.Error("an empty file")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: must be a table of a suite that was played, got {error}.") from error
    return rows


def model_card(about: dict[str, Any], told: dict[str, Any], suite: Path, digest: str, size: int) -> str:
    """The card as Markdown.

    Args:
        about: what the policy's file says.
        told: what the suite's table says of itself.
        suite: the folder of the suite's tables.
        digest: SHA-256 of the policy's file.
        size: of it, bytes.
    """
    scores = [f"`{name}`\n\n{_markdown(_rows(suite / f'learned-{name}.csv'))}" for name in told["learned"]]
    return CARD.format(
        facts=_markdown([["", ""], *map(list, _facts(about, told, digest, size).items())]),
        scores="\n\n".join(scores),
        worst=_markdown(_worst(_rows(suite / "best.csv"))),
    )


def _facts(about: dict[str, Any], told: dict[str, Any], digest: str, size: int) -> dict[str, str]:
    """What the card says of the file and of how it was made."""
    config, training, cells = about["config"], about["training"], about["cells"]
    teacher = training["teacher"]
    held_out = [name for name in told["cells"] if name not in cells]
    families, machines = (dict.fromkeys(name.split("/")[part] for name in cells) for part in (0, 1))
    others = [dict.fromkeys(name.split("/")[part] for name in held_out) for part in (0, 1)]
    unseen = [
        name for some, seen in zip(others, (families, machines), strict=True) for name in some if name not in seen
    ]
    return {
        "file": f"`policy.safetensors`, {size} bytes, SHA-256 `{digest}`",
        "network": f"node width {config['node_width']}, pair width {config['pair_width']}, encoder "
        f"{config['encoder']}, heads {config['heads']}; equivariant to node order",
        "made by": f"`make train-shipped`, code {about['git_revision']}",
        "versions": ", ".join(f"{name} {number}" for name, number in about["versions"].items()),
        "seed": str(training["seed"]),
        "taught": f"update {about['update']} of a run of {teacher['labels']} labelled states, "
        f"{teacher['num_candidates']} placements each, tried {teacher['depth']} decisions ahead",
        "families": ", ".join(families),
        "machines": f"{', '.join(machines)}; {teacher['drawn_share']:.0%} of lessons on machines drawn at random",
        "never seen": f"{', '.join(unseen) or 'nothing'}; {counted(len(held_out), 'cell')} of the suite",
        "suite": f"{told['description']}: {counted(len(told['cells']), 'cell')}, "
        f"{counted(told['counts']['test_episodes'], 'test episode')} each, seed {told['seed']}",
        "validation": f"{about['validation_gap']:+.2%} against priced greedy with one setting, mean of training cells",
    }


def _markdown(rows: list[list[str]]) -> str:
    header, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *body))


def _worst(rows: list[list[str]]) -> list[list[str]]:
    """The header and the cells where the first learned policy costs most over the best rule."""
    header, *body = rows
    column = header.index("next") + 1
    body.sort(key=lambda row: -float(row[column].rstrip("%")))
    keep = [0, 2, column]
    return [[row[index] for index in keep] for row in (header, *body[:WORST])]
