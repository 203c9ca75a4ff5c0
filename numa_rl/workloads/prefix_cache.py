"""Serving a language model whose requests share prefixes: KV blocks in host memory, read wherever attention runs.

A machine with accelerators keeps the KV cache in the memory of the host, and the host's cores compute the attention
of decode next to it [2, 3]; weights and prompts are the accelerators' work, so neither takes time here. What the host
does is bound by its memory:

    1. what a prompt adds is written as it comes, a task for each object of it;
    2. the first of these reads, besides, what was cached of the prompt, which the accelerator needs too;
    3. decode reads the whole context for each token (or `attended_tokens` of it), in tasks of some tokens, and
       writes what it adds to the request's own cache.

**Blocks that several requests share are objects of their own, written once and only read from then on**, so each may
have copies on several nodes. A block is 512 tokens as in Mooncake [1], and an object is a run of blocks that occur in
the same requests of the episode, an edge of the radix tree of prompts: that bounds how many there are by twice the
requests. What only one request has is part of that request's own object. A shared object goes after its last use in
the episode, which is what the best of eviction rules would do. What was cached before the episode is written by the
first request that needs it, as if fetched from the store [1].

Dimension key: E episodes, T tasks, R requests, C conversations, K turns, P inputs.

References:
    [1] R. Qin et al., "Mooncake: trading more storage for less computation, a KVCache-centric architecture for serving
        LLM chatbot", FAST 2025, with its conversation trace (Apache-2.0).
    [2] X. Jiang et al., "NEO: saving GPU memory crisis with CPU offloading for online LLM inference", MLSys 2025.
    [3] J. He, J. Zhai, "FastDecode: high-throughput GPU-efficient LLM serving using heterogeneous pipelines", 2024.
    [4] V. Srivatsa et al., "Preble: efficient distributed prompt scheduling for LLM serving", ICLR 2025: prompts of
        tools, agents and programs share long instructions; requests go to where their prefix is.
    [5] S. Biderman et al., "Pythia: a suite for analyzing large language models", ICML 2023: the sizes of Pythia-160m.
    [6] P. S. Fader, B. G. S. Hardie, "How to project customer retention", Journal of Interactive Marketing 21(1),
        2007: the shifted beta-geometric distribution.
    [7] J. Tang et al., "Quest: query-aware sparsity for efficient long-context LLM inference", ICML 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from numa_rl.transformer.kv_cache import attention_flops_per_pair, kv_bytes_per_token
from numa_rl.workloads.llm_serving import MOONCAKE_GENERATED_SIGMA, MOONCAKE_MEDIAN_GENERATED_TOKENS
from numa_rl.workloads.mooncake import BLOCK_TOKENS, MooncakeTrace, read_mooncake_trace
from numa_rl.workloads.parameters import require
from numa_rl.workloads.prefix_requests import PrefixRequests, blocks_of, conversation_requests, first_requests, places
from numa_rl.workloads.prefix_tasks import Serving
from numa_rl.workloads.processes import FloatArray, IntArray, interarrival_s, lognormal, zipf_rank
from numa_rl.workloads.workload import Workload

# Maximum-likelihood fits to the Mooncake conversation trace [1], whose requests continue the latest earlier one that
# has the same blocks beyond the first, the system's. Of 12,031 requests 7,373 continue none.
# Turns: a conversation stops after each one with a probability that differs between conversations, beta(a, b) [6].
# The counts of second, third, ... turns are 2265, 949, 484, 284, 167; the fit gives 2257, 962, 492, 282, 176.
MOONCAKE_STOP_A, MOONCAKE_STOP_B = 3.311, 1.460
# Lognormals, as medians and standard deviations of the logarithm: what a first prompt has beyond the first block, what
# a later one adds to the one before it (where it keeps all blocks of it), and the time between the two.
MOONCAKE_MEDIAN_FIRST_TOKENS, MOONCAKE_FIRST_SIGMA = 3804.0, 1.536
MOONCAKE_MEDIAN_ADDED_TOKENS, MOONCAKE_ADDED_SIGMA = 539.5, 1.444
MOONCAKE_MEDIAN_PAUSE_S, MOONCAKE_PAUSE_SIGMA = 131.4, 0.978
# 14.8% of later prompts keep only part of the blocks: with quartiles of 12, 22 and 46%, for which we take the square
# of a uniform number (6, 25 and 56%).
MOONCAKE_FORGET_SHARE = 0.148

EPISODES_AT_ONCE = 64  # drawing all of a large pool together takes gigabytes


@dataclass(frozen=True)
class PrefixCache:
    """Conversations over shared prefixes.

    The defaults have the shape of Pythia-160m [5], so that an episode fits into the memory of any server, four sets of
    instructions of 4096 tokens, as programs and agents have them [4], and the Mooncake trace's conversations, 24 times
    as fast: a person's pause of two minutes becomes a tool's of five seconds. On eight nodes of 100 GB/s (the preset
    chapter-8-socket) they offer about half of the memory bandwidth.

    Attributes:
        num_tasks: tasks of an episode, T; they are merged in arrival order and cut there.
        requests_per_s: mean rate of requests, later turns included, were none cut; with the defaults a tenth are.
        burstiness: rate of new conversations in a burst over their mean rate; 1 is a Poisson process.
        burst_s: mean length of a burst; without effect when `burstiness` is 1.
        warm_up_conversations: conversations that began before the episode; their later turns are met in it.
        num_system_prompts: sets of instructions that prompts begin with; Mooncake's trace has 1.
        system_prompt_blocks: length of each, in blocks of 512 tokens; Mooncake's is 1.
        system_prompt_zipf_exponent: how unequal their popularity is; 0 is uniform.
        stop_a: of the beta distribution of the probability that a conversation ends after a turn [6].
        stop_b: its other parameter; the mean number of turns is (a + b - 1) / (a - 1).
        max_turns: more turns than this are cut, K, and so are those beyond `max_context_tokens`.
        median_pause_s: median time from a request to the next one of the conversation, lognormal.
        pause_sigma: standard deviation of its logarithm.
        median_first_tokens: median length of a first prompt beyond the instructions, lognormal.
        first_tokens_sigma: standard deviation of its logarithm.
        median_added_tokens: median of what a later prompt adds, the answer before it included, lognormal.
        added_tokens_sigma: standard deviation of its logarithm.
        forget_share: share of later prompts that keep only part of the blocks before them.
        max_context_tokens: longer prompts are cut to this, in whole blocks.
        median_generated_tokens: median answer length, lognormal.
        generated_tokens_sigma: standard deviation of its logarithm.
        max_generated_tokens: longer answers are cut to this.
        tokens_per_s: nominal pace of decode: when its tasks may be decided.
        decode_chunk_tokens: generated tokens in one task.
        attended_tokens: most tokens of the context that a token attends to, as with Quest's budget [7]; dense
            attention where no context grows beyond it.
        max_inputs: shared objects that a task reads at most, P; see `Segments.inputs` for prompts of more.
        layers: layers of the model.
        heads: query heads of a layer.
        kv_heads: key and value heads of a layer; fewer than `heads` with grouped queries.
        head_dim: dimension of a head, d_k.
        bytes_per_element: of the KV cache.
        trace: path of a Mooncake trace. Arrivals, lengths and blocks then come from windows of it, at moments drawn
            for each episode, and the rates and distributions above are not used (the maxima are).
        trace_machines: machines that share the trace's requests. Each takes all of those whose prompts agree beyond
            the first block, as routers that look at prefixes send them [4]; an episode is what one of them gets.
        trace_time_scale: factor on the trace's times; below 1 the requests come faster.

    Raises:
        ValueError: a parameter is out of range, or the trace cannot be read or is too short.
    """

    num_tasks: int = 512
    requests_per_s: float = 2.5
    burstiness: float = 2.0
    burst_s: float = 2.0
    warm_up_conversations: int = 100
    num_system_prompts: int = 4
    system_prompt_blocks: int = 8
    system_prompt_zipf_exponent: float = 1.0
    stop_a: float = MOONCAKE_STOP_A
    stop_b: float = MOONCAKE_STOP_B
    max_turns: int = 8
    median_pause_s: float = MOONCAKE_MEDIAN_PAUSE_S / 24
    pause_sigma: float = MOONCAKE_PAUSE_SIGMA
    median_first_tokens: float = MOONCAKE_MEDIAN_FIRST_TOKENS
    first_tokens_sigma: float = MOONCAKE_FIRST_SIGMA
    median_added_tokens: float = MOONCAKE_MEDIAN_ADDED_TOKENS
    added_tokens_sigma: float = MOONCAKE_ADDED_SIGMA
    forget_share: float = MOONCAKE_FORGET_SHARE
    max_context_tokens: int = 16384
    median_generated_tokens: float = MOONCAKE_MEDIAN_GENERATED_TOKENS
    generated_tokens_sigma: float = MOONCAKE_GENERATED_SIGMA
    max_generated_tokens: int = 512
    tokens_per_s: float = 60.0
    decode_chunk_tokens: int = 64
    attended_tokens: int = 16384
    max_inputs: int = 6
    layers: int = 12
    heads: int = 12
    kv_heads: int = 12
    head_dim: int = 64
    bytes_per_element: float = 4.0
    trace: str | None = None
    trace_machines: int = 32
    trace_time_scale: float = 1 / 24

    def __post_init__(self) -> None:
        """Check the ranges, and read the trace if there is one."""
        counts = (
            "num_tasks num_system_prompts system_prompt_blocks max_turns max_generated_tokens decode_chunk_tokens "
            "attended_tokens max_inputs layers heads kv_heads head_dim trace_machines"
        )
        require(self, f"{counts} burstiness", ">= 1", lambda value: value >= 1)
        positive = (
            "requests_per_s burst_s stop_b median_pause_s median_first_tokens median_added_tokens "
            "median_generated_tokens tokens_per_s bytes_per_element trace_time_scale"
        )
        require(self, positive, "> 0", lambda value: value > 0)
        require(self, "stop_a", "> 1, or turns have no mean", lambda value: value > 1)
        not_negative = (
            "warm_up_conversations system_prompt_zipf_exponent pause_sigma first_tokens_sigma added_tokens_sigma "
            "generated_tokens_sigma"
        )
        require(self, not_negative, ">= 0", lambda value: value >= 0)
        require(self, "forget_share", "in [0, 1]", lambda value: 0 <= value <= 1)
        require(self, "kv_heads", f"<= heads ({self.heads})", lambda value: value <= self.heads)
        least = (self.system_prompt_blocks + 1) * BLOCK_TOKENS
        rule = f">= {least}, a block more than the instructions"
        require(self, "max_context_tokens", rule, lambda value: value >= least)
        if self._trace is not None:
            self._check_trace()

    def _check_trace(self) -> None:
        """Every machine must get enough for an episode."""
        counts = np.bincount(self._trace_machine, weights=self._trace_chunks, minlength=self.trace_machines)
        if counts.min() < self.num_tasks:
            raise ValueError(
                f"trace must give each of {self.trace_machines} machines (trace_machines) requests for "
                f"{self.num_tasks} tasks (num_tasks), got {counts.min():.0f} for one of them in {self.trace}."
            )

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of KV cache that one token adds."""
        return kv_bytes_per_token(self.layers, self.kv_heads, self.head_dim, self.bytes_per_element)

    @property
    def mean_turns(self) -> float:
        """Mean number of turns of a conversation, were none cut."""
        return (self.stop_a + self.stop_b - 1.0) / (self.stop_a - 1.0)

    @cached_property
    def _serving(self) -> Serving:
        return Serving(
            num_tasks=self.num_tasks,
            chunk_tokens=self.decode_chunk_tokens,
            tokens_per_s=self.tokens_per_s,
            attended_tokens=self.attended_tokens,
            max_inputs=self.max_inputs,
            bytes_per_token=self.kv_bytes_per_token,
            flops_per_pair=attention_flops_per_pair(self.layers, self.heads, self.head_dim),
        )

    @property
    def _most_prompt_tokens(self) -> int:
        return self.max_context_tokens // BLOCK_TOKENS * BLOCK_TOKENS

    def generate(self, rng: np.random.Generator, num_episodes: int) -> Workload:
        """Make `num_episodes` episodes; more episodes from the same generator extend fewer."""
        draw = self._converse if self._trace is None else self._windows
        ends = [*range(0, num_episodes, EPISODES_AT_ONCE), num_episodes]
        requests = PrefixRequests.joined([draw(rng, np.arange(first, end)) for first, end in pairwise(ends)])
        return self._serving.workload(requests, num_episodes)

    def _converse(self, rng: np.random.Generator, episodes: IntArray) -> PrefixRequests:
        """Requests of these episodes from the distributions."""
        e, c, k = len(episodes), self.warm_up_conversations + self.num_tasks, self.max_turns
        uniforms = rng.random((e, c, 4 + 5 * k))
        phase, gap, turns, system = np.moveaxis(uniforms[:, :, :4], 2, 0)
        pause, added, answer, forget, kept = np.moveaxis(uniforms[:, :, 4:].reshape(e, c, 5, k), 2, 0)

        begin_s = np.cumsum(
            interarrival_s(phase, gap, self.requests_per_s / self.mean_turns, self.burstiness, self.burst_s), axis=1
        )
        if self.warm_up_conversations:
            begin_s -= begin_s[:, self.warm_up_conversations - 1, None]
        pauses_s = lognormal(pause, self.median_pause_s, self.pause_sigma)
        pauses_s[:, :, 0] = 0.0
        arrival_s = begin_s[:, :, None] + np.cumsum(pauses_s, axis=2)

        tokens = lognormal(added, self.median_added_tokens, self.added_tokens_sigma)
        tokens[:, :, 0] = lognormal(added[:, :, 0], self.median_first_tokens, self.first_tokens_sigma)
        room = self._most_prompt_tokens - self.system_prompt_blocks * BLOCK_TOKENS
        prompt = np.cumsum(np.clip(np.rint(tokens), 1, room).astype(np.int64), axis=2)
        takes_place = np.arange(k) < self._num_turns(turns)[:, :, None]
        takes_place &= (prompt <= room) & (arrival_s >= 0.0)
        prompt += self.system_prompt_blocks * BLOCK_TOKENS
        output = self._output_tokens(lognormal(answer, self.median_generated_tokens, self.generated_tokens_sigma))

        chunks = np.where(takes_place, self._chunks(output), 0).reshape(e, -1)
        used = first_requests(arrival_s.reshape(e, -1), chunks, self._serving.chunk_s, self.num_tasks)
        return conversation_requests(
            episode=episodes,
            used=used.reshape(e, c, k),
            arrival_s=arrival_s,
            input_tokens=prompt,
            output_tokens=output,
            kept_blocks=self._kept_blocks(prompt, forget, kept),
            system=zipf_rank(system, self.num_system_prompts, self.system_prompt_zipf_exponent),
            system_blocks=self.system_prompt_blocks,
        )

    def _num_turns(self, uniform: FloatArray) -> IntArray:
        """Turns of conversations by inverse transform: S(k + 1) = S(k) (b + k - 1) / (a + b + k - 1) [6]."""
        turn = np.arange(self.max_turns - 1)
        survives = np.cumprod((self.stop_b + turn) / (self.stop_a + self.stop_b + turn))
        return np.asarray(1 + (uniform[..., None] < survives).sum(axis=-1))

    def _kept_blocks(self, prompt: IntArray, forget: FloatArray, kept: FloatArray) -> IntArray:
        """Blocks that each turn keeps of the prompt before it, shape (E, C, K): none for the first, else full ones."""
        whole = prompt[:, :, :-1] // BLOCK_TOKENS
        part = np.maximum((kept[:, :, 1:] ** 2 * whole).astype(np.int64), self.system_prompt_blocks)
        later = np.where(forget[:, :, 1:] < self.forget_share, part, whole)
        return np.concatenate([np.zeros_like(prompt[:, :, :1]), later], axis=2)

    def _output_tokens(self, tokens: FloatArray) -> IntArray:
        return np.clip(np.rint(tokens), 1, self.max_generated_tokens).astype(np.int64)

    def _chunks(self, output_tokens: IntArray) -> IntArray:
        """Decode tasks of each answer."""
        return -(-output_tokens // self.decode_chunk_tokens)

    @cached_property
    def _trace(self) -> MooncakeTrace | None:
        return None if self.trace is None else read_mooncake_trace(self.trace)

    @cached_property
    def _trace_machine(self) -> IntArray:
        """Which machine each request of the trace goes to, by its second block if it has one, shape (R,)."""
        trace = self._read()
        second = trace.first_block[:-1] + (np.diff(trace.first_block) > 1)
        _, first, conversation = np.unique(trace.blocks[second], return_index=True, return_inverse=True)
        return np.asarray(np.argsort(np.argsort(first))[conversation] % self.trace_machines)

    @cached_property
    def _trace_chunks(self) -> IntArray:
        """Decode tasks of each request of the trace, shape (R,)."""
        return self._chunks(self._output_tokens(self._read().output_tokens.astype(np.float64)))

    def _read(self) -> MooncakeTrace:
        """The trace, where there is one."""
        assert self._trace is not None
        return self._trace

    def _windows(self, rng: np.random.Generator, episodes: IntArray) -> PrefixRequests:
        """Requests of these episodes from the trace: what one machine gets from some moment on."""
        trace, uniforms = self._read(), rng.random((len(episodes), 2))
        machines = (uniforms[:, 0] * self.trace_machines).astype(np.int64)
        picked, arrival_s = [], []
        for machine, moment in zip(machines, uniforms[:, 1], strict=True):
            requests = np.flatnonzero(self._trace_machine == machine)
            chunks = self._trace_chunks[requests]
            num_starts = int((np.cumsum(chunks[::-1])[::-1] >= self.num_tasks).sum())
            requests = requests[int(moment * num_starts) :]
            since_s = (trace.arrival_s[requests] - trace.arrival_s[requests[0]]) * self.trace_time_scale
            chunks = self._trace_chunks[requests]
            used = first_requests(since_s[None], chunks[None], self._serving.chunk_s, self.num_tasks)[0]
            picked.append(requests[used])
            arrival_s.append(since_s[used])
        request = np.concatenate(picked)
        episode = np.repeat(episodes, [len(requests) for requests in picked])
        tokens = np.minimum(trace.input_tokens[request], self._most_prompt_tokens)
        owner, place = places(blocks_of(tokens))
        numbers, block = np.unique(trace.blocks[trace.first_block[request][owner] + place], return_inverse=True)
        return PrefixRequests(
            episode=episode,
            arrival_s=np.concatenate(arrival_s),
            input_tokens=tokens,
            output_tokens=self._output_tokens(trace.output_tokens[request].astype(np.float64)),
            blocks=(episode - episodes[0])[owner] * len(numbers) + block,
        )
