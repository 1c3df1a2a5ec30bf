"""What the demo found, and how it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from holdfast.demo.ledger import Comparison, Entry, Received, compare
from holdfast.demo.server import VOLUMES
from holdfast.demo.timeline import Timeline

__all__ = ["Counts", "DemoResult", "judge"]


class Counts(msgspec.Struct, kw_only=True):
    """What a story counts while it is told."""

    instances: int
    kills: int = 0
    errors: int = 0
    readers: int = 1
    """Instances through which all facts were read back."""


class DemoResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo found. ``ok`` only if all of it is as it must be."""

    ok: bool
    instances: int
    answered: list[int]
    """How many of the client's requests each instance has answered."""
    acknowledged: int
    """Events that the server had acknowledged as stored."""
    received: int
    replayed: int
    """Of these, events that came on a resumed connection."""
    relayed: int
    """Events that came through another instance than the one that stored them."""
    missing: int
    duplicated: int
    changed: int
    disordered: int
    errors: int
    """Calls that ended with the honest error, one per kill."""
    state_intact: bool
    kills: int
    seconds: float


def judge(
    counts: Counts,
    *,
    ledgers: Mapping[int, Sequence[Entry]],
    received: Sequence[Received],
    answered: Mapping[int, int],
    state_intact: bool,
    timeline: Timeline,
) -> DemoResult:
    """Compare what was acknowledged with what has arrived; prints the verdict."""
    acknowledged = [note for ledger in ledgers.values() for note in ledger]
    stored_by = {note.id: instance for instance, ledger in ledgers.items() for note in ledger}
    relayed = sum(stored_by.get(event.id, event.instance) != event.instance for event in received)
    found = compare(acknowledged, received)
    single = counts.instances == 1
    result = DemoResult(
        ok=found.clean
        and state_intact
        and counts.errors == counts.kills
        and bool(acknowledged)
        and (single or (relayed > 0 and counts.readers == len(answered) == counts.instances)),
        instances=counts.instances,
        answered=[answered.get(number, 0) for number in range(1, counts.instances + 1)],
        acknowledged=len(acknowledged),
        received=len(received),
        replayed=sum(event.replayed for event in received),
        relayed=relayed,
        missing=len(found.missing),
        duplicated=len(found.duplicated),
        changed=len(found.changed),
        disordered=len(found.disordered),
        errors=counts.errors,
        state_intact=state_intact,
        kills=counts.kills,
        seconds=round(timeline.seconds, 2),
    )
    _show(result, found, counts, timeline)
    return result


def _show(result: DemoResult, found: Comparison, counts: Counts, timeline: Timeline) -> None:
    wrong = found.missing + found.duplicated + found.changed + found.disordered
    for event_id in dict.fromkeys(wrong[:10]):
        timeline.say("check", f"wrong: {event_id}")
    rows = [
        ("events the server had acknowledged", f"{result.acknowledged}", result.acknowledged > 0),
        ("of these missing at the client", f"{result.missing}", result.missing == 0),
        ("received twice", f"{result.duplicated}", result.duplicated == 0),
        ("changed", f"{result.changed}", result.changed == 0),
        ("out of order", f"{result.disordered}", result.disordered == 0),
        ("received on a resumed connection", f"{result.replayed}", result.replayed > 0),
    ]
    if result.instances > 1:
        everywhere = counts.readers == result.instances
        rows += [
            ("received through another instance than stored them", f"{result.relayed}", result.relayed > 0),
            ("instances that read all facts back", f"{counts.readers} of {result.instances}", everywhere),
            ("requests answered by each", ", ".join(map(str, result.answered)), all(result.answered)),
        ]
    died = f"{result.errors} of {result.kills}"
    rows += [
        ("calls that died, each ended by an error", died, result.errors == result.kills),
        ("facts, and every volume surveyed once", f"{VOLUMES} volumes", result.state_intact),
        ("time", f"{result.seconds:.1f} s", True),
    ]
    timeline.verdict(rows, ok=result.ok)
