"""What perf's counters mean: from an event's name, in any of its spellings, to a quantity.

References:
    [1] The chapter, section 16.4.2: UNC_M_CAS_COUNT, UNC_Q_RxL_FLITS, OFFCORE_RESPONSE.
    [2] The Linux source, tools/perf/pmu-events/arch/x86: names, and the conversions of its own metrics, as in
        `UNC_M_CAS_COUNT.RD * 64`, `UNC_Q_TxL_FLITS_G0.DATA * 8`, `UNC_UPI_TxL_FLITS.ALL_DATA * (64 / 9.0)`.
    [3] The Linux source, arch/x86/events/intel/core.c: what `node-loads` and `node-load-misses` count.
    [4] Intel 64 and IA-32 Architectures Software Developer's Manual, volume 3B: FP_ARITH_INST_RETIRED counts a fused
        multiply-add twice, so that lanes x count is flop.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

LINE_BYTES = 64.0  # of a cache line, the unit of a memory controller's column accesses [2]
QPI_FLIT_BYTES = 8.0  # data of one QPI data flit [2]
UPI_FLIT_BYTES = 64.0 / 9.0  # a line takes nine UPI flits: eight and a header [2]


class Quantity(Enum):
    """What an event counts."""

    MEMORY_BYTES = auto()
    LINK_BYTES_IN = auto()
    LINK_BYTES_OUT = auto()
    LOCAL_DRAM = auto()
    REMOTE_DRAM = auto()
    REMOTE_ONE_HOP = auto()
    REMOTE_FAR = auto()
    REMOTE_CLEAN = auto()
    REMOTE_MODIFIED = auto()
    CYCLES = auto()
    MEMORY_STALL_CYCLES = auto()
    DRAM_STALL_CYCLES = auto()
    FLOPS = auto()
    CPU_MIGRATIONS = auto()
    CPU_SECONDS = auto()
    PAGES_MIGRATED = auto()
    HINT_FAULTS = auto()
    HINT_FAULTS_LOCAL = auto()
    ELAPSED_SECONDS = auto()
    UNUSED = auto()


OF_UNITS = (Quantity.MEMORY_BYTES, Quantity.LINK_BYTES_IN, Quantity.LINK_BYTES_OUT)


@dataclass(frozen=True)
class Meaning:
    """What one event counts, and how.

    Attributes:
        quantity: what it counts.
        per_count: bytes, flop or seconds that one count stands for, where perf printed no unit.
        per_unit: what one printed unit stands for, beyond the unit itself.
        family: events that count parts of one whole share a family, and are never added to those of another.
        part: events of one quantity, family and part count the same thing; those of different parts add up.
    """

    quantity: Quantity
    per_count: float = 1.0
    per_unit: float = 1.0
    family: str = ""
    part: str = ""


def _loads(prefixes: Iterable[str]) -> dict[str, Meaning]:
    """Retired loads that missed the last-level cache, by who answered; the name changed over the years."""
    answers = {
        "local_dram": Quantity.LOCAL_DRAM,
        "remote_dram": Quantity.REMOTE_DRAM,
        "remote_fwd": Quantity.REMOTE_CLEAN,
        "remote_hitm": Quantity.REMOTE_MODIFIED,
    }
    return {
        f"{prefix}.{answer}": Meaning(quantity, family=prefix)
        for prefix in prefixes
        for answer, quantity in answers.items()
    }


def _fills(prefix: str) -> dict[str, Meaning]:
    """Fills of AMD's first-level cache, by who answered; memory and I/O count together."""
    local, remote = ("mem_io_local", "dram_io_near"), ("mem_io_remote", "dram_io_far")
    return {
        **{f"{prefix}.{name}": Meaning(Quantity.LOCAL_DRAM, family=prefix) for name in local},
        **{f"{prefix}.{name}": Meaning(Quantity.REMOTE_DRAM, family=prefix) for name in remote},
    }


LOADS = ("mem_load_l3_miss_retired", "mem_load_uops_l3_miss_retired", "mem_load_uops_llc_miss_retired")
FILLS = ("ls_dmnd_fills_from_sys", "ls_any_fills_from_sys")
OFFCORE = "offcore_response"
NODE = "node-loads"

LANES = {
    "scalar_double": 1,
    "scalar_single": 1,
    "128b_packed_double": 2,
    "128b_packed_single": 4,
    "256b_packed_double": 4,
    "256b_packed_single": 8,
    "512b_packed_double": 8,
    "512b_packed_single": 16,
}

EVENTS: dict[str, Meaning] = {
    "unc_m_cas_count.rd": Meaning(Quantity.MEMORY_BYTES, LINE_BYTES, part="read"),
    "unc_m_cas_count.wr": Meaning(Quantity.MEMORY_BYTES, LINE_BYTES, part="written"),
    "cas_count_read": Meaning(Quantity.MEMORY_BYTES, LINE_BYTES, part="read"),
    "cas_count_write": Meaning(Quantity.MEMORY_BYTES, LINE_BYTES, part="written"),
    "llc_misses.mem_read": Meaning(Quantity.MEMORY_BYTES, LINE_BYTES, part="read"),
    "llc_misses.mem_write": Meaning(Quantity.MEMORY_BYTES, LINE_BYTES, part="written"),
    "unc_q_rxl_flits": Meaning(Quantity.LINK_BYTES_IN, QPI_FLIT_BYTES),  # the chapter's name; data flits are meant
    "unc_q_rxl_flits_g0.data": Meaning(Quantity.LINK_BYTES_IN, QPI_FLIT_BYTES),
    "unc_q_txl_flits_g0.data": Meaning(Quantity.LINK_BYTES_OUT, QPI_FLIT_BYTES),
    "qpi_data_bandwidth_tx": Meaning(Quantity.LINK_BYTES_OUT, QPI_FLIT_BYTES),
    "unc_upi_rxl_flits.all_data": Meaning(Quantity.LINK_BYTES_IN, UPI_FLIT_BYTES),
    "unc_upi_txl_flits.all_data": Meaning(Quantity.LINK_BYTES_OUT, UPI_FLIT_BYTES),
    # perf scales this one by 7.11e-6 and still calls the result bytes [2]
    "upi_data_bandwidth_tx": Meaning(Quantity.LINK_BYTES_OUT, UPI_FLIT_BYTES, per_unit=1e6),
    **_loads(LOADS),
    **{name: meaning for prefix in FILLS for name, meaning in _fills(prefix).items()},
    "node-loads": Meaning(Quantity.LOCAL_DRAM, family=NODE),
    "node-load-misses": Meaning(Quantity.REMOTE_DRAM, family=NODE),
    "cycles": Meaning(Quantity.CYCLES),
    "cpu-cycles": Meaning(Quantity.CYCLES),
    "cpu_clk_unhalted.thread": Meaning(Quantity.CYCLES),
    "cycle_activity.stalls_mem_any": Meaning(Quantity.MEMORY_STALL_CYCLES),
    "cycle_activity.stalls_ldm_pending": Meaning(Quantity.MEMORY_STALL_CYCLES),
    "cycle_activity.stalls_l3_miss": Meaning(Quantity.DRAM_STALL_CYCLES),
    "memory_activity.stalls_l3_miss": Meaning(Quantity.DRAM_STALL_CYCLES),
    **{f"fp_arith_inst_retired.{name}": Meaning(Quantity.FLOPS, lanes, part=name) for name, lanes in LANES.items()},
    "cpu-migrations": Meaning(Quantity.CPU_MIGRATIONS),
    "migrations": Meaning(Quantity.CPU_MIGRATIONS),
    "task-clock": Meaning(Quantity.CPU_SECONDS, 1e-3),
    "cpu-clock": Meaning(Quantity.CPU_SECONDS, 1e-3),
    "numa_pages_migrated": Meaning(Quantity.PAGES_MIGRATED),  # these three are /proc/vmstat's
    "numa_hint_faults": Meaning(Quantity.HINT_FAULTS),
    "numa_hint_faults_local": Meaning(Quantity.HINT_FAULTS_LOCAL),
    "duration_time": Meaning(Quantity.ELAPSED_SECONDS, 1e-9),
    "user_time": Meaning(Quantity.UNUSED),
    "system_time": Meaning(Quantity.UNUSED),
}

# Known, and no part of any figure here: what perf counts unasked, and what the chapter's reader may have added.
UNUSED = [
    "instructions",
    "ref-cycles",
    "bus-cycles",
    "slots",
    "branches",
    "branch-instructions",
    "branch-misses",
    "cache-references",
    "cache-misses",
    "stalled-cycles-frontend",
    "stalled-cycles-backend",
    "page-faults",
    "faults",
    "minor-faults",
    "major-faults",
    "context-switches",
    "cs",
    "alignment-faults",
    "emulation-faults",
    "l1-dcache-loads",
    "l1-dcache-load-misses",
    "l1-icache-load-misses",
    "llc-loads",
    "llc-load-misses",
    "llc-stores",
    "llc-store-misses",
    "dtlb-loads",
    "dtlb-load-misses",
    "itlb-loads",
    "itlb-load-misses",
    "node-stores",
    "node-store-misses",
    "inst_retired.any",
    "numa_pte_updates",
    "numa_huge_pte_updates",
    "migrate:mm_migrate_pages",
    "sched:sched_migrate_task",
    "sched:sched_move_numa",
    "sched:sched_swap_numa",
    "sched:sched_stick_numa",
    "mem_load_l3_hit_retired.xsnp_hitm",
    "mem_load_retired.l3_miss",
    "mem_load_retired.l3_hit",
]
EVENTS |= {name: Meaning(Quantity.UNUSED) for name in UNUSED}

# OFFCORE_RESPONSE.<request>.<who answered>, called OCR since Cascade Lake [2].
RESPONSE = re.compile(r"(?:offcore_response|ocr)\.(?P<request>\w+)\.(?P<answer>[\w.]+)")
ANY_SNOOP = r"(?:\.(?:any_snoop|any_response|snoop_miss_or_no_fwd))?"
ANSWERS = {
    Quantity.LOCAL_DRAM: rf"(?:(?:llc|l3)_miss\.)?local_dram|l3_miss_local_dram{ANY_SNOOP}|llc_miss_local\.dram",
    Quantity.REMOTE_DRAM: rf"(?:(?:llc|l3)_miss\.)?remote_dram|l3_miss_remote_dram{ANY_SNOOP}|llc_miss_remote\.dram",
    Quantity.REMOTE_ONE_HOP: rf"l3_miss_remote_hop1_dram{ANY_SNOOP}",
    Quantity.REMOTE_FAR: rf"l3_miss_remote_hop2p_dram{ANY_SNOOP}",
    Quantity.REMOTE_CLEAN: r"(?:llc|l3)_miss\.(?:remote_hit_forward|remote_fwd)|remote_cache\.snoop_hit_with_fwd",
    Quantity.REMOTE_MODIFIED: r"(?:llc|l3)_miss\.remote_hitm|remote_cache_hitm|remote_cache\.snoop_hitm",
    Quantity.UNUSED: r"(?:llc|l3)_hit(?:\.\w+)?|any_response|(?:llc|l3)_miss(?:\.any_(?:response|snoop))?",
}

MODIFIERS = re.compile(r":[ukhGHpPSDIWeb]+$")  # user, kernel, precise ...
INSTANCE = re.compile(r"\s*\[[\w]+\]$")  # one unit of several, as `--no-merge` prints it
PMU = re.compile(r"(?:uncore_)?[a-z]\w*/(?P<event>[\w.-]+)/")


def has_modifiers(event: str) -> bool:
    """Whether an event was counted in part only, as `cycles:u` in user space."""
    return MODIFIERS.search(INSTANCE.sub("", event.strip())) is not None


def canonical(event: str) -> str:
    """An event's name without what does not change its meaning: case, modifiers, and the unit that counted it."""
    name = MODIFIERS.sub("", INSTANCE.sub("", event.strip())).lower()
    match = PMU.fullmatch(name)
    name = match["event"] if match else name
    return name.replace("unc_m_cas_count_", "unc_m_cas_count.")


def meaning_of(event: str) -> Meaning | None:
    """What an event counts, or None where it is unknown."""
    name = canonical(event)
    if name in EVENTS:
        return EVENTS[name]
    response = RESPONSE.fullmatch(name)
    if response:
        for quantity, pattern in ANSWERS.items():
            if re.fullmatch(pattern, response["answer"]):
                return Meaning(quantity, family=f"{OFFCORE}.{response['request']}")
    return None


def is_of_units(event: str) -> bool:
    """Whether units outside the cores count an event: memory controllers and links, of which a socket has several."""
    meaning = meaning_of(event)
    return meaning is not None and meaning.quantity in OF_UNITS


def known_events() -> list[str]:
    """Every name that is understood, in its shortest spelling."""
    return [*(name for name, meaning in EVENTS.items() if meaning.quantity is not Quantity.UNUSED),
            "offcore_response.*.*", *UNUSED]  # fmt: skip


# What the answers "measure this" name.
STALL_EVENTS = "cycles,cycle_activity.stalls_mem_any,cycle_activity.stalls_l3_miss"
REMOTE_EVENTS = ",".join(_loads(LOADS[:1]))
REMOTE_EVENTS_AMD = ",".join(f"{FILLS[0]}.{where}" for where in ("mem_io_local", "mem_io_remote"))
CONTROLLER_EVENTS = "unc_m_cas_count.rd,unc_m_cas_count.wr"
LINK_EVENTS = "unc_upi_rxl_flits.all_data"
FLOP_EVENTS = ",".join(f"fp_arith_inst_retired.{name}" for name in LANES)


def perf_stat(events: str, *, per_socket: bool = False) -> str:
    """The command that counts events in the form that `read_perf_stat` takes."""
    where = "-a --per-socket " if per_socket else ""
    return f"LC_ALL=C perf stat -x, -o FILE {where}-e {events},duration_time CMD"
