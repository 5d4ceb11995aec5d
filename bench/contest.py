"""Ours beside each peer in turn: a peer is started, and in every repeat all get the same closed loops, one after the
other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from bench.errors import PeerAbsent, WrongAnswer
from bench.peers.registry import PEERS
from bench.peers.serving import serving
from bench.points import Point
from bench.scenario import Settings, Sheet
from bench.systems import OURS, OURS_HTTP, System, samples, task, theirs

BEST = "the best peer"
FAR_BEHIND = 0.1  # of what ours answers

Round = Mapping[str, Point]  # what each system did, in one repeat
Rounds = Mapping[int, Sequence[Round]]  # by requests in flight


def contest(
    settings: Settings, sheet: Sheet, ours: Sequence[System], model: str, levels: Sequence[int], processes: int = 1
) -> Mapping[str, Rounds]:
    """By peer, what it and ours did. Every point goes to the sheet; a peer that cannot be measured is told there, and
    why. In the quick form the first peer that runs is the only one."""
    rows, answers = samples(settings, model)
    found: dict[str, Rounds] = {}
    for peer in PEERS.values():
        if settings.quick and found:
            sheet.lack(peer.title, "the quick form measures one peer")
            continue
        settings.progress.say(f"starting {peer.title}")
        try:
            with serving(peer, task(settings, peer, model, processes), rows, answers) as served:
                found[peer.title] = _rounds(settings, sheet, [*ours, theirs(settings, served)], levels)
        except (PeerAbsent, WrongAnswer) as error:
            sheet.lack(peer.title, str(error))
    return found


def _rounds(settings: Settings, sheet: Sheet, systems: Sequence[System], levels: Sequence[int]) -> Rounds:
    """All repeats; in every other one the order is turned round. Who is far behind after the first is measured once."""
    found: dict[int, list[Round]] = {level: [] for level in levels}
    for number in range(settings.repeat):
        settings.progress.more(1)
        for level in levels:
            order = systems if number % 2 else systems[::-1]
            points = {system.name: system.closed(settings, level) for system in order}
            for system in systems:
                sheet.point(points[system.name])
            found[level].append(points)
        settings.progress.step()
        if _far_behind(found[levels[-1]][0], systems):
            break
    return found


def _far_behind(first: Round, systems: Sequence[System]) -> bool:
    return first[systems[-1].name].rate < FAR_BEHIND * first[systems[0].name].rate


def best(found: Mapping[str, Rounds], level: int) -> str:
    """The peer that answers the most with so many in flight."""
    return max(found, key=lambda title: median(one[title].rate for one in found[title][level]))


def tell(sheet: Sheet, found: Mapping[str, Rounds], levels: Sequence[int], what: str = "") -> None:
    """Figures beside each peer and beside the best at each level; ``what`` comes before the level."""
    for level in levels if found else ():
        leader = best(found, level)
        for title, where in [*((title, title) for title in found), (leader, BEST)]:
            for one in found[title][level]:
                _compare(sheet, f"{what}{level} in flight", where, one, title)


def _compare(sheet: Sheet, load: str, where: str, points: Round, title: str) -> None:
    other = points[title]
    for name, prefix in ((OURS, ""), (OURS_HTTP, "HTTP, ")):
        mine, told = points[name], {"peer": title}
        if other.level > 1:
            sheet.rate(f"{prefix}{load}, beside {where}", "req/s", mine.rate, other.rate, told)
        else:
            p50 = mine.at_us(0.5) / 1e3, other.at_us(0.5) / 1e3
            sheet.cost(f"{prefix}p50, {load}, beside {where}", "ms", *p50, told)
