"""The chapter's gotchas: each looks for one mistake in the evidence, and says what to run next.

A finding is "suspected" where a figure points to the mistake but cannot prove it.

References:
    [1] The chapter, section 16.4 and its list of gotchas.
    [2] perf-c2c(1); numactl(8); numastat(8); migratepages(8); Linux documentation, numa_balancing sysctl.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from numa_rl.diagnosis.events import LINK_EVENTS, perf_stat
from numa_rl.diagnosis.evidence import Evidence
from numa_rl.diagnosis.tree import Thresholds
from numa_rl.wording import counted


class Gotcha(Enum):
    """The mistakes that the chapter warns of."""

    FALSE_SHARING = "false sharing"
    WRONG_NODE = "wrong-node allocation"
    DISTANCE_IGNORED = "distance ignored"
    EXCESSIVE_MIGRATION = "excessive migration"
    UNPINNED_THREADS = "unpinned threads"
    SATURATED_LINK = "saturated link"


class Severity(Enum):
    """How sure and how bad."""

    SUSPECTED = "suspected"
    FOUND = "found"
    SEVERE = "severe"


@dataclass(frozen=True)
class Number:
    """A figure that speaks for a finding.

    Attributes:
        figure: attribute of `Evidence`.
        value: what it is.
        threshold: what it exceeds; None where it only adds to the picture.
    """

    figure: str
    value: float
    threshold: float | None = None


@dataclass(frozen=True)
class Finding:
    """A gotcha that was seen.

    Attributes:
        gotcha: which.
        severity: how sure and how bad.
        numbers: the figures that say so, the deciding one first.
        summary: what they mean, in one line.
        commands: what to run next, to be sure or to mend it [2].
    """

    gotcha: Gotcha
    severity: Severity
    numbers: tuple[Number, ...]
    summary: str
    commands: tuple[str, ...]


def find_gotchas(evidence: Evidence, thresholds: Thresholds | None = None) -> list[Finding]:
    """Every gotcha that the evidence shows, in the chapter's order [1].

    Args:
        evidence: what was measured; a gotcha whose figures were not measured is not found.
        thresholds: above which a figure counts; None for the defaults.
    """
    limits = thresholds or Thresholds()
    findings = (look(evidence, limits) for look, _ in GOTCHAS.values())
    return [finding for finding in findings if finding is not None]


def false_sharing(evidence: Evidence, limits: Thresholds) -> Finding | None:
    """Lines go back and forth between writers. Counters cannot tell false from true sharing; samples can."""
    commands = (
        "perf c2c record -a CMD",
        "perf c2c report --stdio  # then align what shares a line to 64 bytes",
    )
    sampled = _over("falsely_shared_share", evidence, limits)
    if sampled:
        lines = "lines" if evidence.falsely_shared_lines is None else counted(evidence.falsely_shared_lines, "line")
        summary = f"Threads take {lines} from each other though they touch different bytes."
        return Finding(Gotcha.FALSE_SHARING, _severity(sampled, limits), (sampled,), summary, commands)
    if (evidence.truly_shared_share or 0.0) > limits.falsely_shared_share:
        return None  # the samples show what the counters see, and it is true sharing
    numbers = [number for name in ("coherence_share", "hitm_share") if (number := _over(name, evidence, limits))]
    if not numbers:
        return None
    summary = (
        "Lines that one node has modified are read by another; samples tell whether they share data or only a line."
    )
    return Finding(Gotcha.FALSE_SHARING, Severity.SUSPECTED, tuple(numbers), summary, commands)


def wrong_node(evidence: Evidence, limits: Thresholds) -> Finding | None:
    """Pages lie where their users are not, as when one thread has touched everything first."""
    if evidence.num_nodes == 1:
        return None
    commands = (
        "numastat -p PID",
        "numactl --cpunodebind=NODE --membind=NODE CMD  # or --interleave=all for what all use",
        "migratepages PID FROM TO",
    )
    misplaced = _over("misplaced_share", evidence, limits)
    if misplaced:
        summary = "Pages lie on another node than the one that uses them."
        return Finding(Gotcha.WRONG_NODE, _severity(misplaced, limits), (misplaced,), summary, commands)
    skewed, remote = (_over(name, evidence, limits) for name in ("controller_imbalance", "remote_share"))
    if skewed and remote and evidence.misplaced_share is None:  # else it is known where the users are
        summary = "Few memory controllers serve remote users: the data was allocated by few threads, or by one."
        return Finding(Gotcha.WRONG_NODE, _severity(skewed, limits), (skewed, remote), summary, commands)
    crowded = _over("largest_node_share", evidence, limits)
    if crowded and evidence.thread_nodes != 1:
        return _crowded(crowded, evidence, commands)
    return None


def _crowded(crowded: Number, evidence: Evidence, commands: tuple[str, ...]) -> Finding:
    """Nearly all pages on one node: wrong where threads run on several, and else only suspected."""
    where = "one node" if evidence.largest_node is None else f"node {evidence.largest_node}"
    if evidence.thread_nodes is None:
        summary = f"Nearly all pages lie on {where}: wrong if its threads run on others (name their nodes to tell)."
        severity, commands = Severity.SUSPECTED, ("ps -L -o tid,psr,comm -p PID", "lscpu", *commands)
    else:
        summary = f"Nearly all pages lie on {where}, and threads run on {evidence.thread_nodes} nodes."
        severity = Severity.FOUND
    return Finding(Gotcha.WRONG_NODE, severity, (crowded,), summary, commands)


def distance_ignored(evidence: Evidence, limits: Thresholds) -> Finding | None:
    """Remote is not one thing: data lies two hops away where one would do. No matter where little is remote."""
    far = _over("far_share", evidence, limits)
    if far is None or (evidence.remote_share is not None and evidence.remote_share <= limits.remote_share):
        return None
    numbers = (far, *_context("remote_share", evidence))
    summary = "Remote accesses cross two hops or more, though every node has a nearer neighbour."
    commands = ("numactl --hardware  # node distances", "numactl --cpunodebind=NODE --preferred=NEIGHBOUR CMD")
    return Finding(Gotcha.DISTANCE_IGNORED, _severity(far, limits), numbers, summary, commands)


def excessive_migration(evidence: Evidence, limits: Thresholds) -> Finding | None:
    """Moving data takes more time than it can win back."""
    share = _over("migration_share", evidence, limits)
    if share is None:
        return None
    numbers = (share, *_context("migrations_per_s", evidence))
    commands = (
        "echo 0 > /proc/sys/kernel/numa_balancing  # then measure again",
        "grep -E 'numa_|pgmigrate' /proc/vmstat",
        "numactl --cpunodebind=NODE --membind=NODE CMD",
    )
    return Finding(
        Gotcha.EXCESSIVE_MIGRATION,
        _severity(share, limits),
        numbers,
        "Pages move back and forth between nodes.",
        commands,
    )


def unpinned_threads(evidence: Evidence, limits: Thresholds) -> Finding | None:
    """The scheduler moves threads away from the pages they have filled: suspected, for cores may be of one node."""
    moves = _over("cpu_migrations_per_s", evidence, limits)
    if moves is None or evidence.num_nodes == 1:
        return None
    commands = (
        "OMP_PROC_BIND=close OMP_PLACES=cores CMD",
        "numactl --cpunodebind=NODE --localalloc CMD",
        "taskset --cpu-list --pid CPUS PID",
    )
    summary = "Threads move between cores; where these are of other nodes, their first-touched pages stay behind."
    return Finding(Gotcha.UNPINNED_THREADS, Severity.SUSPECTED, (moves,), summary, commands)


def saturated_link(evidence: Evidence, limits: Thresholds) -> Finding | None:
    """A link carries nearly all it can, and everything that crosses it waits."""
    value = evidence.link_utilisation
    if value is None or value <= limits.utilisation:
        return None
    severity = Severity.SEVERE if value > limits.severe_utilisation else Severity.FOUND
    name = evidence.busiest_link or "The busiest link"
    commands = (
        perf_stat(LINK_EVENTS, per_socket=True),
        "numactl --cpunodebind=NODE --membind=NODE CMD  # keep traffic off the link",
        "numactl --interleave=all CMD  # spread it over links",
    )
    numbers = (Number("link_utilisation", value, limits.utilisation),)
    summary = f"{name[0].upper()}{name[1:]}: at its limit."
    return Finding(Gotcha.SATURATED_LINK, severity, numbers, summary, commands)


Look = Callable[[Evidence, Thresholds], Finding | None]
# How to look for each, and the figures it takes: any of these sets.
GOTCHAS: dict[Gotcha, tuple[Look, tuple[set[str], ...]]] = {
    Gotcha.FALSE_SHARING: (false_sharing, ({"falsely_shared_share"}, {"coherence_share"}, {"hitm_share"})),
    Gotcha.WRONG_NODE: (
        wrong_node,
        ({"misplaced_share"}, {"controller_imbalance", "remote_share"}, {"largest_node_share"}),
    ),
    Gotcha.DISTANCE_IGNORED: (distance_ignored, ({"far_share"},)),
    Gotcha.EXCESSIVE_MIGRATION: (excessive_migration, ({"migration_share"},)),
    Gotcha.UNPINNED_THREADS: (unpinned_threads, ({"cpu_migrations_per_s"},)),
    Gotcha.SATURATED_LINK: (saturated_link, ({"link_utilisation"},)),
}


def not_looked_for(evidence: Evidence, thresholds: Thresholds | None = None) -> list[Gotcha]:
    """Gotchas whose figures were not measured: not to find them says nothing.

    Args:
        evidence: what was measured.
        thresholds: as for `find_gotchas`.
    """
    measured = set(evidence.measured)
    # A crowded node raises suspicion; one that is not clears nobody where the threads' nodes are unknown.
    crowded = _over("largest_node_share", evidence, thresholds or Thresholds())
    if crowded is None and evidence.thread_nodes is None and evidence.num_nodes != 1:
        measured.discard("largest_node_share")
    return [gotcha for gotcha, (_, sets) in GOTCHAS.items() if not any(figures <= measured for figures in sets)]


def _over(figure: str, evidence: Evidence, limits: Thresholds) -> Number | None:
    """The figure with its threshold where it was measured and exceeds that."""
    value: float | None = getattr(evidence, figure)
    threshold: float = getattr(limits, figure)
    return None if value is None or value <= threshold else Number(figure, value, threshold)


def _context(figure: str, evidence: Evidence) -> tuple[Number, ...]:
    """The figure where it was measured."""
    value: float | None = getattr(evidence, figure)
    return () if value is None else (Number(figure, value),)


def _severity(number: Number, limits: Thresholds) -> Severity:
    """Severe from a multiple of the threshold on."""
    severe = number.threshold is not None and number.value >= limits.severe_factor * number.threshold
    return Severity.SEVERE if severe else Severity.FOUND
