"""Requests whose prompts share prefixes, and which runs of their KV blocks are one object.

Dimension key: n requests of all episodes together, in order of episode and arrival; B their blocks, request after
request; s uses of shared segments, in the same order; P inputs of a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from numa_rl.workloads.mooncake import BLOCK_TOKENS
from numa_rl.workloads.processes import FloatArray, IntArray
from numa_rl.workloads.workload import NO_OBJECT

BoolArray = npt.NDArray[np.bool_]


def first_requests(arrival_s: FloatArray, num_chunks: IntArray, chunk_s: float, num_tasks: int) -> BoolArray:
    """Which requests an episode of `num_tasks` can meet, at least one decode task for each of their chunks.

    Requests after the moment at which the decode tasks alone are enough come too late.

    Args:
        arrival_s: shape (E, R).
        num_chunks: of each answer, 0 for requests that do not take place, shape (E, R); at least `num_tasks` in all.
        chunk_s: nominal time from one chunk to the next.
        num_tasks: T.

    Returns:
        A mask, shape (E, R).
    """
    chunk = np.arange(num_chunks.max())
    begin_s = np.where(chunk < num_chunks[:, :, None], arrival_s[:, :, None] + chunk * chunk_s, np.inf)
    horizon_s = np.partition(begin_s.reshape(len(begin_s), -1), num_tasks - 1, axis=1)[:, num_tasks - 1, None]
    return np.asarray((num_chunks > 0) & (arrival_s <= horizon_s))


@dataclass(frozen=True, eq=False)
class PrefixRequests:
    """Requests in order of episode and arrival.

    Attributes:
        episode: which episode each belongs to, shape (n,).
        arrival_s: shape (n,).
        input_tokens: length of the prompt, shape (n,).
        output_tokens: length of the answer, >= 1, shape (n,).
        blocks: numbers of the blocks of each prompt, `BLOCK_TOKENS` each but for the last, shape (B,). Equal numbers
            are equal prefixes, and no two episodes have a number in common.
    """

    episode: IntArray
    arrival_s: FloatArray
    input_tokens: IntArray
    output_tokens: IntArray
    blocks: IntArray

    @property
    def num_requests(self) -> int:
        """Number of requests n."""
        return len(self.episode)

    @property
    def num_blocks(self) -> IntArray:
        """Blocks of each prompt, shape (n,)."""
        return blocks_of(self.input_tokens)

    @classmethod
    def joined(cls, parts: Sequence[PrefixRequests]) -> PrefixRequests:
        """Requests of different episodes together; block numbers are made different where they are not."""
        most = [int(part.blocks.max(initial=-1)) + 1 for part in parts]
        shifts = np.cumsum([0, *most])[:-1]
        return cls(
            episode=np.concatenate([part.episode for part in parts]),
            arrival_s=np.concatenate([part.arrival_s for part in parts]),
            input_tokens=np.concatenate([part.input_tokens for part in parts]),
            output_tokens=np.concatenate([part.output_tokens for part in parts]),
            blocks=np.concatenate([part.blocks + shift for part, shift in zip(parts, shifts, strict=True)]),
        )


def blocks_of(tokens: IntArray) -> IntArray:
    """Blocks that so many tokens fill or begin."""
    return -(-tokens // BLOCK_TOKENS)


def places(counts: IntArray) -> tuple[IntArray, IntArray]:
    """Whose each item is, and its place with its owner, where each owner has so many in turn.

    >>> [array.tolist() for array in places(np.array([2, 0, 3]))]
    [[0, 0, 2, 2, 2], [0, 1, 0, 1, 2]]
    """
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]


def conversation_requests(
    *,
    episode: IntArray,
    used: BoolArray,
    arrival_s: FloatArray,
    input_tokens: IntArray,
    output_tokens: IntArray,
    kept_blocks: IntArray,
    system: IntArray,
    system_blocks: int,
) -> PrefixRequests:
    """Number the blocks of conversations, each of which begins with one of the sets of instructions.

    A block is the same as the turn before had in its place if it is among those kept, and new otherwise.

    Args:
        episode: of each row, shape (E,).
        used: which turns are requests, shape (E, C, K).
        arrival_s: of each turn, shape (E, C, K).
        input_tokens: length of its prompt, the instructions included, shape (E, C, K).
        output_tokens: length of its answer, shape (E, C, K).
        kept_blocks: blocks that it keeps of the prompt before, 0 for the first, shape (E, C, K).
        system: which instructions the conversation begins with, shape (E, C).
        system_blocks: length of each set of instructions.
    """
    (_, c, k), longest = used.shape, int(blocks_of(input_tokens).max())
    row, conversation, turn = np.nonzero(used)
    order = np.lexsort((conversation * k + turn, arrival_s[used], row))
    row, conversation, turn = row[order], conversation[order], turn[order]
    tokens = input_tokens[row, conversation, turn]
    owner, place = places(blocks_of(tokens))

    written = np.zeros(len(owner), np.int64)  # the last turn that wrote what stands there now
    kept = kept_blocks[row, conversation][owner]  # (B, K)
    for later in range(1, k):
        written[(later <= turn[owner]) & (kept[:, later] <= place)] = later
    prefix = np.where(
        place < system_blocks, c * k + system[row, conversation][owner], conversation[owner] * k + written
    )
    blocks_per_episode = (c * k + int(system.max()) + 1) * longest
    return PrefixRequests(
        episode=episode[row],
        arrival_s=arrival_s[row, conversation, turn],
        input_tokens=tokens,
        output_tokens=output_tokens[row, conversation, turn],
        blocks=row[owner] * blocks_per_episode + prefix * longest + place,
    )


@dataclass(frozen=True, eq=False)
class Segments:
    """The shared parts of prompts: a radix tree's edges, each of which becomes an object.

    Blocks that follow each other and occur in the same requests make one segment; those of a single request are
    private and belong to its own object. Since all prompts form a tree, blocks that follow each other occur in the
    same requests if they occur equally often.

    Attributes:
        num_segments: number of segments of all episodes.
        request: who uses a segment, in the order of its prompt, shape (s,).
        segment: which one, shape (s,).
        tokens: how long it is, shape (s,).
        creates: whether this is the first request that uses it, shape (s,).
        private_tokens: of each request's prompt, shape (n,).
    """

    num_segments: int
    request: IntArray
    segment: IntArray
    tokens: IntArray
    creates: BoolArray
    private_tokens: IntArray

    @classmethod
    def of(cls, requests: PrefixRequests) -> Segments:
        """Find what requests share."""
        _, first, block, count = np.unique(requests.blocks, return_index=True, return_inverse=True, return_counts=True)
        owner, place = places(requests.num_blocks)
        tokens = np.minimum(requests.input_tokens[owner] - place * BLOCK_TOKENS, BLOCK_TOKENS)
        uses = count[block]
        shared = uses > 1
        begins = shared & ((place == 0) | (uses != np.roll(uses, 1)))
        use = np.cumsum(begins) - 1
        heads = np.flatnonzero(begins)
        head_blocks, segment = np.unique(block[heads], return_inverse=True)
        return cls(
            num_segments=len(head_blocks),
            request=owner[heads],
            segment=segment,
            tokens=np.bincount(use[shared], weights=tokens[shared], minlength=len(heads)).astype(np.int64),
            creates=first[block[heads]] == heads,
            private_tokens=np.bincount(owner[~shared], weights=tokens[~shared], minlength=requests.num_requests).astype(
                np.int64
            ),
        )

    def inputs(self, most: int) -> tuple[IntArray, FloatArray, BoolArray]:
        """The segments that each request reads, at most so many.

        Of a prompt of more segments the last one stays, since whoever wrote it waited for the others, and the longest
        of the rest; their tokens are scaled so that the sum is that of all.

        Args:
            most: P.

        Returns:
            Segment or `NO_OBJECT`, its tokens (0 where there is none), and whether it was there before the request,
            shape (n, P) each.
        """
        n = len(self.private_tokens)
        is_last = np.append(self.request[1:] != self.request[:-1], True)[: len(self.request)]
        order = np.lexsort((-self.tokens, ~is_last, self.request))
        request = self.request[order]
        rank = np.arange(len(order)) - np.searchsorted(request, request)
        kept, request, rank = order[rank < most], request[rank < most], rank[rank < most]
        whole = np.bincount(self.request, weights=self.tokens, minlength=n)
        left = np.bincount(request, weights=self.tokens[kept], minlength=n)
        segment = np.full((n, most), NO_OBJECT)
        tokens, cached = np.zeros((n, most)), np.zeros((n, most), np.bool_)
        segment[request, rank] = self.segment[kept]
        tokens[request, rank] = self.tokens[kept] * (whole / np.maximum(left, 1))[request]
        cached[request, rank] = ~self.creates[kept]
        return segment, tokens, cached
