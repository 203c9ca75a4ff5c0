"""What `numa-rl plan` prints: the parts, what holds them, each rank's share, and the best splits."""

from __future__ import annotations

import math

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.amounts import bytes_text, count_text, seconds_text
from experiments.plan_outlook import AGAIN, Outlook
from numa_rl.transformer.memory_plan import Recompute, Sharding
from numa_rl.transformer.parallel_plan import MOST_RANKS, Plan
from numa_rl.wording import counted

AGAIN_SHORT = {Recompute.NONE: "-", Recompute.ATTENTION: "scores", Recompute.FULL: "layers"}
PARTS = {"compute_s": "compute", "mp_s": "MP", "pp_s": "PP", "dp_s": "DP", "bubble_s": "bubble", "update_s": "update"}


def print_outlook(outlook: Outlook, console: Console, most: int) -> None:
    """Print everything; of the plans, so many."""
    print_whole(outlook, console)
    print_options(outlook, console)
    if not outlook.plans:
        tried = f"{counted(outlook.sockets, 'rank')}, nor twice, four times ... as many"
        other = f"; {counted(outlook.other_ranks, 'rank')} would do" if outlook.other_ranks else ""
        console.print(
            f"Neither {tried} up to {MOST_RANKS} can be split so that each has room{other}.", style="bold red"
        )
        return
    print_ranks(outlook, console)
    print_plans(outlook, console, most)


def print_whole(outlook: Outlook, console: Console) -> None:
    """The parts, and whether the sockets hold them."""
    training, model, sizes = outlook.training, outlook.training.model, outlook.training.sizes
    count = count_text(training.num_parameters)
    console.print(Text(f"{count} parameters", "bold"))
    console.print(
        f"{counted(model.layers, 'layer')}, {counted(model.heads, 'head')} of {model.key_dim}, {model.width} wide: "
        f"{count_text(model.parameters)}.",
        style="dim",
    )
    tokens, window = training.sequence_tokens, training.kept_tokens
    ring = "" if window == tokens else f", the last {window} tokens of each"
    notes = {
        "parameters": f"{count} x {sizes.parameter_bytes:g} bytes",
        "gradients": f"{count} x {sizes.gradient_bytes:g} bytes",
        "optimiser": f"{count} x {sizes.optimiser_bytes:g} bytes",
        "activations": f"{counted(outlook.held_sequences, 'sequence')} of {tokens} tokens, {AGAIN[outlook.recompute]}",
        "working": "one layer of one sequence, computed again",
        "kv_cache": f"{counted(training.kv_sequences, 'sequence')} of {tokens} tokens{ring}",
    }
    table = _table("part", ">size", "how it is counted")
    for name, note in notes.items():
        table.add_row(name.replace("kv_cache", "KV cache"), bytes_text(getattr(outlook.whole, name)), note)
    table.add_row(Text("total", "bold"), Text(bytes_text(outlook.whole.total), "bold"), "each part once")
    console.print(table)
    console.print(verdict(outlook))


def verdict(outlook: Outlook) -> Text:
    """Whether it fits, and what would hold it."""
    have = f"{counted(outlook.sockets, 'socket')} of {bytes_text(outlook.cluster.memory_bytes)}"
    needed = outlook.needed_sockets(outlook.whole.total)
    total, room = bytes_text(outlook.whole.total), bytes_text(outlook.room_bytes)
    if outlook.fits:
        return Text(f"Fits: {have} have room for {room}; {total} needs {needed} of them.", "bold green")
    text = Text(f"Does not fit: {have} have room for {room} of {total}. ", "bold red")
    alone = outlook.needed_sockets(outlook.whole.parameters)
    return text.append(f"{needed} sockets would hold it, {alone} the parameters alone.", "bold")


def print_options(outlook: Outlook, console: Console) -> None:
    """What each option would change."""
    console.print()
    table = _table("with one thing changed", ">total", ">sockets", ">fits")
    for name, memory in outlook.variants.items():
        fits = "yes" if memory.total <= outlook.room_bytes else "no"
        table.add_row(name, bytes_text(memory.total), str(outlook.needed_sockets(memory.total)), fits)
    console.print(table)


def print_ranks(outlook: Outlook, console: Console) -> None:
    """What one rank keeps, by what replicas share."""
    one = outlook.shared[0]
    best = outlook.plans[0]
    quality = "the fastest that fits" if best.fits else "of those of which none fits, the smallest"
    whose = "as asked for" if outlook.given else f"{quality}; its replicas share {best.sharding.value}"
    console.print(Text(f"\nEach rank of {_split(one)} = {one.ranks}", "bold").append(f"  {whose}", "not bold"))
    in_flight = min(one.pp, one.micro_batches)
    console.print(
        f"Micro-batches of {counted(one.micro_sequences, 'sequence')}, {in_flight} of {one.micro_batches} wait on the "
        f"first stage; {AGAIN[one.recompute]}.",
        style="dim",
    )
    table = _table("replicas share", *(f">{sharding.value}" for sharding in Sharding))
    for name in vars(one.memory):
        sizes = (bytes_text(getattr(plan.memory, name)) for plan in outlook.shared)
        table.add_row(name.replace("kv_cache", "KV cache"), *sizes)
    table.add_row("total", *(Text(bytes_text(plan.memory.total), _colour(plan)) for plan in outlook.shared))
    table.add_row("all ranks", *(bytes_text(plan.memory.total * plan.ranks) for plan in outlook.shared))
    room = outlook.cluster.memory_bytes
    table.add_row(
        "sockets for all", *(str(outlook.needed_sockets(plan.memory.total * plan.ranks)) for plan in outlook.shared)
    )
    on_one = [math.floor(room / plan.memory.total) for plan in outlook.shared]
    table.add_row(f"ranks in {bytes_text(room)}", *map(str, on_one))
    whole = (
        str(math.ceil(plan.ranks / ranks)) if ranks else "-" for plan, ranks in zip(outlook.shared, on_one, strict=True)
    )
    table.add_row("sockets, no rank cut", *whole)
    console.print(table)


def print_plans(outlook: Outlook, console: Console, most: int) -> None:
    """The best splits, and why the one asked for stands where it does."""
    plans, best = outlook.plans, outlook.plans[0]
    fitting = sum(plan.fits for plan in plans)
    cluster = outlook.cluster
    console.print(Text(f"\nBest splits of {counted(best.ranks, 'rank')}, a socket each", "bold"))
    console.print(
        f"{fitting} of {len(plans)} splits fit. Machines of {counted(cluster.ranks_per_machine, 'socket')}: "
        f"{cluster.flops_per_s / 1e9:.4g} Gflop/s, {cluster.memory_bandwidth_bytes_per_s / 1e9:.4g} GB/s of memory, "
        f"links of {cluster.intra_bandwidth_bytes_per_s / 1e9:.4g} GB/s; network "
        f"{cluster.inter_bandwidth_bytes_per_s / 1e9:.4g} GB/s and {seconds_text(cluster.inter_latency_s)}. "
        f"A step is {outlook.training.batch_sequences} sequences of {outlook.training.sequence_tokens} tokens.",
        style="dim",
    )
    parts = (f">{name}" for name in PARTS.values())
    table = _table(">", ">MPxDPxPP", ">batch", ">ZeRO", ">again", ">step", ">rank", *parts, padding=0)
    place = outlook.given_place
    shown = sorted({*range(min(most, len(plans))), *(() if place is None else (place,))})
    for index in shown:
        plan, time = plans[index], plans[index].time
        shares = (f"{100 * getattr(time, name) / time.total_s:.0f}" for name in PARTS)
        style = "bold" if index == place else "" if plan.fits else "dim"
        table.add_row(
            str(index + 1), _split(plan), f"{plan.micro_sequences}x{plan.micro_batches}", str(plan.sharding.stage),
            AGAIN_SHORT[plan.recompute], seconds_text(time.total_s, 3),
            Text(bytes_text(plan.memory.total, 3), _colour(plan)),
            *shares, style=style,
        )  # fmt: skip
    console.print(table)
    console.print(
        "batch: sequences of a micro-batch x micro-batches; ZeRO: the stage up to which replicas share: 1 optimiser, 2 "
        "gradients, 3 parameters; again: what is recomputed; rank: its memory; then parts of the step in %, MP: "
        "all-reduces of layers, PP: sends between stages, DP: exchange of replicas.",
        style="dim",
    )
    if place is not None:
        console.print(reason(plans[place], best, place))
    if not best.fits:
        enough = outlook.enough_ranks
        would = f"{enough} ranks would do" if enough else "nor would any of 2, 4, 8 ... times as many ranks"
        console.print(Text(f"None fits: {_split(best)} leaves a rank least to keep; {would}.", "bold red"))


def reason(plan: Plan, best: Plan, place: int) -> Text:
    """Why a plan stands where it does."""
    text = Text(f"{_split(plan)} is number {place + 1}. ", "bold")
    if not plan.fits:
        least, room = bytes_text(plan.memory.total), bytes_text(plan.room_bytes)
        return text.append(f"It does not fit: a rank keeps {least} at least, and has {room}.", "red")
    if not place:
        return text.append("No split that fits is faster.", "not bold")
    more = {name: getattr(plan.time, name) - getattr(best.time, name) for name in PARTS}
    name = max(more, key=lambda part: more[part])
    slower = plan.time.total_s / best.time.total_s - 1.0
    return text.append(
        f"Its step takes {slower:.1%} longer than that of {_split(best)}, most of it in {PARTS[name]} "
        f"(+{seconds_text(more[name])}): {_cause(plan, name)}.",
        "not bold",
    )


def _cause(plan: Plan, part: str) -> str:
    """What makes one part of a plan's step long."""
    machines = math.prod((plan.mp, plan.dp, plan.pp)) // math.prod(plan.block)
    return {
        "compute_s": f"recomputation ({plan.recompute.value}) adds arithmetic",
        "mp_s": f"MP groups of {plan.mp} span {counted(plan.mp // plan.block[0], 'machine')}",
        "pp_s": f"{plan.pp} stages send over what joins {counted(machines, 'machine')}",
        "dp_s": f"{plan.dp} replicas share {plan.sharding.value} over {counted(plan.dp // plan.block[1], 'machine')}, "
        f"with m = {plan.micro_batches}",
        "bubble_s": f"{plan.pp} stages wait for {(plan.pp - 1) / plan.micro_batches:.0%} of their work, (PP - 1)/m = "
        f"{plan.pp - 1}/{plan.micro_batches}",
        "update_s": f"a rank updates {_updated(plan)} of the optimiser's state",
    }[part]


def _updated(plan: Plan) -> str:
    parts = plan.mp * plan.pp * (plan.dp if plan.sharding.reaches(Sharding.OPTIMISER) else 1)
    return "all" if parts == 1 else f"1/{parts}"


def _split(plan: Plan) -> str:
    return f"{plan.mp}x{plan.dp}x{plan.pp}"


def _colour(plan: Plan) -> str:
    return "" if plan.fits else "bold red"


def _table(*headers: str, padding: int = 1) -> Table:
    """Columns of which the first and those with a > before their header do not wrap; these are aligned to the right."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, padding, 0, 0), pad_edge=False)
    for header in headers:
        right = header.startswith(">")
        name = header.removeprefix(">")
        table.add_column(name, justify="right" if right else "left", no_wrap=right or header == headers[0])
    return table
