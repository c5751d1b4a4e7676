"""megatron-core's pipeline schedules, 1F1B and interleaved, played through: how long a step takes and what a rank keeps."""

from collections.abc import Iterator


def orders(pp: int, vp: int, microbatches: int) -> list[list[tuple[str, int, int]]]:
    """Of each rank its work in order: ("forward" or "backward", stage of all pp x vp, microbatch)."""
    return [list(_order(rank, pp, vp, microbatches)) for rank in range(pp)]


def _order(rank: int, pp: int, vp: int, microbatches: int) -> Iterator[tuple[str, int, int]]:
    """The table is megatron-core's own; how many passes come before the first backward one is as in get_pp_rank_microbatches."""
    from megatron.core.pipeline_parallel.schedules import get_schedule_table

    table = get_schedule_table(microbatches, vp, pp)
    first = min(len(table), 2 * (pp - rank - 1) + (vp - 1) * pp if vp > 1 else pp - rank - 1)
    for number in range(len(table) + first):
        if number < len(table):
            microbatch, chunk = table[number]
            yield "forward", chunk * pp + rank, microbatch
        if number >= first:
            microbatch, chunk = table[number - first]
            yield "backward", (vp - 1 - chunk) * pp + rank, microbatch


def play(pp: int, vp: int, microbatches: int, forward: list[float], backward: list[float]) -> float:
    """Seconds until all is done, of stages that take so long for a microbatch; messages take no time."""
    waiting = [list(reversed(order)) for order in orders(pp, vp, microbatches)]
    done: dict[tuple[str, int, int], float] = {}
    clock = [0.0] * pp
    while any(waiting):
        before = len(done)
        for rank, queue in enumerate(waiting):
            while queue and (begin := _ready(queue[-1], done, pp * vp - 1)) is not None:
                kind, stage, _ = queue[-1]
                clock[rank] = max(clock[rank], begin) + (forward if kind == "forward" else backward)[stage]
                done[queue.pop()] = clock[rank]
        assert len(done) > before, "the ranks wait for each other"
    return max(clock)


def _ready(work: tuple[str, int, int], done: dict[tuple[str, int, int], float], last: int) -> float | None:
    kind, stage, microbatch = work
    if kind == "forward":
        return 0.0 if stage == 0 else done.get((kind, stage - 1, microbatch))
    return done.get(("forward", stage, microbatch) if stage == last else (kind, stage + 1, microbatch))


def kept(pp: int, vp: int, microbatches: int, rank: int, layers: list[int]) -> float:
    """The most layers times microbatches whose activations a rank has at once; layers of all pp x vp stages."""
    most = now = 0
    for kind, stage, _ in orders(pp, vp, microbatches)[rank]:
        now += layers[stage] if kind == "forward" else -layers[stage]
        most = max(most, now)
    return most
