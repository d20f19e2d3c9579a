"""Follow a retrain through the journal: which run is its own, which version came of it, how that ended."""

from __future__ import annotations

from ctrain.records import Json


class Retrain:
    """What an operator's retrain has come to, told event by event.

    A run that failed is tried again under the same id with the next attempt's number, so the run is known
    by its id without the number.

    Args:
        reason: The retrain's; the run that it begins carries it.
    """

    def __init__(self, reason: str) -> None:
        self._reason = reason
        self._run = self._version = self._label = ""

    def ended(self, line: Json) -> bool | None:
        """Take the next event, as `why` tells it.

        Returns:
            True once the version was promoted, False once it is certain that it will not be, None before.
        """
        kind: str = line["kind"]
        data: Json = line["data"]
        match kind:
            case "pipeline_stopped":
                return False
            case "run_started":
                asked = (data.get("trigger"), data.get("reason")) == ("operator", self._reason)
                if asked and not self._run:
                    self._run = _without_attempt(data["request"]["run_id"])
            case "run_finished" if self._ours(data):
                self._version, self._label = data["version"], data["label"]
            case "run_given_up" if self._ours(data):
                return False
            case "gate_decided" if data["decision"]["version"] == self._version:
                return None if data["decision"]["verdict"] == "accept" else False
            case "alert" if data["alert"] == "gate" and self._version:
                # it could not be judged, or is held although it was accepted
                return False if data["text"].startswith(f"{self._label} ") else None
            case "promoted" | "aborted" if data["version"] == self._version:
                return kind == "promoted"
        return None

    def _ours(self, data: Json) -> bool:
        return bool(self._run) and _without_attempt(data["run_id"]) == self._run


def _without_attempt(run_id: str) -> str:
    return run_id.rpartition("-")[0]
