"""How long an all-reduce takes, in closed form: every one of p ranks ends with the sum of p vectors of S bytes.

Sends of one step happen at once, adding up numbers takes no time, and every link carries its bandwidth in both
directions at once. `schedules.py` has the same collectives send by send, on a machine's real links.

Exercise 2 of the chapter [1] is 8 GPUs on 2 sockets, S = 4 GB, 200 GB/s within a socket and 50 GB/s between the
two. Three ways to count give its three numbers:

    - `chapter_ring_s(8, S, 50e9)` = 0.28 s, the chapter's flat ring;
    - `hierarchical_overlapped_s(Groups(4, 200e9, 50e9), S)` = 0.08 s, its hierarchical answer, 3.5 times less;
    - `hierarchical_s(Groups(4, 200e9, 50e9), S)` = 0.11 s, which is what the chapter's formula gives.

The ring of the textbook, `ring_s(8, S, 50e9)`, takes 0.14 s, half of the chapter's: it passes on pieces of S / p,
so that each link carries 2 (p - 1) / p S rather than half of (p - 1) S, p / 4 times as much. Against it the
hierarchy gains 1.75 if its phases overlap and 1.27 if they do not.

References:
    [1] The chapter, section 16.1.2 and exercise 2.
    [2] P. Patarasuk and X. Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", 2009: no
        all-reduce sends less than 2 (p - 1) / p S from every rank.
    [3] R. Rabenseifner, "Optimization of collective reduction operations", 2004: recursive halving and doubling,
        also for numbers of ranks that are no power of two.
"""

from __future__ import annotations

from dataclasses import dataclass

from numa_rl.communication.transfers import require_not_negative, require_positive, transfer_s
from numa_rl.workloads.parameters import require


def require_count(**counts: int) -> None:
    """Raise ValueError naming the first count that is not a whole number of at least 1."""
    for name, count in counts.items():
        if not (count >= 1 and count % 1 == 0):
            raise ValueError(f"{name} must be a whole number >= 1, got {count}.")


def ring_s(num_ranks: int, num_bytes: float, bandwidth_bytes_per_s: float, latency_s: float = 0.0) -> float:
    """Seconds of the flat ring: T = 2 (p - 1) (S / (p B) + L), the fewest bytes there can be [2].

    Vectors are cut into p pieces. In p - 1 steps every rank passes a piece on and adds what it gets, then each has
    the sum of one piece; in p - 1 more steps the sums go round.

    Args:
        num_ranks: p.
        num_bytes: size of each rank's vector, S.
        bandwidth_bytes_per_s: of the slowest link on the ring, B.
        latency_s: of one step, L.

    Raises:
        ValueError: a figure is outside its range.
    """
    require_count(num_ranks=num_ranks)
    require_not_negative(num_bytes=num_bytes, latency_s=latency_s)
    require_positive(bandwidth_bytes_per_s=bandwidth_bytes_per_s)
    steps = 2 * (num_ranks - 1)
    return float(steps * transfer_s(num_bytes / num_ranks, 1.0 / bandwidth_bytes_per_s, latency_s))


def chapter_ring_s(
    num_ranks: int,
    num_bytes: float,
    inter_bandwidth_bytes_per_s: float,
    latency_s: float = 0.0,
    inter_share: float = 0.5,
) -> float:
    """Seconds of the chapter's flat ring: T = (p - 1) (S / 2 / B_inter + L), exercise 2 [1].

    Assumes that vectors go round whole, not in pieces, so that p - 1 steps move S bytes each, and that of these
    half cross the link between the sockets, one after another; what stays within a socket hides behind them.

    Args:
        num_ranks: p.
        num_bytes: size of each rank's vector, S.
        inter_bandwidth_bytes_per_s: of the link between the groups, B_inter.
        latency_s: of one step, L; the chapter has none.
        inter_share: share of the bytes that cross that link, the chapter's half by default.

    Raises:
        ValueError: a figure is outside its range.
    """
    require_count(num_ranks=num_ranks)
    require_not_negative(num_bytes=num_bytes, latency_s=latency_s)
    require_positive(inter_bandwidth_bytes_per_s=inter_bandwidth_bytes_per_s)
    if not 0.0 <= inter_share <= 1.0:
        raise ValueError(f"inter_share must be in 0..1, got {inter_share}.")
    return float((num_ranks - 1) * transfer_s(num_bytes * inter_share, 1.0 / inter_bandwidth_bytes_per_s, latency_s))


@dataclass(frozen=True)
class Groups:
    """Ranks in equal groups, such as the GPUs of each socket, with fast links within and one slow link between.

    Attributes:
        group_ranks: ranks of each group, the chapter's p.
        intra_bandwidth_bytes_per_s: between neighbours within a group, B_intra.
        inter_bandwidth_bytes_per_s: out of a group and into it, shared by its ranks, B_inter.
        intra_latency_s: of one step within the groups, L_intra.
        inter_latency_s: of one step across them, L_inter.
        num_groups: number of groups G.

    Raises:
        ValueError: a figure is outside its range.
    """

    group_ranks: int
    intra_bandwidth_bytes_per_s: float
    inter_bandwidth_bytes_per_s: float
    intra_latency_s: float = 0.0
    inter_latency_s: float = 0.0
    num_groups: int = 2

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_count(group_ranks=self.group_ranks, num_groups=self.num_groups)
        require(self, "intra_latency_s inter_latency_s", "finite and >= 0", lambda value: value >= 0)
        bandwidths = "intra_bandwidth_bytes_per_s inter_bandwidth_bytes_per_s"
        require(self, bandwidths, "finite and > 0", lambda value: value > 0)

    def intra_s(self, num_bytes: float) -> float:
        """Seconds within the groups: a ring's 2 (p - 1) (S / (p B_intra) + L_intra), half before and half after."""
        return ring_s(self.group_ranks, num_bytes, self.intra_bandwidth_bytes_per_s, self.intra_latency_s)

    def inter_s(self, num_bytes: float) -> float:
        """Seconds across the groups: a ring's 2 (G - 1) (S / (G B_inter) + L_inter), so S / B_inter for two."""
        return ring_s(self.num_groups, num_bytes, self.inter_bandwidth_bytes_per_s, self.inter_latency_s)


def hierarchical_s(groups: Groups, num_bytes: float) -> float:
    """Seconds of the chapter's formula, T = 2 (p - 1) S / (p B_intra) + S / B_inter, and the latencies [1].

    Three steps: reduce-scatter in a ring within each group, all-reduce of each rank's share in a ring across the
    groups, all-gather in a ring within each group. Assumes that none starts before the one before it has ended,
    and that p is the ranks of *one group*: exercise 2's 0.11 s needs p = 4, the GPUs of one socket.

    Args:
        groups: the ranks and their links.
        num_bytes: size of each rank's vector, S.

    Raises:
        ValueError: `num_bytes` is negative or not finite.
    """
    return groups.intra_s(num_bytes) + groups.inter_s(num_bytes)


def hierarchical_overlapped_s(groups: Groups, num_bytes: float) -> float:
    """Seconds of the chapter's hierarchical answer: the longer of the two terms of `hierarchical_s` [1].

    Assumes that vectors are cut into many parts, and that one part crosses between the groups while others are
    summed and gathered within them: the limit of many parts, where only the busiest links count. In exercise 2
    these join the sockets, and the term that is left is S / B_inter.

    Args:
        groups: the ranks and their links.
        num_bytes: size of each rank's vector, S.

    Raises:
        ValueError: `num_bytes` is negative or not finite.
    """
    return max(groups.intra_s(num_bytes), groups.inter_s(num_bytes))


def halving_doubling_s(num_ranks: int, num_bytes: float, bandwidth_bytes_per_s: float, latency_s: float = 0.0) -> float:
    """Seconds of recursive halving and doubling: T = 2 (q - 1) / q S / B + 2 log2(q) L [3].

    q is the largest power of two up to p. Ranks at distance q / 2 exchange halves of their vectors and add them,
    then at q / 4 halves of these halves, and so on; the sums go back the same way. The p - q ranks beyond hand
    their whole vector to a partner first and get the sum from it at the end, which adds 2 (S / B + L) where there
    are any. Fewer steps than the ring, but partners are far apart.

    Args:
        num_ranks: p.
        num_bytes: size of each rank's vector, S.
        bandwidth_bytes_per_s: between any two partners, with all of them exchanging at once, B.
        latency_s: of one step, L.

    Raises:
        ValueError: a figure is outside its range.
    """
    require_count(num_ranks=num_ranks)
    require_not_negative(num_bytes=num_bytes, latency_s=latency_s)
    require_positive(bandwidth_bytes_per_s=bandwidth_bytes_per_s)
    rounds = int(num_ranks).bit_length() - 1
    core_ranks = 2**rounds
    s_per_byte = 1.0 / bandwidth_bytes_per_s
    exchanged = (core_ranks - 1) / core_ranks * num_bytes
    folding_s = transfer_s(num_bytes, s_per_byte, latency_s) if num_ranks > core_ranks else 0.0
    return float(2.0 * (exchanged * s_per_byte + rounds * latency_s + folding_s))
