"""Draws of a rollout: which of the replicas' counts may be added up, and which may not.

Requests without a key are each a draw of their own, wherever they were answered: their counts add up over
incarnations. A key falls the same way in every replica, so the same slow client, seen by four replicas, is
one witness and not four. Hence the keyed draws of each incarnation give an e-value of their own, and their
mean counts: a mean of e-values is an e-value, however they depend. (That holds exactly at any one look. At
the first crossing of many looks it is exact where replicas see the same keys in the same order or
different ones, and holds with room in simulation where each sees them in an order of its own. The same is
true of errors beside latency: a key's later error is counted when its coin is known from its first answer,
which is all that latency uses.) The coins of keyless draws are independent of all keys, so the two factors
multiply.

Source: Vovk and Wang, E-values: calibration, combination and applications (2021).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ctrain.records import ArmCounts
from ctrain.rollout.evidence import SLOW, Counts, Floats, e_value, log_mean_exp

_FIELDS = 3 + len(SLOW)
_REQUESTS, _ANSWERED, _ERRORS, _SLOW = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Table:
    """Sums of draws whose coins are independent, by split."""

    splits: tuple[float, ...]
    sums: Floats
    """Shape [2, F, S]: challenger and champion; requests, answered, errors and the slow ones; splits."""

    @property
    def requests(self) -> int:
        """Draws of both arms."""
        return int(self.sums[:, _REQUESTS].sum())

    def of_arm(self, arm: int) -> list[int]:
        """Requests, answered, errors and slow ones of the challenger (0) or champion (1), over all splits."""
        return [int(value) for value in self.sums[arm].sum(axis=1)]

    def errors(self) -> Counts:
        """Draws with an error."""
        return self._counts(_ERRORS)

    def slow(self, threshold: int) -> Counts:
        """Draws whose first answer was slow by this threshold."""
        return self._counts(_SLOW + threshold)

    def first_answers(self) -> tuple[Counts, Counts]:
        """Draws whose first answer was an error, and the others."""
        return self._without(_ANSWERED), self._counts(_ANSWERED)

    def not_slow(self, threshold: int) -> Counts:
        """Draws whose first answer was faster than this threshold."""
        return self._without(_SLOW + threshold)

    def at(self, splits: frozenset[float]) -> int:
        """Draws of both arms at some of the splits."""
        chosen = [number for number, split in enumerate(self.splits) if split in splits]
        return int(self.sums[:, _REQUESTS, chosen].sum())

    def _counts(self, field: int) -> Counts:
        return Counts(self.splits, self.sums[0, field], self.sums[1, field])

    def _without(self, field: int) -> Counts:
        rest = self.sums[:, _REQUESTS] - self.sums[:, field]
        return Counts(self.splits, rest[0], rest[1])


class Draws:
    """Draws of one rollout: the keyless ones of all incarnations, and the keyed ones of each.

    Args:
        rollout: Its id; counts of other rollouts are left out, and those where no coin was thrown.
        arms: Counts of each replica incarnation.
    """

    def __init__(self, rollout: str, arms: Sequence[Sequence[ArmCounts]]) -> None:
        mine = [[one for one in counts if one.rollout == rollout and 0 < one.split < 1] for counts in arms]
        self.keyless = _table(one for counts in mine for one in counts if not one.keyed)
        keyed = ([one for one in counts if one.keyed] for counts in mine)
        self.keyed = [_table(counts) for counts in keyed if counts]
        self.tables = [self.keyless, *self.keyed]
        self.challenger, self.champion = (
            [sum(values) for values in zip(*(table.of_arm(arm) for table in self.tables), strict=True)]
            for arm in (0, 1)
        )
        """Requests, answered, errors and slow ones of each arm, for people."""

    @property
    def requests(self) -> int:
        """Draws that fell to the challenger."""
        return int(self.challenger[_REQUESTS])

    def e_value(self, log_value: Callable[[Table], Floats]) -> float:
        """Evidence of all draws, from the logarithm that draws of independent coins give."""
        keyed = 0.0
        if self.keyed:
            # Sorted, so that the order in which replicas are listed changes no bit.
            keyed = float(log_mean_exp(np.sort([float(log_value(table)) for table in self.keyed])))
        return float(e_value(float(log_value(self.keyless)) + keyed))

    def at_step(self, split: float, steps: Iterable[float]) -> int:
        """Draws while the present split was live: for keys seen at an earlier step, given what it showed."""
        chances = frozenset((split - known) / (1.0 - known) for known in (0.0, *steps) if known < split)
        return sum(table.at(chances) for table in self.tables)

    def lacking(self, one: Callable[[Table], float]) -> float:
        """Draws of both arms still needed, from what draws of independent coins need; inf if unknown.

        Keyless draws pool; each incarnation gathers evidence of its own on keys.
        """
        ways = [one(self.keyless)] if self.keyless.requests or not self.keyed else []
        if self.keyed:
            ways.append(sum(one(table) for table in self.keyed))
        return min(ways)


def _table(counts: Iterable[ArmCounts]) -> Table:
    sums: dict[float, list[list[int]]] = {}
    for one in counts:
        arms = sums.setdefault(one.split, [[0] * _FIELDS, [0] * _FIELDS])
        row = arms[0 if one.arm == "challenger" else 1]
        for number, value in enumerate((one.requests, one.answered, one.errors, *one.slow)):
            row[number] += value
    splits = tuple(sorted(sums))
    table = np.array([sums[split] for split in splits], float).reshape(len(splits), 2, _FIELDS)
    return Table(splits, np.ascontiguousarray(table.transpose(1, 2, 0)))


def share_of(events: Counts, requests: int) -> float:
    """Share of both arms' draws that showed an event; 0 without any draws."""
    total = float(events.challenger.sum() + events.champion.sum())
    return total / requests if requests else 0.0
