"""Serving language models: conversations with growing KV caches over shared weights.

Dimension key: E episodes, T tasks, R requests, K turns of a request, S weight shards, A shards each request uses,
O objects. A turn has two phases, the last axis of some arrays: tokens prefilled and generated.

A request is a conversation, and a chain of tasks on one KV-cache object: in each turn a prompt (prefill) and what is
generated (decode), in chunks. The cache stays while the conversation pauses and is freed after its last turn, so where
it was put, when little was known of it, counts for long. Each shard of the weights is an object of its own, created at
time 0 by a loader task, so that where weights live is decided like everything else; from then on shards are only read.

References:
    [1] The chapter, section 16.3.3: size of the KV cache.
    [2] P. Patel et al., "Splitwise: efficient generative LLM inference using phase splitting", ISCA 2024, with the
        trace AzureLLMInferenceTrace_conv_2023.csv of the Azure Public Dataset (CC-BY-4.0).
    [3] A. Agrawal et al., "Taming throughput-latency tradeoff in LLM inference with Sarathi-Serve", OSDI 2024:
        chunked prefill.
    [4] G.-I. Yu et al., "Orca: a distributed serving system for transformer-based generative models", OSDI 2022:
        continuous batching, which lets requests share one pass over the weights.
    [5] J. Kaplan et al., "Scaling laws for neural language models", 2020, section 2.1: 2 flop per parameter and token.
    [6] S. Biderman et al., "Pythia: a suite for analyzing large language models", ICML 2023: the sizes of Pythia-160m.
    [7] R. Qin et al., "Mooncake: trading more storage for less computation, a KVCache-centric architecture for serving
        LLM chatbot", FAST 2025, with its conversation trace (Apache-2.0).
    [8] J. Tang et al., "Quest: query-aware sparsity for efficient long-context LLM inference", ICML 2024.
    [9] R. Abhyankar et al., "InferCept: efficient intercept support for augmented large language model inference",
        ICML 2024: requests call tools three times and more on average, and their caches are worth keeping meanwhile.
    [10] S. Gururangan et al., "Scaling expert language models with unsupervised domain discovery", 2023: experts that
        are whole models, of which a request uses the one for its domain.
    [11] S. Chen et al., "Extending context window of large language models via positional interpolation", 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from numa_rl.transformer.kv_cache import attended_pairs, attention_flops_per_pair, kv_bytes_per_token
from numa_rl.workloads.azure import AzureTrace, read_azure_trace
from numa_rl.workloads.parameters import require
from numa_rl.workloads.processes import FloatArray, IntArray, drift_steps, interarrival_s, lognormal
from numa_rl.workloads.workload import NEVER, NO_OBJECT, Workload

# Maximum-likelihood lognormal fit to the 12,031 requests of the Mooncake conversation trace [7]: the median is the
# exponential of the mean logarithm, sigma the standard deviation of the logarithm. The Kolmogorov-Smirnov distance is
# 0.07 for prompts and 0.21 for answers, which have several modes: medians of the trace itself are 6909 and 350, means
# 12035 and 343. Prompts and answers are drawn apart (their logarithms correlate by 0.05). With the limits below the
# means become about 7900 and 260.
MOONCAKE_MEDIAN_CONTEXT_TOKENS, MOONCAKE_CONTEXT_SIGMA = 6227.0, 1.199
MOONCAKE_MEDIAN_GENERATED_TOKENS, MOONCAKE_GENERATED_SIGMA = 207.8, 1.358

NUM_PHASES = 2
PREFILL, DECODE = range(NUM_PHASES)


@dataclass(frozen=True)
class LLMServing:
    """Conversations with small language models that run on the cores of the machine.

    The defaults are eight experts [10] of the size of Pythia-160m [6], each a shard of which 124 million parameters
    work on every token (its input embedding is looked up), with positions interpolated for longer contexts [11] and
    sparse attention [8]. Prompts come with their caches from machines that prefill [2, 7]; follow-ups, short, are
    prefilled here. On eight nodes of 8 cores at 16.8 Gflop/s and 12 GB/s each (the preset r815) they offer about 0.5
    of the memory bandwidth and 0.05 of the arithmetic: decode is bound by memory. Single precision, because these
    cores cannot convert from half precision in hardware (F16C came with their successors).

    Time in the workload is nominal: a chunk arrives when its request would reach it at `tokens_per_s`, and a turn
    begins after a pause that is counted from there. That a chunk also waits for the one before it comes out of both
    owning the same object. Activations, sampling and the summaries by which sparse attention chooses are left out,
    every parameter counts as one of the shards', and nothing is replicated.

    Attributes:
        num_tasks: tasks of an episode, T; chunks are merged in arrival order and cut there.
        requests_per_s: mean rate of new requests; their later turns come on top.
        burstiness: rate in a burst over the mean rate; 1 is a Poisson process.
        burst_s: mean length of a burst; without effect when `burstiness` is 1.
        warm_up_requests: requests that came before the episode. Those still running at time 0 are met on their way:
            their first chunk in the episode creates the KV cache with all that it holds by then. 0 starts cold.
        tokens_per_s: nominal pace of decode of one request.
        prefill_tokens_per_s: nominal pace of its prefill.
        mean_turns: mean of the geometric distribution of turns of a request. Of the Mooncake trace's requests 39%
            continue an earlier one, which gives 1.6; those that call tools have four and more [9].
        max_turns: more turns than this are cut, K, and so are those after `max_context_tokens` are reached.
        mean_pause_s: mean time between an answer and the next prompt, exponential: that of a tool, not of a person.
        median_context_tokens: median length of the first prompt, lognormal [7].
        context_tokens_sigma: standard deviation of its logarithm.
        median_follow_up_tokens: median length of later prompts, lognormal with the same sigma.
        max_context_tokens: longer prompts are cut to this.
        median_generated_tokens: median answer length, lognormal [7].
        generated_tokens_sigma: standard deviation of its logarithm.
        max_generated_tokens: longer answers are cut to this.
        received_context_share: share of a first prompt whose KV cache is not computed here: it comes from a machine
            that runs only prefill, as in Splitwise [2], or from a store of caches, as in Mooncake [7], and is written
            by the request's first task besides its own work.
        prefill_chunk_tokens: tokens of the rest of a prompt in one task [3].
        decode_chunk_tokens: generated tokens in one task.
        attended_tokens: most tokens of the cache that a token attends to, as with Quest's budget [8]; dense attention
            if no request grows beyond it.
        layers: layers of a model.
        heads: query heads of a layer.
        kv_heads: key and value heads of a layer; fewer than `heads` with grouped queries.
        head_dim: dimension of a head, d_k.
        bytes_per_element: of the KV cache.
        parameters: of all shards together.
        bytes_per_parameter: of the weights.
        num_shards: objects in which the weights stand, S.
        shards_per_request: shards that a request uses, A: 1 of several models or experts; `num_shards` for a dense one.
        shard_zipf_exponent: how unequal the popularity of shards is; 0 is uniform.
        shard_drift_per_request: probability, at each request, that the coldest shard becomes the hottest.
        batch_reuse: requests that share one pass over the weights in decode [4]; divides its weight traffic.
        trace: path of an Azure trace. Arrivals and lengths then come from windows of it, at moments drawn for each
            episode, every request has one turn, and the rates, bursts and distributions above are not used (the
            maxima are).
        trace_time_scale: factor on the trace's times; above 1 the requests come more slowly.

    Raises:
        ValueError: a parameter is out of range, or the trace cannot be read or is too short.
    """

    num_tasks: int = 512
    requests_per_s: float = 0.25
    burstiness: float = 2.0
    burst_s: float = 2.0
    warm_up_requests: int = 100
    tokens_per_s: float = 12.0
    prefill_tokens_per_s: float = 40.0
    mean_turns: float = 2.0
    max_turns: int = 8
    mean_pause_s: float = 3.0
    median_context_tokens: float = MOONCAKE_MEDIAN_CONTEXT_TOKENS
    context_tokens_sigma: float = MOONCAKE_CONTEXT_SIGMA
    median_follow_up_tokens: float = 100.0
    max_context_tokens: int = 16384
    median_generated_tokens: float = MOONCAKE_MEDIAN_GENERATED_TOKENS
    generated_tokens_sigma: float = MOONCAKE_GENERATED_SIGMA
    max_generated_tokens: int = 512
    received_context_share: float = 1.0
    prefill_chunk_tokens: int = 32
    decode_chunk_tokens: int = 16
    attended_tokens: int = 2048
    layers: int = 12
    heads: int = 12
    kv_heads: int = 12
    head_dim: int = 64
    bytes_per_element: float = 4.0
    parameters: int = 990_000_000
    bytes_per_parameter: float = 4.0
    num_shards: int = 8
    shards_per_request: int = 1
    shard_zipf_exponent: float = 1.0
    shard_drift_per_request: float = 0.05
    batch_reuse: float = 2.0
    trace: str | None = None
    trace_time_scale: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges, and read the trace if there is one."""
        counts = (
            "max_turns max_context_tokens max_generated_tokens prefill_chunk_tokens decode_chunk_tokens "
            "attended_tokens layers heads kv_heads head_dim parameters num_shards shards_per_request"
        )
        require(self, f"{counts} burstiness mean_turns batch_reuse", ">= 1", lambda value: value >= 1)
        positive = (
            "requests_per_s burst_s tokens_per_s prefill_tokens_per_s mean_pause_s median_context_tokens "
            "median_follow_up_tokens median_generated_tokens bytes_per_element bytes_per_parameter trace_time_scale"
        )
        require(self, positive, "> 0", lambda value: value > 0)
        not_negative = "warm_up_requests context_tokens_sigma generated_tokens_sigma shard_zipf_exponent"
        require(self, not_negative, ">= 0", lambda value: value >= 0)
        require(self, "shard_drift_per_request received_context_share", "in [0, 1]", lambda value: 0 <= value <= 1)
        require(
            self, "shards_per_request", f"<= num_shards ({self.num_shards})", lambda value: value <= self.num_shards
        )
        require(self, "kv_heads", f"<= heads ({self.heads})", lambda value: value <= self.heads)
        require(
            self, "num_tasks", f"> num_shards ({self.num_shards} loader tasks)", lambda value: value > self.num_shards
        )
        trace = self._trace
        if trace is not None and trace.num_requests < self._num_requests:
            raise ValueError(
                f"trace must have at least {self._num_requests} requests (warm_up_requests + num_tasks - "
                f"num_shards), got {trace.num_requests} in {self.trace}."
            )

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of KV cache that one token adds [1]."""
        return kv_bytes_per_token(self.layers, self.kv_heads, self.head_dim, self.bytes_per_element)

    @property
    def shard_bytes(self) -> float:
        """Size of one weight shard."""
        return self.parameters * self.bytes_per_parameter / self.num_shards

    @property
    def active_parameters(self) -> float:
        """Parameters that one token meets."""
        return self.parameters * self.shards_per_request / self.num_shards

    @cached_property
    def _chunk_tokens(self) -> IntArray:
        """Most tokens of a chunk in each phase."""
        return np.array([self.prefill_chunk_tokens, self.decode_chunk_tokens])

    @cached_property
    def _tokens_per_s(self) -> FloatArray:
        """Nominal pace of each phase."""
        return np.array([self.prefill_tokens_per_s, self.tokens_per_s])

    @property
    def _num_requests(self) -> int:
        """Requests drawn for an episode, R: even if each later one gave a single task, the episode would be full."""
        return self.warm_up_requests + self.num_tasks - self.num_shards

    @cached_property
    def _trace(self) -> AzureTrace | None:
        return None if self.trace is None else read_azure_trace(self.trace)

    def generate(self, rng: np.random.Generator, num_episodes: int) -> Workload:
        """Make `num_episodes` episodes; more episodes from the same generator extend fewer."""
        requests = self._draw_requests(rng, num_episodes)
        chunks = self._first_chunks(requests)
        return self._workload(requests, chunks)

    def _draw_requests(self, rng: np.random.Generator, num_episodes: int) -> _Requests:
        """When the turns of requests begin, how long they are, and which shards they use."""
        r, k, s = self._num_requests, self.max_turns, self.num_shards
        uniforms = rng.random((num_episodes, 1 + s + r * (4 + s + 3 * k)))
        window, ranking = uniforms[:, 0], np.argsort(uniforms[:, 1 : 1 + s], axis=1)
        channels = np.moveaxis(uniforms[:, 1 + s :].reshape(num_episodes, r, -1), 2, 0)
        phase, gap, drift, turns = channels[:4]  # (E, R) each
        lengths = np.moveaxis(channels[4 + s :], 0, 2).reshape(num_episodes, r, 3, k)
        prompt, generated, pause = np.moveaxis(lengths, 2, 0)  # (E, R, K) each

        trace = self._trace
        prompt_tokens = lognormal(prompt, self.median_follow_up_tokens, self.context_tokens_sigma)
        prompt_tokens[:, :, 0] *= self.median_context_tokens / self.median_follow_up_tokens
        generated_tokens = lognormal(generated, self.median_generated_tokens, self.generated_tokens_sigma)
        if trace is None:
            arrival_s = np.cumsum(
                interarrival_s(phase, gap, self.requests_per_s, self.burstiness, self.burst_s), axis=1
            )
            num_turns = _geometric(turns, self.mean_turns)
            start_s = arrival_s[:, self.warm_up_requests - 1, None] if self.warm_up_requests else 0.0
        else:
            first = (window * (trace.num_requests - r + 1)).astype(np.int64)
            picked = first[:, None] + np.arange(r)
            arrival_s = trace.arrival_s[picked] * self.trace_time_scale
            prompt_tokens[:, :, 0] = trace.context_tokens[picked]
            generated_tokens[:, :, 0] = trace.generated_tokens[picked]
            num_turns = np.ones((num_episodes, r), dtype=np.int64)
            start_s = arrival_s[:, max(self.warm_up_requests - 1, 0), None]

        received, tokens = self._tokens(prompt_tokens, generated_tokens, num_turns)
        turn_s = (tokens / self._tokens_per_s).sum(axis=3) - self.mean_pause_s * np.log1p(-pause)
        return _Requests(
            (arrival_s - start_s)[:, :, None] + _before(turn_s),
            received,
            tokens,
            self._draw_shards(ranking, drift, channels[4 : 4 + s]),
        )

    def _tokens(
        self, prompt_tokens: FloatArray, generated_tokens: FloatArray, num_turns: IntArray
    ) -> tuple[IntArray, IntArray]:
        """Tokens received, shape (E, R), and those of each phase, 0 where there is no turn, shape (E, R, K, 2)."""
        prompt = np.clip(np.rint(prompt_tokens), 1, self.max_context_tokens).astype(np.int64)
        generated = np.clip(np.rint(generated_tokens), 1, self.max_generated_tokens).astype(np.int64)
        takes_place = np.arange(self.max_turns) < num_turns[:, :, None]
        takes_place[:, :, 1:] &= _before(prompt + generated)[:, :, 1:] < self.max_context_tokens
        received = (self.received_context_share * prompt[:, :, 0]).astype(np.int64)
        prompt[:, :, 0] -= received
        return received, np.stack([prompt, generated], axis=3) * takes_place[..., None]

    def _draw_shards(self, ranking: IntArray, drift: FloatArray, noise: FloatArray) -> IntArray:
        """Distinct shards for each request, popular ones more often, shape (E, R, A).

        The Gumbel-top-k trick: adding Gumbel noise to log weights and taking the largest A draws A distinct shards
        as successive draws without replacement would.
        """
        s = self.num_shards
        position = np.argsort(ranking, axis=1)[:, None, :] + drift_steps(drift, self.shard_drift_per_request)[..., None]
        log_weight = -self.shard_zipf_exponent * np.log1p(position % s)  # (E, R, S)
        gumbel = -np.log(-np.log(np.maximum(np.moveaxis(noise, 0, 2), np.finfo(np.float64).tiny)))
        return np.sort(np.argsort(log_weight + gumbel, axis=2)[:, :, s - self.shards_per_request :], axis=2)

    def _first_chunks(self, requests: _Requests) -> _Chunks:
        """The first T - S chunks of each episode in order of arrival, none before time 0."""
        wanted = self.num_tasks - self.num_shards
        num_chunks = -(-requests.tokens // self._chunk_tokens)  # (E, R, K, 2)
        begin_s = requests.arrival_s[:, :, 0]
        end_s = requests.arrival_s[:, :, -1] + (requests.tokens[:, :, -1] / self._tokens_per_s).sum(axis=2)

        # By `horizon_s` requests with enough chunks have run their course: nothing later can be among the first.
        chunks_in_episode = np.where(begin_s >= 0.0, num_chunks.sum(axis=(2, 3)), 0)
        order = np.argsort(end_s, axis=1)
        done = np.cumsum(np.take_along_axis(chunks_in_episode, order, axis=1), axis=1) >= wanted
        horizon_s = np.take_along_axis(end_s, order, axis=1)[np.arange(len(done)), done.argmax(axis=1)]
        relevant = (end_s >= 0.0) & (begin_s <= horizon_s[:, None])

        tokens = requests.tokens[relevant]  # (n, K, 2), and so on: phases of the relevant requests
        phase_s = (requests.arrival_s[relevant][:, :, None] + _before(tokens / self._tokens_per_s)).ravel()
        received = requests.received_tokens[relevant]
        held = (received[:, None] + _before(tokens.reshape(len(tokens), -1))).ravel()
        count = num_chunks[relevant].ravel()
        phase = np.repeat(np.arange(count.size), count)
        done_tokens = (np.arange(phase.size) - _before(count)[phase]) * self._chunk_tokens[phase % NUM_PHASES]
        arrival_s = phase_s[phase] + done_tokens / self._tokens_per_s[phase % NUM_PHASES]
        episode, request = (index[phase // (NUM_PHASES * self.max_turns)] for index in np.nonzero(relevant))

        kept = np.flatnonzero(arrival_s >= 0.0)
        kept = kept[np.lexsort((arrival_s[kept], episode[kept]))]
        place = np.arange(len(kept)) - _before(np.bincount(episode[kept], minlength=len(done)))[episode[kept]]
        chosen = kept[place < wanted].reshape(-1, wanted)  # (E, T - S)

        phase, done_tokens = phase[chosen], done_tokens[chosen]
        kind, owner = phase % NUM_PHASES, phase // (NUM_PHASES * self.max_turns)
        start = held[phase] + done_tokens
        stop = held[phase] + np.minimum(done_tokens + self._chunk_tokens[kind], tokens.ravel()[phase])
        return _Chunks(
            arrival_s=arrival_s[chosen],
            request=request[chosen],
            kind=kind,
            start=start,
            stop=stop,
            received=np.where(start == received[owner], start, 0),
            last=stop == (received + tokens.sum(axis=(1, 2)))[owner],
        )

    def _workload(self, requests: _Requests, chunks: _Chunks) -> Workload:
        """Loader tasks, then chunks."""
        (e, wanted), s = chunks.arrival_s.shape, self.num_shards
        rows, place = np.arange(e)[:, None], np.arange(wanted)
        # KV caches are numbered after the shards, in order of first appearance (the last of repeated writes stays).
        first_place = np.full(requests.shards.shape[:2], wanted)
        first_place[rows, chunks.request[:, ::-1]] = place[::-1]
        number = np.argsort(np.argsort(first_place, axis=1, kind="stable"), axis=1)  # (E, R)
        kv_object = s + number[rows, chunks.request]
        num_objects = s + int((first_place < wanted).sum(axis=1).max())
        freed_after = np.full((e, num_objects), NEVER, dtype=np.int32)
        episode, task = np.nonzero(chunks.last)
        freed_after[episode, kv_object[episode, task]] = s + task

        read_tokens, written_tokens = chunks.kv_tokens_read(self.attended_tokens), chunks.stop - chunks.start
        moved_tokens = read_tokens + written_tokens + chunks.received
        weight_passes = np.where(chunks.kind == DECODE, written_tokens / self.batch_reuse, 1.0)
        flops_per_pair = attention_flops_per_pair(self.layers, self.heads, self.head_dim)
        attention_flops = flops_per_pair * chunks.positions_attended(self.attended_tokens)
        flops = 2.0 * self.active_parameters * written_tokens + attention_flops  # [5]

        def with_loaders(loader: npt.ArrayLike, chunk: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return np.concatenate([np.broadcast_to(loader, (e, s, *chunk.shape[2:])), chunk], axis=1)

        return Workload(
            name="llm-serving",
            arrival_s=with_loaders(0.0, chunks.arrival_s),
            flops=with_loaders(0.0, flops),
            bytes=with_loaders(self.shard_bytes, moved_tokens * self.kv_bytes_per_token),
            write_fraction=with_loaders(1.0, (written_tokens + chunks.received) / moved_tokens),
            object=with_loaders(np.arange(s), kv_object),
            object_bytes=with_loaders(self.shard_bytes, chunks.stop * self.kv_bytes_per_token),
            inputs=with_loaders(NO_OBJECT, requests.shards[rows, chunks.request]),
            input_bytes=with_loaders(
                0.0, np.repeat((weight_passes * self.shard_bytes)[:, :, None], self.shards_per_request, axis=2)
            ),
            freed_after=freed_after,
        )


@dataclass(frozen=True)
class _Requests:
    """Requests of each episode.

    Attributes:
        arrival_s: when each turn begins, or would if the request had so many, before 0 for warm-up, shape (E, R, K).
        received_tokens: tokens whose cache comes with the first prompt, shape (E, R).
        tokens: tokens prefilled and generated in each turn, 0 where there is none, shape (E, R, K, 2).
        shards: which shards each request uses, shape (E, R, A).
    """

    arrival_s: FloatArray
    received_tokens: IntArray
    tokens: IntArray
    shards: IntArray


@dataclass(frozen=True)
class _Chunks:
    """Chunks in the order of their arrival, shape (E, T - S): tokens start..stop of a request, and of which kind."""

    arrival_s: FloatArray
    request: IntArray
    kind: IntArray
    start: IntArray
    stop: IntArray
    received: IntArray
    last: npt.NDArray[np.bool_]

    def kv_tokens_read(self, attended_tokens: int) -> FloatArray:
        """Tokens of its own KV cache that each chunk reads.

        A decoded token reads what it attends to among all before it, and a chunk of prefill goes once over what came
        before the chunk, for its tokens choose differently.
        """
        decoded = attended_pairs(self.stop - 1, attended_tokens) - attended_pairs(self.start - 1, attended_tokens)
        return np.where(self.kind == DECODE, decoded, self.start)

    def positions_attended(self, attended_tokens: int) -> FloatArray:
        """Pairs of a token and one it attends to, itself included."""
        return attended_pairs(self.stop, attended_tokens) - attended_pairs(self.start, attended_tokens)


def _before(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Sum of all earlier values along the last axis."""
    return np.asarray(np.cumsum(values, axis=-1) - values)


def _geometric(uniform: FloatArray, mean: float) -> IntArray:
    """Numbers from 1 on, each following the one before it with probability 1 - 1 / mean, by inverse transform."""
    if mean == 1.0:
        return np.ones(uniform.shape, dtype=np.int64)
    return np.asarray(1 + np.log1p(-uniform) / np.log1p(-1.0 / mean), dtype=np.int64)
