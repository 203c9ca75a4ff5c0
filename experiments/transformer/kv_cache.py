"""The KV cache of a transformer on a machine: what each way to lay it out and to store it moves, takes and loses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from agents.rules.catalog import rule_names
from experiments.files import require_outputs, write_json
from experiments.suite.load import local_service_s
from experiments.transformer.kv_play import Played, play
from experiments.tune import require_at_least
from numa_rl.machines.catalog import load_machine
from numa_rl.topology import IntArray, Topology
from numa_rl.transformer.kv_cache import KVCache
from numa_rl.transformer.kv_layout import require_fit
from numa_rl.transformer.kv_sample import SampleShape
from numa_rl.transformer.kv_storage import BYTE, NIBBLE, Storage, StorageError, measure
from numa_rl.workloads.kv_decode import KVDecode

WINDOW_TASKS = 10  # mean service times of a task over which traffic is remembered
QUANTISED = (BYTE, NIBBLE)
# Of the arrays on which errors are measured.
MOST_SAMPLE_HEADS, MOST_SAMPLE_CHANNELS, MOST_SAMPLE_ELEMENTS = 8, 1024, 2**22
LAYOUTS = {
    "layers-in-turn": "layers in turn",
    "layer-blocks": "layers in blocks",
    "head-blocks": "heads",
    "layer-head-blocks": "layers x heads",
}
SPLITS = {"layer-blocks": "whole layers", "head-blocks": "heads apart"}  # all that a layout means to a rule
STAYS, FOLLOWS = "stays", "follows"


@dataclass(frozen=True)
class KvCache:
    """Lay out and store the KV cache of a decoding transformer over the sockets of a machine, in one way after another.

    Attributes:
        machine: a machine's name (`machine list` prints them), or the path of its hwloc XML or JSON file.
        layers: of the model.
        width: of the model.
        heads: of queries.
        kv_heads: heads of keys and values; as many as heads when left out.
        context: median tokens of a sequence before it decodes.
        longest: tokens that a reservation is made for; four times the context when left out.
        groups: groups of sequences, each decoded by one core; half as many as there are cores when left out, so that
            others are free to prefetch.
        group_sequences: sequences of a group.
        steps: tokens that each sequence decodes.
        page_tokens: tokens of a page.
        bits: of a quantised element, 8 or 4.
        key_scales: what shares a scale of quantised keys: channel or token.
        kept_share: share of the tokens that sparse storage keeps.
        selection: which those are: heavy-hitters or window.
        rule: let a rule place tasks and data, with its default parameters, in place of the program's own layout.
        episodes: how many to play, with contexts of their own.
        seed: of contexts, and of the arrays on which errors are measured.
        json: a file for all figures, in SI units.
    """

    machine: str = "chapter-8-socket"
    layers: int = 16
    width: int = 1024
    heads: int = 8
    kv_heads: int | None = None
    context: int = 8192
    longest: int | None = None
    groups: int | None = None
    group_sequences: int = 4
    steps: int = 2
    page_tokens: int = 16
    bits: int = 8
    key_scales: str = "channel"
    kept_share: float = 0.25
    selection: str = "heavy-hitters"
    rule: str | None = None
    episodes: int = 4
    seed: int = 0
    json: Path | None = None

    def run(self) -> None:
        """Play and print.

        Raises:
            ValueError: no such machine or rule, an option out of range, a cache that fits in no way, or a file that
                cannot be written.
        """
        topology = load_machine(self.machine)
        require_outputs({"--json": self.json}, {"--machine": Path(self.machine)})
        require_at_least(1, self.episodes, "--episodes")
        require_at_least(0, self.seed, "--seed")
        require_at_least(1, self.page_tokens, "--page-tokens")
        require_at_least(1, self.context, "--context")
        if self.longest is not None:
            require_at_least(self.context + self.steps, self.longest, "--longest")
        if self.bits not in QUANTISED:
            raise ValueError(f"--bits must be one of {', '.join(map(str, QUANTISED))}, got {self.bits}.")
        if self.rule is not None and self.rule not in rule_names():
            raise ValueError(f"--rule must be one of {', '.join(rule_names())}, got {self.rule!r}.")
        console = Console()
        with console.status("") as status:
            study = study_cache(self, topology, on_way=status.update)
        if self.json is not None:
            write_json(self.json, study.to_dict())
        from experiments.transformer.kv_report import print_study

        print_study(study, console)


@dataclass(frozen=True)
class Way:
    """One way to lay out and store the cache.

    Attributes:
        title: what is done.
        family: the same as a workload.
        storage: how keys and values are stored.
    """

    title: str
    family: KVDecode
    storage: Storage

    @property
    def work(self) -> str:
        """Where work runs."""
        return FOLLOWS if self.family.follows_cache else STAYS


@dataclass(frozen=True, eq=False)
class Row:
    """What a way led to.

    Attributes:
        way: which.
        error: of its storage.
        played: what decoding took; None where the cache did not fit.
        problem: why it did not fit, else empty.
    """

    way: Way
    error: StorageError
    played: Played | None
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        family = self.way.family
        return {
            "title": self.way.title,
            "work": self.way.work,
            "layout": family.layout,
            "page_tokens": family.page_tokens,
            "prefetch": family.prefetch,
            "kv_bytes_per_element": family.kv_bytes_per_element,
            "kept_share": family.kept_share,
            "problem": self.problem,
            "storage": vars(self.error),
            "decoding": None if self.played is None else self.played.to_dict(),
        }


@dataclass(frozen=True, eq=False)
class Study:
    """All ways on one machine.

    Attributes:
        topology: the machine.
        rule: who placed tasks and data; the program itself where None.
        cache: what all sequences of median length hold in half precision.
        rows: of each way; the first is the baseline.
        impossible: layouts that would leave sockets empty, and why.
    """

    topology: Topology
    rule: str | None
    cache: KVCache
    rows: tuple[Row, ...]
    impossible: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "machine": self.topology.name,
            "rule": self.rule,
            "cache": vars(self.cache) | {"num_bytes": self.cache.num_bytes, "token_bytes": self.cache.token_bytes},
            "ways": [row.to_dict() for row in self.rows],
            "impossible": list(self.impossible),
        }


def study_cache(options: KvCache, topology: Topology, on_way: Callable[[str], None] = lambda title: None) -> Study:
    """Play every way; raises ValueError where an option is out of range or the cache fits in none."""
    nodes = np.flatnonzero(topology.cores)
    baseline = _baseline(options, topology, nodes)
    storages = {"half": Storage(), "bits": Storage(options.bits, options.key_scales)}
    storages["sparse"] = replace(storages["bits"], kept_share=options.kept_share, selection=options.selection)
    sample = _sample_shape(baseline).draw(np.random.default_rng(options.seed))
    errors = {storage: measure(sample, storage) for storage in storages.values()}
    ways, impossible = _ways(options, baseline, storages, errors)
    first = baseline.generate(np.random.default_rng(options.seed), options.episodes)
    window_s = WINDOW_TASKS * local_service_s(first, topology)
    rows = []
    for way in ways:
        on_way(way.title)
        played, problem = None, ""
        try:
            if options.rule is None:
                _require_fit(way.family, topology, nodes)
            played = play(
                way.family,
                topology,
                nodes,
                window_s=window_s,
                episodes=options.episodes,
                seed=options.seed,
                rule=options.rule,
            )
        except ValueError as error:
            problem = str(error)
        rows.append(Row(way, errors[way.storage], played, problem))
    if all(row.played is None for row in rows):
        raise ValueError(rows[0].problem)
    sequences = baseline.groups * baseline.group_sequences
    cache = KVCache(baseline.layers, baseline.kv_heads, baseline.model.key_dim, options.context, sequences)
    return Study(topology, options.rule, cache, tuple(rows), impossible)


def _sample_shape(family: KVDecode) -> SampleShape:
    """Arrays to measure errors on: some of the heads and channels, which are alike, and not too many tokens."""
    kv_heads = min(family.kv_heads, MOST_SAMPLE_HEADS)
    head_dim = min(family.model.key_dim, MOST_SAMPLE_CHANNELS)
    tokens = min(int(family.median_context_tokens), max(MOST_SAMPLE_ELEMENTS // (kv_heads * head_dim), 1))
    return SampleShape(
        tokens=tokens,
        heads=kv_heads * (family.heads // family.kv_heads),
        kv_heads=kv_heads,
        head_dim=head_dim,
        outlier_channels=min(SampleShape.outlier_channels, head_dim // 4),
    )


def _baseline(options: KvCache, topology: Topology, nodes: IntArray) -> KVDecode:
    """Reservations, layers in turn, and work that stays with its sequences."""
    cores = topology.cores[nodes]
    return KVDecode(
        layers=options.layers,
        width=options.width,
        heads=options.heads,
        kv_heads=options.heads if options.kv_heads is None else options.kv_heads,
        groups=max(int(cores.sum()) // 2, 1) if options.groups is None else options.groups,
        group_sequences=options.group_sequences,
        steps=options.steps,
        median_context_tokens=options.context,
        most_tokens=4 * options.context + options.steps if options.longest is None else options.longest,
        layout="layers-in-turn",
        follows_cache=False,
        sockets=len(nodes),
        lanes=int(cores.min()),
        page_tokens=0,
        flops_per_s=float(topology.flops_per_s[nodes].min()),
        bytes_per_s=float((topology.memory_bandwidth_bytes_per_s[nodes] / cores).min()),
    )


def _ways(
    options: KvCache, baseline: KVDecode, storages: dict[str, Storage], errors: dict[Storage, StorageError]
) -> tuple[list[Way], tuple[str, ...]]:
    """Layouts first, then storage, each option on top of the one before; and what layouts cannot be."""
    ways, impossible = [], {}
    half, sparse = storages["half"], storages["sparse"]
    for follows in (False, True) if options.rule is None else (True,):
        for layout, title in (LAYOUTS if options.rule is None else SPLITS).items():
            try:
                ways.append(Way(title, replace(baseline, layout=layout, follows_cache=follows), half))
            except ValueError as error:
                impossible[layout] = str(error)
    family = ways[0].family
    for title, storage, change in _storage_options(options, storages, errors):
        family = replace(family, **change)
        ways.append(Way(f"+ {title}", family, storage))
    last = replace(family, layout="layer-blocks", follows_cache=True, prefetch=False)
    ways.append(Way("all but prefetch", last, sparse))
    return ways, tuple(impossible.values())


def _storage_options(
    options: KvCache, storages: dict[str, Storage], errors: dict[Storage, StorageError]
) -> list[tuple[str, Storage, dict[str, Any]]]:
    """What is added one by one: its title, how keys and values are stored then, and what it changes."""
    half, bits, sparse = storages["half"], storages["bits"], storages["sparse"]
    share = errors[bits].bytes_share
    kept = {"kept_share": sparse.kept_share, "kv_bytes_per_element": 2 * errors[sparse].bytes_share / sparse.kept_share}
    return [
        (f"pages of {options.page_tokens}", half, {"page_tokens": options.page_tokens}),
        ("prefetch", half, {"prefetch": True}),
        (f"{options.bits} bits", bits, {"kv_bytes_per_element": 2 * share}),
        (f"{options.kept_share:.3g} of tokens", sparse, kept),
    ]


def _require_fit(family: KVDecode, topology: Topology, nodes: IntArray) -> None:
    """Raise ValueError where the cache does not fit its sockets: reservations, or pages of median contexts."""
    tokens = int(np.ceil(family.kept_share * family.most_tokens))
    if family.page_tokens:
        tokens = int(np.ceil(family.kept_share * family.median_context_tokens)) + family.steps
    cache = KVCache(
        family.layers,
        family.kv_heads,
        family.model.key_dim,
        tokens,
        family.groups * family.group_sequences,
        family.kv_bytes_per_element,
    )
    require_fit(cache, family.kv_layout, topology.memory_bytes[nodes])
