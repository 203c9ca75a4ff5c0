"""Which changes to how PPO learns are worth having: a paired experiment over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from agents.evaluation import evaluate
from agents.ppo.config import PPOConfig, TeacherConfig
from agents.rules.greedy import PricedGreedy
from agents.statistics import mean_interval
from experiments.files import require_outputs, write_bytes, write_json
from experiments.scenario import Scenario, Split, load_scenario
from experiments.studies.learning_variants import BASELINE, Variant, variants
from experiments.suite.cache import Cache
from experiments.suite.sheet import Sheet
from experiments.suite.sources import AGENTS, LEARNED, code_digest
from experiments.tune import load_or_tune, require_at_least, world_of
from numa_rl.compilation import source_digest

# What a run depends on besides the code of a learned policy.
OWN_CODE = (AGENTS / "vec_env.py", *sorted(Path(__file__).parent.glob("learning_*.py")))
LEAST_SEEDS = 2  # fewer have no differences between seeds to draw an interval from
Run = Mapping[str, Any]


@dataclass(frozen=True)
class Learning:
    """Learn with PPO in several ways, with equal seeds and decisions, and say which ways cost less than the baseline.

    Each way changes one thing. From the prior, PPO learns alone; from a taught policy it goes on where the rollout
    teacher stopped. Differences are paired by seed; intervals are 95% bootstrap intervals over seeds. Every finished
    run is kept: a study that was stopped goes on where it stood.

    Attributes:
        scenario: a scenario's name, or the path of its TOML file.
        variants: which ways besides the baseline; all by default.
        starts: "prior", "taught", or both.
        seeds: how many.
        labels: that the teacher gives before a run from a taught policy.
        train_episodes: how many episodes to learn from.
        validation_episodes: how many episodes to judge by.
        rollouts: by which the noise of the gradient is measured before each run.
        cache: where finished runs are kept; results/<scenario>/learning by default.
        json: a file for all figures.
        markdown: a file for the tables.
        ppo: settings of the baseline; others change one of them, or something else.
    """

    scenario: str
    variants: tuple[str, ...] = ()
    starts: tuple[str, ...] = ("prior", "taught")
    seeds: int = 5
    labels: int = 16_384
    train_episodes: int = 512
    validation_episodes: int = 128
    rollouts: int = 8
    cache: Path | None = None
    json: Path | None = None
    markdown: Path | None = None
    ppo: PPOConfig = field(default_factory=lambda: PPOConfig(learning_rate=3e-4))

    def run(self) -> None:
        """Learn, print and write.

        Raises:
            ValueError: an unknown name, a value out of range, or a file that cannot be written.
        """
        chosen = self.chosen()
        require_outputs({"--json": self.json, "--markdown": self.markdown}, {"--scenario": Path(self.scenario)})
        scenario, console = load_scenario(self.scenario), Console(highlight=False)
        study = _Study(self, scenario, Cache(self.cache or Path("results") / scenario.name / "learning"), console)
        runs = [
            study.run(name, variant, start, seed)
            for seed in range(self.seeds)  # outermost, so that what there is can be compared at any time
            for start in self.starts
            for name, variant in chosen.items()
        ]
        sheets = [sheet(scenario.name, start, runs, chosen) for start in self.starts]
        if self.json is not None:
            write_json(self.json, {"study": _plain(asdict(self)), "runs": runs})
        if self.markdown is not None:
            write_bytes(self.markdown, "\n".join(table.markdown for table in sheets).encode())
        for table in sheets:
            table.print(console)

    def chosen(self) -> dict[str, Variant]:
        """The baseline and the variants asked for.

        Raises:
            ValueError: an unknown name, or a value out of range.
        """
        for name in ("labels", "train_episodes", "validation_episodes"):
            require_at_least(1, getattr(self, name), f"--{name.replace('_', '-')}")
        require_at_least(LEAST_SEEDS, self.seeds, "--seeds")
        require_at_least(2, self.rollouts, "--rollouts")
        if not self.starts or len(set(self.starts)) < len(self.starts) or set(self.starts) - {"prior", "taught"}:
            raise ValueError(f"--starts must be prior, taught, or both, got {' '.join(self.starts) or 'none'}.")
        require_at_least(1, self.ppo.total_timesteps, "--ppo.total-timesteps")
        known = variants(self.ppo)
        for name in self.variants:
            if name not in known:
                raise ValueError(f"--variants must be among {', '.join(known)}, got {name!r}.")
        wanted = {BASELINE, *(self.variants or known)}
        chosen = {name: variant for name, variant in known.items() if name in wanted}
        largest = max(chosen, key=lambda name: chosen[name].ppo.rollout)
        rollout = chosen[largest].ppo.rollout
        if self.ppo.total_timesteps % rollout:
            raise ValueError(
                "--ppo.total-timesteps must be a multiple of every rollout, so that all learn from as many decisions: "
                f"that of {largest} has {rollout}, got {self.ppo.total_timesteps}."
            )
        return chosen

    @property
    def teacher(self) -> TeacherConfig:
        """A short course: few candidates, followed for as long as most of a placement is felt."""
        per_update = min(self.labels, 4096)
        return replace(
            TeacherConfig(), labels=self.labels, labels_per_update=per_update, num_candidates=4, num_random=1, depth=20
        )


class _Study:
    """Runs what is not in the cache yet."""

    def __init__(self, options: Learning, scenario: Scenario, cache: Cache, console: Console) -> None:
        from experiments.studies.learning_run import Course  # torch takes seconds

        self.options, self.cache, self.console = options, cache, console
        with console.status("") as status:
            tuned = load_or_tune(scenario, on_rule=lambda name: status.update(f"tuning {name}"))
            rule = next(entry.rule for entry in tuned if entry.name == PricedGreedy.name)
            assert isinstance(rule, PricedGreedy)
            train = world_of(scenario, Split.TRAIN, options.train_episodes, 0)
            validation = world_of(scenario, Split.VALIDATION, options.validation_episodes, 0)
            self.course = Course(train, validation, rule, float(evaluate(rule, validation).cost.mean()))
        self._common = {
            "study": "learning",
            "code": [code_digest(LEARNED), source_digest([str(path) for path in OWN_CODE])],
            "scenario_hash": scenario.content_hash,
            "rule": {name: float(value) for name, value in asdict(rule).items()},
            "episodes": [options.train_episodes, options.validation_episodes],
        }

    def run(self, name: str, variant: Variant, start: str, seed: int) -> Run:
        """A run's figures, from the cache if they are there."""
        from experiments.studies.learning_run import learn

        teacher = asdict(self.options.teacher) if start == "taught" else None
        settings = {key: value for key, value in asdict(variant).items() if key != "meaning"}
        inputs = self._common | {
            "variant": settings,
            "teacher": teacher,
            "seed": seed,
            "rollouts": self.options.rollouts,
        }
        figures, rollouts = self.cache.read(inputs), self.options.rollouts
        if figures is None:
            with self.console.status(f"{name}, seed {seed}, from {start}"):
                figures = learn(self.course, variant, seed, self._taught(seed) if teacher else None, rollouts)
            self.cache.write(inputs, figures)
        gap, before = (figures[cost] / self.course.rule_cost - 1.0 for cost in ("cost", "start_cost"))
        self.console.print(f"seed {seed} from {start}: {name} {before:+.2%} to {gap:+.2%}, {figures['seconds']:.0f} s")
        return {"variant": name, "start": start, "seed": seed, "gap": gap, "start_gap": before, **figures}

    def _taught(self, seed: int) -> Path:
        """The policy of the short course, taught now unless it was before."""
        from agents.ppo.storage import load_policy
        from experiments.studies.learning_run import teach

        about = self._common | {"teacher": asdict(self.options.teacher), "seed": seed}
        path = self.cache.path(about).with_suffix(".safetensors")
        try:
            load_policy(path)
        except ValueError:  # missing or damaged
            with self.console.status(f"teaching, seed {seed}"):
                teach(self.course, self.options.teacher, seed, path, about)
        return path


def sheet(scenario: str, start: str, runs: Sequence[Run], chosen: Mapping[str, Variant]) -> Sheet:
    """The variants against the baseline, from one start.

    Args:
        scenario: its name, for the title.
        start: which runs.
        runs: `variant`, `start`, `seed`, `gap`, `start_gap`, `seconds`, `decisions`, `explained_variance` and
            `noise_decisions` of each; all variants have the same seeds.
        chosen: variants by name, in the order of rows.
    """
    table = {
        name: sorted((run for run in runs if run["variant"] == name and run["start"] == start), key=_seed)
        for name in chosen
    }
    column = partial(_column, table)
    reference = column(BASELINE, "gap")
    rows = []
    for name, variant in chosen.items():
        gap = column(name, "gap")
        change = "" if name == BASELINE else _change(gap - reference)
        rate = column(name, "decisions").sum() / column(name, "seconds").sum()
        explained = column(name, "explained_variance").mean()
        noise = float(np.median(column(name, "noise_decisions")))
        cells = (f"{explained:.2f}", f"{noise / 1e3:.2g} k", f"{rate / 1e3:.1f} k", variant.meaning)
        rows.append([name, f"{gap.mean():+.2%}", change, *cells])
    seeds = len(reference)
    before = float(column(BASELINE, "start_gap").mean())
    return Sheet(
        name=f"learning-{start}",
        title=f"{scenario}, from {'the prior' if start == 'prior' else 'a taught policy'}: {seeds} seeds",
        headers=["variant", "gap", "less baseline", "explained", "noise", "decisions/s", "what it is"],
        rows=rows,
        note=f"gap: cost over that of the tuned priced greedy rule, minus 1; {before:+.2%} before PPO. "
        "less baseline: the same seed's gap minus the baseline's, 95% interval over seeds, in points. "
        "explained: variance of the returns that the critic explains. "
        "noise: decisions after which the gradient's signal equals its noise, median over seeds.",
    )


def _column(table: Mapping[str, Sequence[Run]], name: str, key: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([run[key] for run in table[name]], np.float64)


def _seed(run: Run) -> int:
    return int(run["seed"])


def _change(differences: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    """Mean and interval of paired differences, in percentage points."""
    found = mean_interval(differences, np.random.default_rng(0))
    return f"{100 * found.estimate:+.2f} ({100 * found.low:+.2f} to {100 * found.high:+.2f})"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON values."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
