"""Calibration of the machine the tests run on, with little memory and little time; and of systems in files."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from system_files import system_files, write_folder

from experiments import calibrate
from experiments.calibrate import Calibrate
from numa_rl.calibration import binding, buffer, places
from numa_rl.calibration.binding import RefusedError, bind, mapped_by_node, move_pages, nodes_of_pages, pinned
from numa_rl.calibration.buffer import HUGE_BYTES, PAGE_BYTES, Buffer
from numa_rl.calibration.instrument import MEMORY_PER_BUFFER, LinuxInstrument, buffer_bytes
from numa_rl.calibration.places import Places, live_places, places_in, require_linux
from numa_rl.calibration.timing import Timing
from numa_rl.machines.catalog import load_machine
from numa_rl.machines.system_files import SystemFiles
from numa_rl.machines.tree import FolderTree

linux = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not Path("/sys/devices/system/node").is_dir(),
    reason="needs Linux with nodes in /sys",
)
GIB = 2**30


def some_places(free_bytes: float = 4 * GIB, total: float = 16 * GIB) -> Places:
    return Places((0, 1), ((0, 1), (2,)), (free_bytes, free_bytes), total, ())


# How much memory: known answers.


def test_a_buffer_is_eight_times_the_cache():
    assert buffer_bytes(some_places(), 32 * 2**20, 4 * GIB) == 256 * 2**20


def test_a_small_cache_does_not_make_a_small_buffer():
    assert buffer_bytes(some_places(), 2**20, 4 * GIB) == 64 * 2**20


@pytest.mark.parametrize("places", [some_places(free_bytes=GIB), some_places(total=GIB)])
def test_half_of_what_is_free_is_the_most(places):
    size = buffer_bytes(places, 32 * 2**20, 4 * GIB)
    assert size * MEMORY_PER_BUFFER <= GIB / 2
    assert size % HUGE_BYTES == 0


def test_memory_that_caches_would_hold_is_refused():
    with pytest.raises(ValueError, match=r"--memory must be at least 144 MiB, .* 32 MiB, got 100 MiB"):
        buffer_bytes(some_places(), 32 * 2**20, 100 * 2**20)
    with pytest.raises(ValueError, match=r"50% of the free memory of every node must be at least 144 MiB"):
        buffer_bytes(some_places(free_bytes=100 * 2**20), 32 * 2**20, GIB)


# Which processors and how much memory: systems in files.


def read_places(root: Path, files: dict[str, str]) -> Places:
    return places_in(SystemFiles(FolderTree(write_folder(root, files))))


def test_one_processor_of_each_core_is_used(tmp_path):
    found = read_places(tmp_path, dict(system_files([2, 0, 1], [10, 20, 30], numbers=[0, 2, 5], threads=2)))
    assert found.nodes == (0, 2, 5)
    assert found.processors == ((0, 2), (), (4,))
    assert found.free_bytes == (1024.0,) * 3
    assert found.remarks == ()


def test_what_the_process_may_not_use_is_left_alone(tmp_path):
    files = dict(system_files([2, 2], [10, 20]))
    files["proc/self/status"] = "Cpus_allowed_list:\t1,3\nMems_allowed_list:\t1\n"
    found = read_places(tmp_path, files)
    assert (found.nodes, found.processors) == ((1,), ((3,),))
    files["proc/self/status"] = "Cpus_allowed_list:\t1,3\nMems_allowed_list:\t7\n"
    with pytest.raises(ValueError, match=r"there must be 1 to 1024 nodes online in .* got 0 that may be used"):
        read_places(tmp_path / "none", files)


@pytest.mark.parametrize(
    ("group", "folder", "most", "used"),
    [
        ("0::/box", "sys/fs/cgroup/box", "memory.max", "memory.current"),
        ("0::/box", "sys/fs/cgroup", "memory.max", "memory.current"),
        ("4:cpu,memory:/box", "sys/fs/cgroup/memory/box", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        ("4:memory:/elsewhere", "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_a_control_group_limits_memory(tmp_path, group, folder, most, used):
    files = dict(system_files([1], [10]))
    files["sys/devices/system/node/node0/meminfo"] = "Node 0 MemTotal: 9000 kB\nNode 0 MemFree: 8000 kB\n"
    files["proc/self/cgroup"] = f"{group}\n"
    assert read_places(tmp_path / "a", files).total_free_bytes == 8000 * 1024
    files |= {f"{folder}/{most}": "5000\n", f"{folder}/{used}": "2000\n"}
    assert read_places(tmp_path / "b", files).total_free_bytes == 3000
    files[f"{folder}/{most}"] = "max\n"
    assert read_places(tmp_path / "c", files).total_free_bytes == 8000 * 1024


def test_a_virtual_machine_and_a_quota_are_remarked(tmp_path):
    files = dict(system_files([1], [10]))
    files["proc/cpuinfo"] = "flags\t\t: fpu hypervisor avx2\n"
    files |= {"proc/self/cgroup": "0::/box\n", "sys/fs/cgroup/box/cpu.max": "150000 100000\n"}
    assert read_places(tmp_path, files).remarks == (
        "inside a virtual machine, whose nodes may not be those of the hardware",
        "held by its control group to the time of 1.5 processors",
    )


def test_other_systems_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(places.sys, "platform", "darwin")
    for call in (require_linux, live_places, Calibrate(tmp_path / "box.json").run):
        with pytest.raises(ValueError, match=r"measuring needs Linux, .* got darwin"):
            call()


def test_numa_maps_are_counted_by_node(monkeypatch, tmp_path):
    maps = tmp_path / "numa_maps"
    maps.write_text("1000 default file=/a N0=3\n2000 bind:1 anon=7 dirty=7 N0=2 N1=5\n9000 default\n")
    monkeypatch.setattr(binding, "NUMA_MAPS", maps)
    assert mapped_by_node(0x2800) == {0: 2, 1: 5}
    assert mapped_by_node(0x9000) == mapped_by_node(0x500) == {}
    monkeypatch.setattr(binding, "NUMA_MAPS", tmp_path / "none")
    assert mapped_by_node(0x2800) == {}


# What the kernel is told: the arguments of the calls, and what becomes of its answers.


def call_answering(monkeypatch, result: int, code: int = 0) -> list[tuple]:
    """The calls made from now on, which all end like that."""
    made: list[tuple] = []

    def syscall(*arguments):
        made.append(tuple(getattr(value, "value", value) for value in arguments))
        ctypes.set_errno(code)
        return result

    monkeypatch.setattr(binding.ctypes, "CDLL", lambda *_, **__: SimpleNamespace(syscall=syscall))
    return made


@pytest.mark.parametrize(("machine", "number"), [("x86_64", 237), ("aarch64", 235)])
def test_the_mask_of_a_node_beyond_the_first_word(monkeypatch, machine, number):
    monkeypatch.setattr(binding.platform, "machine", lambda: machine)
    made = call_answering(monkeypatch, 0)
    bind(0x10000, 4096, 67)
    called, address, size, policy, mask, most, flags = made[0]
    assert (called, address, size, policy, list(mask), most, flags) == (number, 0x10000, 4096, 2, [0, 1 << 3], 129, 0)


@pytest.mark.parametrize(("code", "name"), [(errno.EPERM, "EPERM"), (errno.ENOSYS, "ENOSYS")])
def test_a_refusal_is_named(monkeypatch, code, name):
    monkeypatch.setattr(binding.platform, "machine", lambda: "x86_64")
    call_answering(monkeypatch, -1, code)
    with pytest.raises(RefusedError, match=rf"mbind is refused \({name}\)"):
        bind(0, 4096, 0)
    with pytest.raises(RefusedError, match=rf"move_pages is refused \({name}\)"):
        nodes_of_pages(np.zeros(1, dtype=np.uintp))


def test_any_other_failure_is_an_error(monkeypatch):
    monkeypatch.setattr(binding.platform, "machine", lambda: "x86_64")
    call_answering(monkeypatch, -1, errno.ENOMEM)
    with pytest.raises(OSError, match="mbind: Cannot allocate memory"):
        bind(0, 4096, 0)


def test_a_processor_without_known_calls_is_said(monkeypatch):
    monkeypatch.setattr(binding.platform, "machine", lambda: "riscv64")
    with pytest.raises(RefusedError, match="the number of mbind is not known on riscv64"):
        bind(0, 4096, 0)


# This machine.


@pytest.fixture
def here() -> Places:
    return live_places()


def refusing(*_arguments) -> None:
    raise RefusedError("mbind is refused (EPERM)")


@linux
def test_places_are_those_of_the_live_machine(here):
    assert [len(cores) for cores in here.processors] == load_machine("live").cores.tolist()
    assert {number for cores in here.processors for number in cores} <= os.sched_getaffinity(0)
    assert min(here.free_bytes) > 0


@linux
def test_only_the_thread_is_pinned(here):
    before = os.sched_getaffinity(0)
    processor = next(filter(None, here.processors))[-1]
    assert pinned(processor, lambda: os.sched_getaffinity(0)) == {processor}
    assert os.sched_getaffinity(0) == before


@linux
def test_an_error_of_the_pinned_thread_comes_back():
    with pytest.raises(ZeroDivisionError):
        pinned(min(os.sched_getaffinity(0)), lambda: 1 // 0)


@linux
def test_pages_are_where_they_were_bound(here):
    for node, processors in zip(here.nodes, here.processors, strict=True):
        memory = Buffer(16 * PAGE_BYTES, node, processors[0] if processors else None, huge=False)
        if memory.refused:
            pytest.skip(memory.refused)
        share, how = memory.place()
        if np.isnan(share):
            pytest.skip(how)
        assert share == 1.0
        assert len(memory.pages()) == 16
        assert memory.pages(4).tolist() == [memory.address + page * PAGE_BYTES for page in (0, 5, 10, 15)]


@linux
def test_memory_that_cannot_be_bound_is_touched_on_its_node(monkeypatch, here):
    node, processors = next(pair for pair in zip(here.nodes, here.processors, strict=True) if pair[1])
    monkeypatch.setattr(buffer, "bind", refusing)
    memory = Buffer(16 * PAGE_BYTES, node, processors[0], huge=False)
    assert memory.refused == "mbind is refused (EPERM)"
    memory.require_in_place()
    with pytest.raises(RefusedError):
        Buffer(16 * PAGE_BYTES, node, None)


@linux
def test_pages_nobody_can_look_up_are_said_to_be(monkeypatch, here):
    monkeypatch.setattr(buffer, "nodes_of_pages", refusing)
    node, processors = next(pair for pair in zip(here.nodes, here.processors, strict=True) if pair[1])
    memory = Buffer(HUGE_BYTES, node, processors[0])
    if mapped_by_node(memory.address):
        assert memory.require_in_place() == "looked up in numa_maps"
    monkeypatch.setattr(buffer, "mapped_by_node", lambda _: {})
    assert memory.require_in_place() == "not looked up: mbind is refused (EPERM)"


@linux
def test_pages_elsewhere_are_an_error(monkeypatch, here):
    monkeypatch.setattr(buffer, "nodes_of_pages", lambda pages: np.arange(len(pages)) % 2 + 1000)
    processors = next(filter(None, here.processors))
    memory = Buffer(16 * PAGE_BYTES, here.nodes[0], processors[0], huge=False)
    with pytest.raises(ValueError, match=r"at least 99% of the pages .* got 0.0%"):
        memory.require_in_place()


@linux
def test_a_page_moved_to_where_it_is_stays(here):
    processors = next(filter(None, here.processors))
    node = here.nodes[here.processors.index(processors)]
    memory = Buffer(4 * PAGE_BYTES, node, processors[0], huge=False)
    try:
        assert move_pages(memory.pages(), node).tolist() == [node] * 4
    except RefusedError as error:
        pytest.skip(str(error))


@linux
def test_every_figure_of_this_machine_is_a_time_or_a_rate(here):
    instrument = LinuxInstrument(here, HUGE_BYTES, Timing(window_s=0.002, repeats=2), np.random.default_rng(1))
    node = next(node for node, cores in enumerate(here.processors) if cores)
    cores = min(2, instrument.cores[node])
    latency_s, read = instrument.loaded(node, 8)
    idle_s, idle_read = instrument.loaded(node, None)
    for figure in (
        instrument.chase_s(node, node),
        instrument.stream_bytes_per_s(node, node, cores),
        instrument.flops_per_s(node),
        *(latency_s, read, idle_s, idle_read),
    ):
        assert figure.shape == (2,)
        assert np.isfinite(figure).all()
        assert (figure > 0.0).all()
    assert 1e-10 < idle_s.min() < 1e-4
    np.testing.assert_allclose(idle_read, 64 / idle_s)
    assert instrument.placed


@linux
def test_moving_pages_takes_time(here):
    instrument = LinuxInstrument(here, HUGE_BYTES, Timing(window_s=0.002, repeats=2), np.random.default_rng(1))
    node = next(node for node, cores in enumerate(here.processors) if cores)
    try:
        times = instrument.move_s(node, (node + 1) % len(here.nodes))
    except RefusedError as error:
        pytest.skip(str(error))
    assert times.shape == (2,)
    assert (times > 0.0).all()


@linux
def test_the_command_writes_this_machine(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(calibrate, "buffer_bytes", lambda *_: 2 * HUGE_BYTES)  # this is of the command, not of memory
    base = load_machine("live")
    out = tmp_path / "mine.json"
    Calibrate(out, seconds=0.01).run()
    machine = load_machine(str(out))
    assert (machine.name, machine.cores.tolist()) == ("mine", base.cores.tolist())
    assert machine.memory_bytes.tolist() == base.memory_bytes.tolist()
    assert machine.page_bytes == PAGE_BYTES
    for figure in ("latency_s", "bandwidth_bytes_per_s", "flops_per_s"):
        assert machine.sources[figure].startswith("measured: ")
    assert "4 MiB" in machine.sources["latency_s"]
    printed = capsys.readouterr().out
    assert "Measuring latency and bandwidth of node 0's memory" in printed
    assert ("nothing to place here" in printed) == (machine.num_nodes == 1)


@linux
def test_less_memory_than_the_cache_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--memory must be at least"):
        Calibrate(tmp_path / "mine.json", memory="1MiB").run()
    assert list(tmp_path.iterdir()) == []
