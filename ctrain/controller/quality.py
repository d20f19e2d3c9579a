"""Policy of quality: what follows from matured blocks of both models. Pure, a part of `decide`.

After a promotion the champion before it stays in shadow, so that labels judge both on the same requests, a
block of time after the other. Harm that is shown swaps the pointers back.
"""

from __future__ import annotations

from collections.abc import Iterable

from ctrain.controller.fold import watched_blocks
from ctrain.controller.journal import Entry
from ctrain.controller.observations import alert
from ctrain.controller.state import PartitionFact, State
from ctrain.evaluation.scales import Scales, scales_from
from ctrain.evaluation.watch import one_against_one, watch
from ctrain.monitoring.words import diagnosis_in_words
from ctrain.records import KnownFacts, WindowReport, to_json

PARTITIONS = 15
"""Newest partitions whose refused shares are told."""


def scales_of_one(state: State) -> Scales | None:
    """By how much two single models of the pipeline differ, from its record; None before the first pair."""
    if not state.record:
        return None
    newest = state.record[-1].replicates
    alike = [pair for pair in state.record if pair.replicates == newest]
    return one_against_one(scales_from(alike), newest)


def what_blocks_say(state: State, report: WindowReport) -> Iterable[Entry]:
    """Events that follow from blocks which matured under the watch of a promotion.

    Args:
        state: Before the window closed.
        report: The window's.
    """
    fact = state.watch
    if fact is None:
        return
    blocks = watched_blocks(fact, report.blocks)
    if blocks == fact.blocks:
        return
    found = watch(blocks, scales_of_one(state), least_rows=state.pipeline_spec().evaluation.block_rows)
    data = {"version": fact.version, "against": fact.against, "report": to_json(found)}
    yield Entry("watched", data)
    if found.verdict == "fail" and state.previous == fact.against:
        label, other = state.label(fact.version), state.label(fact.against)
        reason = f"{label} against {other} in shadow: {found.text}"
        yield Entry("rolled_back", {"version": fact.version, "by": "watch", "reason": reason})
        yield alert("quality", reason)


def what_diagnosis_says(state: State, report: WindowReport, now: float, back: bool) -> Iterable[Entry]:
    """Events that follow from the diagnosis of a stream that moved, but for a retraining.

    Args:
        state: Before the window closed.
        report: The window's.
        now: Seconds since 1970.
        back: Whether the blocks of the same window have rolled the champion back already.
    """
    found = report.diagnosis
    if found is None:
        return
    yield alert("diagnosis", diagnosis_in_words(found))
    recent = now - state.promoted_at <= state.pipeline_spec().rollout.watch
    if found.action == "roll_back" and state.previous and recent and not back:
        reason = diagnosis_in_words(found)
        yield Entry("rolled_back", {"version": state.champion, "by": "diagnosis", "reason": reason})


def what_skew_says(state: State, report: WindowReport) -> Iterable[Entry]:
    """Tell once that serving does not compute what the batch path does, unless the diagnosis tells it.

    Args:
        state: Before the window closed.
        report: The window's.
    """
    told = report.diagnosis is not None and report.diagnosis.verdict == "serving_skew"
    if report.skew is not None and _is_skewed(report) and not told and not _is_skewed(state.window):
        yield alert("skew", report.skew.reason)


def _is_skewed(report: WindowReport | None) -> bool:
    return report is not None and report.skew is not None and report.skew.state == "skewed"


def known_facts(state: State, end: float) -> KnownFacts:
    """What the controller knows of the stream without statistics.

    Args:
        state: Fold of the journal.
        end: Of the window, in seconds since 1970.
    """
    facts = [state.partitions[name] for name in sorted(state.partitions)[-PARTITIONS:]]
    newest = facts[-1] if facts else None
    return KnownFacts(
        promoted_ago=max(0.0, end - state.promoted_at) if state.previous else None,
        previous=state.previous,
        refused_share=_refused_share(newest) if newest is not None else 0.0,
        usual_refused_share=max(
            (_refused_share(fact) for fact in facts[:-1] if not fact.refused), default=0.0
        ),
        schema_changes=newest.schema_changes if newest is not None else (),
        skewed=_is_skewed(state.window),
    )


def _refused_share(fact: PartitionFact) -> float:
    """Share of a partition's rows that broke the contract. Rows that only lack a label break nothing."""
    seen, broken = fact.rows + fact.refused_rows, fact.refused_rows - fact.unlabelled
    if fact.refused and (broken or not seen):
        return 1.0
    return broken / seen if seen else 0.0


def end_of_watch(state: State, now: float) -> Iterable[Entry]:
    """The watch of a promotion ends with its time."""
    fact = state.watch
    if fact is not None and now >= fact.until:
        text = fact.text or "no block matured"
        yield Entry("watch_ended", {"version": fact.version, "against": fact.against, "reason": text})
