"""The drift monitor: summaries of windows in, a verdict with its evidence out.

One monitor watches one kind of drift of one stream: inputs, answers, or losses that have matured; the
mechanism is the same. A window is compared with the profile of its season, its shifts become p-values by the
calibration, and these become evidence that accumulates. A shift far beyond what the stream's own tail allows
is drift at once, within a part of the same budget. What a monitor knows is bounded by its layout.

A window enters the profile only after a quarantine, and never if there was drift in it, so that a slow drift
does not become its own reference. Its scores enter the calibration in any case: a calibration without the
windows where evidence was building would look calmer than the world is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ctrain.monitoring.calibrate import (
    LAGS,
    Calibration,
    both_ways,
    calibrate,
    p_values,
    plain,
    scores,
    tails,
    there,
)
from ctrain.monitoring.evidence import BETS, accumulate
from ctrain.monitoring.profile import Entry, Profile, extended, shifts, sizes
from ctrain.monitoring.summary import Floats, Layout, Summary
from ctrain.records import DriftCause, DriftReport, DriftState, Json
from ctrain.spec.monitoring import Drift

QUARANTINE = 48
"""Windows before one enters the profile."""

WEIGHTS = (0.4, 0.15, 0.05, 0.1, 0.05, 0.25, 0.25)
"""How evidence is weighed: means, scales, shapes, missing values; shares of segments, means inside them;
chosen statistics. Scaled to sum to 1 over those that there are."""

FADING = 0.8
"""Of the running mean of shifts that the effect is read from: about five windows."""

ROUNDING = 1e-9

HEADROOM = 10.0
"""A detector alone may reach so many times what drift needs; more would only delay recovery."""

AT_ONCE, PLAIN = 0.2, 0.95
"""Of the budget, the part for drift that one window shows; of that, the part of means and scales."""

_EVIDENCE = ("last", "log_m", "effect")
_WAITING = ("values", "residuals")
_CALIBRATION = (
    "center_D",
    "between_D",
    "weights_LC",
    "spans_K",
    "residuals_NC",
    "tail_K",
    "reach_K",
)

WHATS: tuple[Literal["mean", "scale", "shape", "missing", "share"], ...] = (
    "mean",
    "scale",
    "shape",
    "missing",
    "share",
)


@dataclass(frozen=True)
class _Waiting:
    """A judged window in quarantine."""

    context: str
    values: Floats
    residuals: Floats
    drift: bool


class DriftMonitor:
    """Judges windows in their order. Not safe for threads."""

    def __init__(self, layout: Layout, spec: Drift, threshold: float) -> None:
        self.layout, self.spec, self.threshold = layout, spec, threshold
        self._down = tails(layout)
        self._weights = _weights(layout, self._down)
        with np.errstate(divide="ignore"):  # of a score that is not there nothing is ever enough
            self._enough = np.log(threshold / self._weights)
        self._cap = self._enough + np.log(HEADROOM)
        self._past: list[tuple[str, Floats]] = []
        self._profile = Profile()
        self._calibration: Calibration | None = None
        self._waiting: list[_Waiting] = []
        self._last = np.zeros((LAGS, len(self._down)))
        self.checks = 0
        self._forget()

    def _forget(self) -> None:
        """Start with no evidence."""
        self.state: DriftState = "steady"
        self._log_m = np.full((len(BETS), len(self._weights)), -np.inf)
        self._effect = np.zeros(sum(sizes(self.layout)))

    @staticmethod
    def begin(
        layout: Layout,
        spec: Drift,
        past: Sequence[tuple[str, Summary]] = (),
        *,
        checks: float = 1000.0,
        previous: DriftMonitor | None = None,
    ) -> DriftMonitor:
        """A monitor that knows the stream's past, e.g. the windows of the champion's training data.

        Args:
            layout: Of all summaries.
            spec: Least effect, rows, windows to calibrate on.
            past: (context, summary) of past windows, oldest first, in one stretch. If they are too few the
                monitor is `calibrating` until live windows have made up for them.
            checks: Checks that may hold one false alarm (`Drift.checks`).
            previous: Monitor before a promotion. If the layout is the same, what it has learned about the
                stream's noise still holds and is kept; evidence starts anew in any case.
        """
        monitor = DriftMonitor(layout, spec, checks)
        if previous is not None and previous.layout == layout:
            monitor._past, monitor._calibration = list(previous._past), previous._calibration
            monitor._profile, monitor._waiting = previous._profile, list(previous._waiting)
        usable = [(context, one.values) for context, one in past if one.rows >= spec.least_rows]
        if usable:
            monitor._learn(usable)
        return monitor

    def update(self, context: str, summary: Summary) -> DriftReport:
        """Judge the next window.

        Args:
            context: Its season (`profile.context_of`).
            summary: Its counts, by the monitor's layout.
        """
        assert summary.layout == self.layout, "the summary was made by another layout"
        if summary.rows < self.spec.least_rows:
            reason = f"{summary.rows:.0f} rows, fewer than {self.spec.least_rows}"
            return self._report("not_enough_rows", summary, 0.0, reason)
        if self._calibration is None:
            self._learn([*self._past, (context, summary.values)])
            reason = f"{len(self._past)} of {self.spec.calibration_windows} windows watched"
            return self._report("calibrating", summary, 0.0, reason)
        entry = self._profile.entries.get(context)
        if entry is None or entry.visits < 2:
            unknown = np.full(len(self._down), np.nan)
            self._wait(_Waiting(context, summary.values, unknown, False))
            return self._report("calibrating", summary, 0.0, f"fewer than two windows of {context} before")
        return self._judge(self._calibration, context, summary, entry)

    def to_state(self) -> tuple[Json, dict[str, npt.NDArray[Any]]]:
        """All that it knows, as plain JSON and plain arrays (for npz); bounded by the layout."""
        about: Json = {
            "layout": self.layout.to_json(),
            "threshold": self.threshold,
            "state": self.state,
            "checks": self.checks,
            "past": [context for context, _ in self._past],
            "waiting": [[one.context, one.drift] for one in self._waiting],
            "contexts": [[name, entry.visits] for name, entry in self._profile.entries.items()],
            "windows": self._calibration.windows if self._calibration else 0,
        }
        arrays: dict[str, npt.NDArray[Any]] = {name: getattr(self, f"_{name}") for name in _EVIDENCE}
        arrays["past"] = np.array([values for _, values in self._past])
        arrays["profile"] = np.array([entry.sums for entry in self._profile.entries.values()])
        for name in _WAITING:
            arrays[f"waiting_{name}"] = np.array([getattr(one, name) for one in self._waiting])
        if self._calibration is not None:
            arrays |= {f"calibration_{name}": getattr(self._calibration, name) for name in _CALIBRATION}
        return about, {name: array.copy() for name, array in arrays.items()}

    @staticmethod
    def from_state(spec: Drift, about: Json, arrays: dict[str, npt.NDArray[Any]]) -> DriftMonitor:
        """Rebuild from `to_state`: what follows is the same, bit for bit."""
        monitor = DriftMonitor(Layout.from_json(about["layout"]), spec, about["threshold"])
        monitor.state, monitor.checks = about["state"], about["checks"]
        for name in _EVIDENCE:
            setattr(monitor, f"_{name}", arrays[name])
        monitor._past = list(zip(about["past"], arrays["past"], strict=True))
        pairs = zip(about["contexts"], arrays["profile"], strict=True)
        monitor._profile = Profile({name: Entry(sums, visits) for (name, visits), sums in pairs})
        columns = [arrays[f"waiting_{name}"] for name in _WAITING]
        for (context, drift), values, residuals in zip(about["waiting"], *columns, strict=True):
            monitor._waiting.append(_Waiting(context, values, residuals, drift))
        if about["windows"]:
            learned = {name: arrays[f"calibration_{name}"] for name in _CALIBRATION}
            monitor._calibration = Calibration(**learned, windows=about["windows"])
        return monitor

    def _learn(self, past: list[tuple[str, Floats]]) -> None:
        """Calibrate on past windows if they are enough; keep them for later if not."""
        if len(past) < self.spec.calibration_windows:
            self._past = past
            return
        self._past = []
        contexts = [context for context, _ in past]
        windows = [extended(self.layout, values) for _, values in past]
        chances = AT_ONCE * _shares_at_once(self.layout) / self.threshold
        self._calibration = calibrate(self.layout, contexts, np.array(windows), chances)
        self._profile, self._waiting = Profile(), []
        for context, window in zip(contexts, windows, strict=True):
            self._profile = self._profile.add(context, window)

    def _judge(self, calibration: Calibration, context: str, summary: Summary, entry: Entry) -> DriftReport:
        shift = shifts(self.layout, extended(self.layout, summary.values), entry)
        moved = shift.sizes_D - calibration.center_D
        z, which = scores(self.layout, moved, shift.variances_D, calibration.between_D)
        expected = calibration.weights_LC[0] + (self._last * calibration.weights_LC[1:]).sum(axis=0)
        residuals = z - expected
        self._last = np.vstack([np.nan_to_num(z), self._last[:-1]])
        self._effect = FADING * self._effect + (1 - FADING) * np.nan_to_num(moved)
        p = p_values(self.layout, calibration, residuals)
        self._log_m = accumulate(self._log_m, p, calibration.spans_K, self._cap)
        running, now = self._effects(self._effect, which), self._effects(np.nan_to_num(moved), which)
        beyond = np.nan_to_num(both_ways(residuals, self._down) / calibration.reach_K) - 1.0
        at_once = (beyond > 0) & self._worth(now)
        enough = np.minimum(self._enough + ROUNDING + np.maximum(beyond, 0), self._cap)
        self._log_m = np.where(at_once, np.maximum(self._log_m, enough), self._log_m)
        evidence = np.exp(self._log_m).mean(axis=0) * self._weights * (at_once | self._worth(running))
        effects = np.where(at_once, now, running)
        self.checks += 1
        total = float(evidence.sum())
        state, reason = self._next(total)
        report = self._report(state, summary, total, reason, self._causes(evidence, effects, which))
        self._wait(_Waiting(context, summary.values, residuals, self.state == "drift"))
        return report

    def _worth(self, effects_K: Floats) -> npt.NDArray[np.bool_]:
        """Which scores show an effect that is worth an alarm; a statistic without a unit does."""
        worth: npt.NDArray[np.bool_] = np.isnan(effects_K) | (effects_K >= self.spec.min_effect)
        return worth

    def _effects(self, shift_D: Floats, which: npt.NDArray[np.int64]) -> Floats:
        """Shift that speaks for each score, positive in the score's direction; NaN for a statistic."""
        parts = np.split(shift_D, np.cumsum(sizes(self.layout))[:-1])
        f, s = len(self.layout.features), len(self.layout.segment_names)
        local = parts[5].reshape(s, f)
        up, down = (
            (local[np.arange(s), which[0]], -local[np.arange(s), which[1]]) if s else (np.zeros(0),) * 2
        )
        effect = np.concatenate([*parts[:5], up, down, np.full(len(parts[6]), np.nan)])
        return np.concatenate([effect, -effect[self._down]])

    def _next(self, total: float) -> tuple[DriftState, str]:
        """Move between steady, warning, drift and recovered; drift ends where a warning would not begin."""
        warning = math.sqrt(self.threshold)
        before = self.state
        if total >= self.threshold or (before == "drift" and total >= warning):
            self.state = "drift"
            return "drift", "the evidence is above the threshold" if before != "drift" else "drift goes on"
        if before == "drift":
            self._forget()
            return "recovered", "the stream is again as it was, or has become used to it"
        self.state = "warning" if total >= warning else "steady"
        return self.state, "evidence is building" if self.state == "warning" else "no evidence of drift"

    def _wait(self, waiting: _Waiting) -> None:
        """Put a window into quarantine, and take in the one whose quarantine is over."""
        self._waiting.append(waiting)
        if len(self._waiting) <= QUARANTINE:
            return
        ripe = self._waiting.pop(0)
        if not ripe.drift:
            self._profile = self._profile.add(ripe.context, extended(self.layout, ripe.values))
        if self._calibration is not None and not np.isnan(ripe.residuals).all():
            self._calibration = self._calibration.add(self.layout, ripe.residuals)

    def _causes(
        self, evidence: Floats, effects: Floats, which: npt.NDArray[np.int64]
    ) -> tuple[DriftCause, ...]:
        total = float(evidence.sum())
        if total < 1.0:
            return ()
        return tuple(
            self._cause(int(k), float(effects[k]), float(evidence[k] / total), which)
            for k in np.argsort(-evidence)[:3]
            if evidence[k] > 0
        )

    def _cause(self, k: int, effect: float, share: float, which: npt.NDArray[np.int64]) -> DriftCause:
        """Name a score: its feature or segment, what moved, and where to."""
        names, f, s = self.layout.features, len(self.layout.features), len(self.layout.segment_names)
        up = k < len(self._down)
        number = k if up else int(np.flatnonzero(self._down)[k - len(self._down)])
        if number < 4 * f:
            sign = 1.0 if up else -1.0
            return DriftCause(
                names[number % f].name, WHATS[number // f], "up" if up else "down", "", sign * effect, share
            )
        number -= 4 * f
        if number < s:
            name = self.layout.segment_names[number]
            return DriftCause("", "share", "up" if up else "down", name, effect if up else -effect, share)
        number -= s
        if number < 2 * s:
            rise, segment = number < s, number % s
            feature = names[int(which[0 if rise else 1, segment])].name
            name = self.layout.segment_names[segment]
            return DriftCause(
                feature, "mean", "up" if rise else "down", name, effect if rise else -effect, share
            )
        return DriftCause(self.layout.statistics[number - 2 * s], "statistic", "up", "", None, share)

    def _report(
        self,
        state: DriftState,
        summary: Summary,
        evidence: float,
        reason: str,
        causes: tuple[DriftCause, ...] = (),
    ) -> DriftReport:
        return DriftReport(
            kind=self.layout.kind,
            state=state,
            alarm=reason == "the evidence is above the threshold",
            evidence=evidence,
            threshold=self.threshold,
            causes=causes,
            rows=int(summary.rows),
            checks=self.checks,
            budget=f"at most one false alarm in {self.threshold:.0f} checks",
            reason=reason,
        )


def _weights(layout: Layout, down: npt.NDArray[np.bool_]) -> Floats:
    """Share of each score in the evidence, upwards then downwards; they sum to 1."""
    f, s, x = len(layout.features), len(layout.segment_names), len(layout.statistics)
    group = np.repeat(np.arange(7), [f, f, f, f, s, 2 * s, x])
    group, is_there = np.concatenate([group, group[down]]), there(layout)
    counts = np.bincount(group, is_there, minlength=7)
    shares = np.where(counts > 0, WEIGHTS, 0.0)
    weights: Floats = np.where(is_there, (shares / shares.sum() / np.maximum(counts, 1))[group], 0.0)
    return weights


def _shares_at_once(layout: Layout) -> Floats:
    """Share of each score in the budget for drift at once."""
    is_plain, others = plain(layout), there(layout) & ~plain(layout)
    shares: Floats = PLAIN * is_plain / max(is_plain.sum(), 1) + (1 - PLAIN) * others / max(others.sum(), 1)
    return shares
