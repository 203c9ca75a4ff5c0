"""From requests that share prefixes to tasks: shared blocks are written once and read by many.

Dimension key: E episodes, T tasks, n requests of all episodes together, m their tasks in no order yet, P inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from numa_rl.transformer.kv_cache import attended_pairs
from numa_rl.workloads.prefix_requests import BoolArray, PrefixRequests, Segments, places
from numa_rl.workloads.processes import FloatArray, IntArray
from numa_rl.workloads.workload import NEVER, NO_OBJECT, Workload


@dataclass(frozen=True)
class Serving:
    """How requests become tasks.

    Attributes:
        num_tasks: tasks of an episode, T.
        chunk_tokens: generated tokens of one decode task.
        tokens_per_s: nominal pace of decode.
        attended_tokens: most tokens that a token attends to.
        max_inputs: most segments that a task reads, P.
        bytes_per_token: of the KV cache.
        flops_per_pair: arithmetic for a token and one it attends to.
    """

    num_tasks: int
    chunk_tokens: int
    tokens_per_s: float
    attended_tokens: int
    max_inputs: int
    bytes_per_token: float
    flops_per_pair: float

    @property
    def chunk_s(self) -> float:
        """Nominal time from one chunk to the next."""
        return self.chunk_tokens / self.tokens_per_s

    def workload(self, requests: PrefixRequests, num_episodes: int) -> Workload:
        """The first T tasks of each episode; requests must be enough for that."""
        segments = Segments.of(requests)
        tasks = _Tasks.of(requests, segments, self)
        chosen = tasks.first(requests.episode, self.num_tasks, num_episodes)  # (E, T)
        segment, tokens, cached = segments.inputs(self.max_inputs)
        request, brings = tasks.request[chosen], tasks.brings[chosen]

        # A cached prefix goes up once, before the rest of the prompt; then every generated token reads all of it.
        decodes = ~brings
        goes_up = brings & tasks.leads()[chosen]
        used = (segment[request] != NO_OBJECT) & (decodes[..., None] | (goes_up[..., None] & cached[request]))
        times_read = np.where(decodes, tasks.times_read[chosen], 1.0)
        number = _number(tasks.object[chosen], segments.num_segments + requests.num_requests)
        own = number[tasks.object[chosen]]
        inputs = np.where(used, number[segment[request]], NO_OBJECT)
        input_tokens = np.where(used, tokens[request] * times_read[..., None], 0.0)
        moved = tasks.moved_tokens[chosen]
        read_only = np.zeros((num_episodes, own.max() + 1), np.bool_)
        read_only[np.arange(num_episodes)[:, None], own] = tasks.object[chosen] < segments.num_segments
        return Workload(
            name="prefix-cache",
            arrival_s=tasks.arrival_s[chosen],
            flops=(tasks.pairs[chosen] * self.flops_per_pair).astype(np.float32),
            bytes=(moved * self.bytes_per_token).astype(np.float32),
            write_fraction=(tasks.written_tokens[chosen] / moved).astype(np.float32),
            object=own.astype(np.int32),
            object_bytes=(tasks.held_tokens[chosen] * self.bytes_per_token).astype(np.float64),
            inputs=inputs.astype(np.int32),
            input_bytes=(input_tokens * self.bytes_per_token).astype(np.float32),
            freed_after=_freed_after(own, inputs, tasks.ends[chosen], read_only).astype(np.int32),
            read_only=read_only,
        )


@dataclass(frozen=True, eq=False)
class _Tasks:
    """Tasks of all requests, shape (m,) each.

    Attributes:
        request: whose it is.
        order: its place among the tasks of the request.
        arrival_s: when it may first be decided.
        object: what it owns: a segment, or the number of segments plus the request.
        brings: whether it writes a part of the prompt's cache; the others decode.
        ends: whether it is the request's last one.
        written_tokens: tokens whose cache it writes.
        moved_tokens: those and the tokens of its own object that it reads.
        held_tokens: tokens in its own object when it is done.
        times_read: how often a decode task reads each token of the prefix.
        pairs: pairs of a token and one it attends to.
    """

    request: IntArray
    order: IntArray
    arrival_s: FloatArray
    object: IntArray
    brings: BoolArray
    ends: BoolArray
    written_tokens: IntArray
    moved_tokens: FloatArray
    held_tokens: IntArray
    times_read: FloatArray
    pairs: FloatArray

    @classmethod
    def of(cls, requests: PrefixRequests, segments: Segments, serving: Serving) -> _Tasks:
        """Tasks that write segments, then those that write the rest of prompts, then those that decode."""
        creators = np.flatnonzero(segments.creates)
        private = np.flatnonzero(segments.private_tokens)
        brought = np.concatenate([segments.tokens[creators], segments.private_tokens[private]])
        answer, chunk = places(-(-requests.output_tokens // serving.chunk_tokens))

        done = chunk * serving.chunk_tokens
        written = np.minimum(requests.output_tokens[answer] - done, serving.chunk_tokens)
        start = requests.input_tokens[answer] + done
        stop = start + written
        prefix = (requests.input_tokens - segments.private_tokens)[answer]
        most = serving.attended_tokens
        reads = attended_pairs(stop - 1, most) - attended_pairs(start - 1, most)
        # Tokens that are attended to are spread evenly over what came before.
        times_read = written * reads / (written * (start + stop - 1) / 2)

        request = np.concatenate([segments.request[creators], private, answer])
        num_brought, num_uses = len(brought), len(segments.request)
        return cls(
            request=request,
            order=np.concatenate([creators, np.full(len(private), num_uses), num_uses + 1 + chunk]),
            arrival_s=requests.arrival_s[request] + np.append(np.zeros(num_brought), chunk * serving.chunk_s),
            object=np.concatenate([segments.segment[creators], segments.num_segments + np.append(private, answer)]),
            brings=np.arange(len(request)) < num_brought,
            ends=np.append(np.zeros(num_brought, np.bool_), done + written == requests.output_tokens[answer]),
            written_tokens=np.append(brought, written),
            moved_tokens=np.append(brought, reads - prefix * times_read + written),
            held_tokens=np.append(brought, stop - prefix),
            times_read=np.append(np.zeros(num_brought), times_read),
            pairs=np.append(np.zeros(num_brought), attended_pairs(stop, most) - attended_pairs(start, most)),
        )

    def first(self, episode: IntArray, num_tasks: int, num_episodes: int) -> IntArray:
        """The first T tasks of each episode, shape (E, T).

        Tasks of one moment come in the order of requests, and each one's in its own: a segment is written before it
        is read.
        """
        order = np.lexsort((self.order, self.request, self.arrival_s, episode[self.request]))
        count = np.bincount(episode[self.request], minlength=num_episodes)
        _, place = places(count)
        return order[place < num_tasks].reshape(num_episodes, num_tasks)

    def leads(self) -> BoolArray:
        """Whether each task is the first of its request, shape (m,)."""
        order = np.lexsort((self.order, self.request))
        leads = np.zeros(len(order), np.bool_)
        leads[order[np.unique(self.request[order], return_index=True)[1]]] = True
        return leads


def _number(owned: IntArray, num_objects: int) -> IntArray:
    """The number of each object within its episode, by first appearance there, `NO_OBJECT` if it has none.

    Args:
        owned: the object that each task owns, shape (E, T); no two episodes have one in common.
        num_objects: how many there are in all.
    """
    objects, first = np.unique(owned, return_index=True)
    order = np.argsort(first)  # by episode, then task
    _, place = places(np.bincount(first // owned.shape[1], minlength=len(owned)))
    number = np.full(num_objects, NO_OBJECT)
    number[objects[order]] = place
    return number


def _freed_after(own: IntArray, inputs: IntArray, ends: BoolArray, read_only: BoolArray) -> IntArray:
    """Segments go after the last task of the episode that uses them, other objects with the last task of a request."""
    last_use, episode = np.zeros(read_only.shape, np.int64), np.arange(len(own))[:, None]
    np.maximum.at(last_use, (episode, own), np.arange(own.shape[1]))
    row, reader, place = np.nonzero(inputs != NO_OBJECT)
    np.maximum.at(last_use, (row, inputs[row, reader, place]), reader)
    ended = read_only.copy()
    ended[np.nonzero(ends)[0], own[ends]] = True
    return np.where(ended, last_use, NEVER)
