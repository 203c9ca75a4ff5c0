"""Serving a language model: requests with a growing KV cache over shared weights.

Dimension key: E episodes, T tasks, R requests, S weight shards, A shards each request uses, O objects.

A request is a chain of tasks on one KV-cache object: its context in chunks (prefill), then what it generates in
chunks (decode). Each shard of the weights is an object of its own, created at time 0 by a loader task, so that
where weights live is decided like everything else; from then on shards are only read.

References:
    [1] The chapter, section 16.3.3: size of the KV cache.
    [2] P. Patel et al., "Splitwise: efficient generative LLM inference using phase splitting", ISCA 2024, with the
        trace AzureLLMInferenceTrace_conv_2023.csv of the Azure Public Dataset (CC-BY-4.0).
    [3] A. Agrawal et al., "Taming throughput-latency tradeoff in LLM inference with Sarathi-Serve", OSDI 2024:
        chunked prefill.
    [4] G.-I. Yu et al., "Orca: a distributed serving system for transformer-based generative models", OSDI 2022:
        continuous batching, which lets requests share one pass over the weights.
    [5] J. Kaplan et al., "Scaling laws for neural language models", 2020, section 2.1: 2 flop per parameter and token.
    [6] A. Radford et al., "Language models are unsupervised multitask learners", 2019: the sizes of GPT-2 medium.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from numa_rl.workloads.azure import AzureTrace, read_azure_trace
from numa_rl.workloads.parameters import require
from numa_rl.workloads.processes import FloatArray, IntArray, drift_steps, interarrival_s, lognormal
from numa_rl.workloads.workload import NEVER, NO_OBJECT, Workload

# Maximum-likelihood lognormal fit to the 19,366 requests of the Azure conversation trace [2]: the median is the
# exponential of the mean logarithm, sigma the standard deviation of the logarithm. The trace has several modes (the
# Kolmogorov-Smirnov distance is 0.16 for context and 0.18 for generated), so the fit carries its scale and spread, not
# its shape: medians of the trace itself are 1020 and 129, means 1155 and 211. Context and generated lengths are
# drawn apart (their logarithms correlate by 0.09). With the limits below the means become about 950 and 210: a small
# model must cut long prompts.
AZURE_MEDIAN_CONTEXT_TOKENS, AZURE_CONTEXT_SIGMA = 760.0, 0.985
AZURE_MEDIAN_GENERATED_TOKENS, AZURE_GENERATED_SIGMA = 151.0, 0.859


@dataclass(frozen=True)
class LLMServing:
    """Requests arriving at a language model that runs on the cores of the machine.

    The defaults are a GPT-2 medium [6] whose 355 million parameters stand in 8 shards of which each request uses 2,
    as in a mixture of experts or with adapters. On eight nodes of 8 cores at 16.8 Gflop/s and 12 GB/s each (the
    preset r815) they offer about 0.6 of the memory bandwidth and 0.35 of the arithmetic, in bursts.

    Time in the workload is nominal: a chunk arrives when its request would reach it at `tokens_per_s`. That it also
    waits for the chunk before it comes out of both owning the same object. Embeddings, activations and sampling are
    left out, and every parameter counts as one of the shards'.

    Attributes:
        num_tasks: tasks of an episode, T; chunks are merged in arrival order and cut there.
        requests_per_s: mean rate of requests.
        burstiness: rate in a burst over the mean rate; 1 is a Poisson process.
        burst_s: mean length of a burst; without effect when `burstiness` is 1.
        warm_up_requests: requests that came before the episode. Those still running at time 0 are met on their way:
            their first chunk in the episode creates the KV cache with all that it holds by then. 0 starts cold.
        tokens_per_s: nominal pace of one request.
        median_context_tokens: median prompt length, lognormal [2].
        context_tokens_sigma: standard deviation of its logarithm.
        max_context_tokens: longer prompts are cut to this.
        median_generated_tokens: median answer length, lognormal [2].
        generated_tokens_sigma: standard deviation of its logarithm.
        max_generated_tokens: longer answers are cut to this.
        prefill_chunk_tokens: tokens of the prompt in one task [3].
        decode_chunk_tokens: generated tokens in one task.
        layers: layers of the model.
        heads: query heads of a layer.
        kv_heads: key and value heads of a layer; fewer than `heads` with grouped queries.
        head_dim: dimension of a head, d_k.
        bytes_per_element: of the KV cache.
        parameters: of the whole model.
        bytes_per_parameter: of the weights.
        num_shards: objects in which the weights stand, S.
        shards_per_request: shards that a request uses, A; equal to `num_shards` for a dense model.
        shard_zipf_exponent: how unequal the popularity of shards is; 0 is uniform.
        shard_drift_per_request: probability, at each request, that the coldest shard becomes the hottest.
        batch_reuse: requests that share one pass over the weights in decode [4]; divides its weight traffic.
        trace: path of an Azure trace. Arrivals and lengths then come from windows of it, at moments drawn for each
            episode, and the rates, bursts and distributions above are not used (the maxima are).
        trace_time_scale: factor on the trace's times; above 1 the requests come more slowly.

    Raises:
        ValueError: a parameter is out of range, or the trace cannot be read or is too short.
    """

    num_tasks: int = 512
    requests_per_s: float = 1.25
    burstiness: float = 2.0
    burst_s: float = 2.0
    warm_up_requests: int = 100
    tokens_per_s: float = 40.0
    median_context_tokens: float = AZURE_MEDIAN_CONTEXT_TOKENS
    context_tokens_sigma: float = AZURE_CONTEXT_SIGMA
    max_context_tokens: int = 2048
    median_generated_tokens: float = AZURE_MEDIAN_GENERATED_TOKENS
    generated_tokens_sigma: float = AZURE_GENERATED_SIGMA
    max_generated_tokens: int = 1024
    prefill_chunk_tokens: int = 64
    decode_chunk_tokens: int = 16
    layers: int = 24
    heads: int = 16
    kv_heads: int = 16
    head_dim: int = 64
    bytes_per_element: float = 2.0
    parameters: int = 355_000_000
    bytes_per_parameter: float = 2.0
    num_shards: int = 8
    shards_per_request: int = 2
    shard_zipf_exponent: float = 1.0
    shard_drift_per_request: float = 0.05
    batch_reuse: float = 2.0
    trace: str | None = None
    trace_time_scale: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges, and read the trace if there is one."""
        counts = (
            "max_context_tokens max_generated_tokens prefill_chunk_tokens decode_chunk_tokens "
            "layers heads kv_heads head_dim parameters num_shards shards_per_request"
        )
        require(self, f"{counts} burstiness batch_reuse", ">= 1", lambda value: value >= 1)
        positive = (
            "requests_per_s burst_s tokens_per_s median_context_tokens median_generated_tokens "
            "bytes_per_element bytes_per_parameter trace_time_scale"
        )
        require(self, positive, "> 0", lambda value: value > 0)
        not_negative = "warm_up_requests context_tokens_sigma generated_tokens_sigma shard_zipf_exponent"
        require(self, not_negative, ">= 0", lambda value: value >= 0)
        require(self, "shard_drift_per_request", "in [0, 1]", lambda value: 0 <= value <= 1)
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
        """Bytes of KV cache that one token adds: 2 x layers x heads x d_k x bytes per element [1]."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.bytes_per_element

    @property
    def shard_bytes(self) -> float:
        """Size of one weight shard."""
        return self.parameters * self.bytes_per_parameter / self.num_shards

    @property
    def active_parameters(self) -> float:
        """Parameters that one token meets."""
        return self.parameters * self.shards_per_request / self.num_shards

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
        """When requests come, how long they are, and which shards they use."""
        r, s = self._num_requests, self.num_shards
        uniforms = rng.random((num_episodes, 1 + s + r * (5 + s)))
        window, ranking = uniforms[:, 0], np.argsort(uniforms[:, 1 : 1 + s], axis=1)
        channels = np.moveaxis(uniforms[:, 1 + s :].reshape(num_episodes, r, 5 + s), 2, 0)
        phase, gap, context, generated, drift = channels[:5]  # (E, R) each

        trace = self._trace
        if trace is None:
            arrival_s = np.cumsum(
                interarrival_s(phase, gap, self.requests_per_s, self.burstiness, self.burst_s), axis=1
            )
            context_tokens = lognormal(context, self.median_context_tokens, self.context_tokens_sigma)
            generated_tokens = lognormal(generated, self.median_generated_tokens, self.generated_tokens_sigma)
            start_s = arrival_s[:, self.warm_up_requests - 1, None] if self.warm_up_requests else 0.0
        else:
            first = (window * (trace.num_requests - r + 1)).astype(np.int64)
            picked = first[:, None] + np.arange(r)
            arrival_s = trace.arrival_s[picked] * self.trace_time_scale
            context_tokens = trace.context_tokens[picked].astype(np.float64)
            generated_tokens = trace.generated_tokens[picked].astype(np.float64)
            start_s = arrival_s[:, max(self.warm_up_requests - 1, 0), None]

        # The Gumbel-top-k trick: adding Gumbel noise to log weights and taking the largest A draws A distinct
        # shards as successive draws without replacement would.
        position = np.argsort(ranking, axis=1)[:, None, :] + drift_steps(drift, self.shard_drift_per_request)[..., None]
        log_weight = -self.shard_zipf_exponent * np.log1p(position % s)  # (E, R, S)
        gumbel = -np.log(-np.log(np.maximum(np.moveaxis(channels[5:], 0, 2), np.finfo(np.float64).tiny)))
        shards = np.argsort(log_weight + gumbel, axis=2)[:, :, s - self.shards_per_request :]
        return _Requests(
            arrival_s - start_s,
            np.clip(np.rint(context_tokens), 1, self.max_context_tokens).astype(np.int64),
            np.clip(np.rint(generated_tokens), 1, self.max_generated_tokens).astype(np.int64),
            np.sort(shards, axis=2),
        )

    def _first_chunks(self, requests: _Requests) -> _Chunks:
        """The first T - S chunks of each episode in order of arrival, none before time 0."""
        wanted = self.num_tasks - self.num_shards
        num_prefill = -(-requests.context_tokens // self.prefill_chunk_tokens)  # (E, R)
        num_decode = -(-requests.generated_tokens // self.decode_chunk_tokens)
        before_last = requests.context_tokens + (num_decode - 1) * self.decode_chunk_tokens
        last_arrival_s = requests.arrival_s + before_last / self.tokens_per_s

        # By `horizon_s` requests with enough chunks have run their course: nothing later can be among the first.
        chunks_in_episode = np.where(requests.arrival_s >= 0.0, num_prefill + num_decode, 0)
        order = np.argsort(last_arrival_s, axis=1)
        done = np.cumsum(np.take_along_axis(chunks_in_episode, order, axis=1), axis=1) >= wanted
        horizon_s = np.take_along_axis(last_arrival_s, order, axis=1)[np.arange(len(done)), done.argmax(axis=1)]
        relevant = (last_arrival_s >= 0.0) & (requests.arrival_s <= horizon_s[:, None])

        episode, request = np.nonzero(relevant)
        num_chunks = (num_prefill + num_decode)[relevant]
        index = np.arange(num_chunks.sum()) - np.repeat(np.cumsum(num_chunks) - num_chunks, num_chunks)
        episode, request = np.repeat(episode, num_chunks), np.repeat(request, num_chunks)
        first_decode = num_prefill[episode, request]
        context = requests.context_tokens[episode, request]
        decode = index >= first_decode
        start = np.where(
            decode, context + (index - first_decode) * self.decode_chunk_tokens, index * self.prefill_chunk_tokens
        )
        limit = np.where(decode, context + requests.generated_tokens[episode, request], context)
        stop = np.minimum(start + np.where(decode, self.decode_chunk_tokens, self.prefill_chunk_tokens), limit)
        arrival_s = requests.arrival_s[episode, request] + start / self.tokens_per_s

        kept = np.flatnonzero(arrival_s >= 0.0)
        kept = kept[np.lexsort((arrival_s[kept], episode[kept]))]
        counts = np.bincount(episode[kept], minlength=len(horizon_s))
        place = np.arange(len(kept)) - np.repeat(np.cumsum(counts) - counts, counts)
        chosen = kept[place < wanted].reshape(-1, wanted)  # (E, T - S)
        last = decode & (stop == limit)
        return _Chunks(arrival_s[chosen], request[chosen], start[chosen], stop[chosen], decode[chosen], last[chosen])

    def _workload(self, requests: _Requests, chunks: _Chunks) -> Workload:
        """Loader tasks, then chunks."""
        (e, wanted), s = chunks.arrival_s.shape, self.num_shards
        rows, place = np.arange(e)[:, None], np.arange(wanted)
        # KV caches are numbered after the shards, in order of first appearance (the last of repeated writes stays).
        first_place = np.full(requests.arrival_s.shape, wanted)
        first_place[rows, chunks.request[:, ::-1]] = place[::-1]
        number = np.argsort(np.argsort(first_place, axis=1, kind="stable"), axis=1)  # (E, R)
        kv_object = s + number[rows, chunks.request]
        num_objects = s + int((first_place < wanted).sum(axis=1).max())
        freed_after = np.full((e, num_objects), NEVER, dtype=np.int32)
        episode, task = np.nonzero(chunks.last)
        freed_after[episode, kv_object[episode, task]] = s + task

        read_tokens, written_tokens = chunks.kv_tokens_read(), chunks.stop - chunks.start
        moved_tokens = read_tokens + written_tokens
        weight_passes = np.where(chunks.decode, written_tokens / self.batch_reuse, 1.0)
        attention_flops = 4 * self.layers * self.heads * self.head_dim * chunks.positions_attended()

        def with_loaders(loader: npt.ArrayLike, chunk: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return np.concatenate([np.broadcast_to(loader, (e, s, *chunk.shape[2:])), chunk], axis=1)

        return Workload(
            name="llm-serving",
            arrival_s=with_loaders(0.0, chunks.arrival_s),
            flops=with_loaders(0.0, 2.0 * self.active_parameters * written_tokens + attention_flops),
            bytes=with_loaders(self.shard_bytes, moved_tokens * self.kv_bytes_per_token),
            write_fraction=with_loaders(1.0, written_tokens / moved_tokens),
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
    """Requests of each episode: arrival (before 0 for warm-up) and lengths, shape (E, R); shards, shape (E, R, A)."""

    arrival_s: FloatArray
    context_tokens: IntArray
    generated_tokens: IntArray
    shards: IntArray


@dataclass(frozen=True)
class _Chunks:
    """Chunks in the order of their arrival, shape (E, T - S): tokens start..stop of a request, and whether its last."""

    arrival_s: FloatArray
    request: IntArray
    start: IntArray
    stop: IntArray
    decode: npt.NDArray[np.bool_]
    last: npt.NDArray[np.bool_]

    def kv_tokens_read(self) -> FloatArray:
        """Tokens of its own KV cache that each chunk reads.

        A decoded token reads all before it, k tokens from `start` on k start + k (k - 1) / 2; a chunk of prefill
        goes once over what came before the chunk.
        """
        k = self.stop - self.start
        return np.where(self.decode, k * self.start + k * (k - 1) / 2, self.start)

    def positions_attended(self) -> FloatArray:
        """Pairs of a token and one it attends to, itself included: the causal triangle on top of what came before."""
        k = self.stop - self.start
        return k * self.start + k * (k + 1) / 2
