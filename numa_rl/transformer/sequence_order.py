"""Which tokens lie together when a sequence is cut over nodes, and how many of them attend to how many others.

A part is one or more runs of tokens, each a Python `range`, in ascending order. All of an order's runs have the same
stride. Under a causal mask a token attends to itself and to those before it, so where a part lies in the sequence says
how much work it has, and which keys and values it needs.

References:
    [1] H. Liu, M. Zaharia, P. Abbeel, "Ring attention with blockwise transformers for near-infinite context", 2023:
        contiguous parts, keys and values passed around a ring.
    [2] W. Brandon et al., "Striped attention: faster ring attention for causal transformers", 2023: token t to node
        t mod p.
    [3] The Llama team, "The Llama 3 herd of models", 2024, section 3.3.2: 2 p chunks, node i holds the i-th from either
        end.
"""

from __future__ import annotations

from enum import Enum

from numa_rl.communication.collectives import require_count

Part = tuple[range, ...]


class TokenOrder(Enum):
    """How tokens are dealt to the parts of a sequence.

    Attributes:
        CONTIGUOUS: part j is the j-th stretch [1]. Under a causal mask the last part has almost twice the mean work.
        ZIGZAG: of twice as many stretches, part j is one from the first half and its mirror image [3]: equal work, in
            every step of the ring too. Counted from the middle outwards, so that what a node passes on, it needs.
        STRIPED: token t goes to part t mod p [2]: equal work up to one token for each token.
    """

    CONTIGUOUS = "contiguous"
    ZIGZAG = "zigzag"
    STRIPED = "striped"


def least_tokens(parts: int, order: TokenOrder) -> int:
    """The shortest sequence of which every run has a token."""
    return 2 * parts if order is TokenOrder.ZIGZAG else parts


def sequence_parts(tokens: int, parts: int, order: TokenOrder) -> tuple[Part, ...]:
    """The tokens of each part, p of them; they are equal where p (2 p for zigzag) divides the tokens, else nearly so.

    Raises:
        ValueError: a count that is not a whole number >= 1, or fewer tokens than runs.

    Example:
        >>> sequence_parts(8, 2, TokenOrder.ZIGZAG)
        ((range(2, 4), range(4, 6)), (range(0, 2), range(6, 8)))
    """
    require_count(tokens=tokens, parts=parts)
    if tokens < least_tokens(parts, order):
        raise ValueError(
            f"tokens must be >= {least_tokens(parts, order)} for {parts} {order.value} parts, got {tokens}."
        )
    if order is TokenOrder.STRIPED:
        return tuple((range(part, tokens, parts),) for part in range(parts))
    if order is TokenOrder.CONTIGUOUS:
        return tuple((_stretch(tokens, part, parts),) for part in range(parts))
    return tuple(
        (_stretch(tokens, parts - 1 - part, 2 * parts), _stretch(tokens, parts + part, 2 * parts))
        for part in range(parts)
    )


def _stretch(tokens: int, index: int, count: int) -> range:
    return range(tokens * index // count, tokens * (index + 1) // count)


def count_tokens(part: Part) -> int:
    """Tokens of a part."""
    return sum(len(run) for run in part)


def needed_tokens(queries: Part, keys: Part, causal: bool) -> int:
    """How many of a part's keys some query of another part attends to: under a causal mask, those not after its last.

    They are the first ones of `keys`.
    """
    if not causal:
        return count_tokens(keys)
    last = max(run[-1] for run in queries)
    return sum(min(max((last - run.start) // run.step + 1, 0), len(run)) for run in keys)


def attended_pairs(queries: Part, keys: Part, causal: bool) -> int:
    """Pairs of a query and a key that it attends to, of two parts of one order; the same part twice is its own."""
    if not causal:
        return count_tokens(queries) * count_tokens(keys)
    return sum(_run_pairs(q, k) for q in queries for k in keys)


def _run_pairs(queries: range, keys: range) -> int:
    """Pairs with the key not after the query, for runs of one stride.

    The x-th query is not before x + c keys, c = floor((first query - first key) / stride) + 1, so there are
    sum over x of clip(x + c, 0, number of keys).
    """
    c = (queries.start - keys.start) // queries.step + 1
    return _clipped_sum(len(queries) + c, len(keys)) - _clipped_sum(c, len(keys))


def _clipped_sum(stop: int, most: int) -> int:
    """Sum of clip(v, 0, most) over whole v < stop."""
    rising = min(max(stop, 0), most + 1)
    return rising * (rising - 1) // 2 + max(stop - most - 1, 0) * most
