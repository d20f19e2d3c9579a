"""What the command line prints: one line or table for people, JSON with `--json`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ctrain.client import Status
from ctrain.client.status import VersionStatus
from ctrain.records import Json

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def put(text: str) -> None:
    """One line of progress or result, as it is."""
    out.print(text, markup=False)


def put_error(text: str) -> None:
    """The reason of a failure, on stderr."""
    err.print(text, markup=False, style="red")


def put_json(value: Any) -> None:
    """Plain JSON on stdout."""
    print(json.dumps(value, indent=2, default=str))


def duration(seconds: float) -> str:
    """Seconds in the largest unit that fits, e.g. `3 h`."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def put_status(status: Status) -> None:
    """The page of `ctrain status`."""
    challenger = status.challenger
    head = [status.pipeline, _champion(status.champion)]
    if challenger:
        head.append(f"challenger {challenger.label} at {100 * status.split:.3g} %")
    requests = status.requests
    head.append(f"{requests.failed:,} failed of {requests.answered + requests.failed:,} requests")
    if status.paused:
        head.append("paused")
    put("   ".join(head))
    lines = _named("rollout", _rollout(status))
    lines.append(("data", _data(status)))
    lines += _named("quality", status.quality)
    for version in filter(None, (status.champion, challenger)):
        lines += _named(f"{version.label} warns", version.warnings)
    lines += _named("drift", status.drift.lines or (status.drift.state or "no window yet",))
    skew = status.skew
    if skew is not None:
        lines.append(("skew", skew.text))
    moved = status.drift.state in ("drift", "recovered") or (skew is not None and skew.state == "skewed")
    if status.drift.diagnosis and moved:
        lines.append(("diagnosis", status.drift.diagnosis))
    if status.drift.hold:
        lines.append(("hold", status.drift.hold))
    if status.run:
        lines.append(("run", status.run))
    lines.append(("next", status.next))
    lines += [("alert", f"{alert.alert}: {alert.text}") for alert in status.alerts[-5:]]
    if status.raw.get("controller") == "does not answer":
        lines.append(("controller", "does not answer; what serves keeps serving"))
    if status.error:
        lines.append(("error", status.error))
    table = Table.grid(padding=(0, 1))
    for name, text in lines:
        if text:
            table.add_row(f"  {name:<11}", Text(text))
    out.print(table)


def put_history(told: Iterable[Json]) -> None:
    """The page of `ctrain why`: the day once, then times."""
    day = ""
    for one in told:
        date, _, clock = one["at"].partition("T")
        shown, day = (date if date != day else " " * len(date)), date
        put(f"{shown} {clock[:5]}  {one['kind'].replace('_', ' '):<20} {one['text']}")


def _named(name: str, lines: Sequence[str]) -> list[tuple[str, str]]:
    """Lines under one name, which the first of them bears."""
    return [(name if number == 0 else "", line) for number, line in enumerate(lines)]


def _champion(champion: VersionStatus | None) -> str:
    if not champion:
        return "no champion yet"
    trained = f", trained to {champion.trained_to}" if champion.trained_to else ""
    return f"champion {champion.label} ({duration(champion.age_s)} old{trained})"


def _rollout(status: Status) -> list[str]:
    rollout = status.rollout
    if not rollout:
        return []
    phase = f"canary {rollout.step}/{rollout.steps}" if rollout.phase == "canary" else rollout.phase
    lines = [f"{rollout.label}   {phase}   {rollout.verdict}"]
    lines += [f"{one.metric} {one.verdict}: {one.text}" for one in rollout.metrics]
    return lines


def _data(status: Status) -> str:
    data = status.data
    parts = [f"{data.partitions} partitions" + (f" to {data.last}" if data.last else "")]
    if data.refused:
        parts.append(f"{data.refused} refused")
    if data.quarantined_rows:
        parts.append(f"{data.quarantined_rows:,} rows quarantined")
    parts += [f"{name}: {problem}" for name, problem in list(data.problems.items())[-3:]]
    return ", ".join(parts)
