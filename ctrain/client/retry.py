"""One call over HTTP, repeated until it is answered or its deadline has passed.

Takes a request that may be sent more than once (every POST of ctrain is idempotent), gives the first
answer that is one. What counts as none: a broken connection, 502, 503, 504, and a 500 without
`x-request-id`, which HAProxy makes itself when the replica died under the request.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping

import httpx2

from ctrain.errors import UnavailableError

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


class Retrier:
    """Sends requests with back-off.

    Args:
        http: The connection pool.
        deadline: Seconds after which a call is given up, pauses included.
        clock: Monotonic seconds.
        sleep: Waits so many seconds.
        jitter: Draws from [0, 1), so that many clients do not come back at one moment.
    """

    def __init__(
        self,
        http: httpx2.Client,
        deadline: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._http, self._deadline = http, deadline
        self._clock, self._sleep, self._jitter = clock, sleep, jitter

    def send(
        self, method: str, url: str, content: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx2.Response:
        """Send until answered.

        Raises:
            UnavailableError: if nothing answered before the deadline; it quotes the last problem.
        """
        end = self._clock() + self._deadline
        pause = _FIRST_PAUSE
        while True:
            left = max(0.001, end - self._clock())
            wanted = 0.0
            try:
                response = self._http.request(
                    method, url, content=content, headers=dict(headers or {}), timeout=left
                )
            except (httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
                raise UnavailableError(url, f"is no address: {error}") from None
            except httpx2.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if not _is_none(response):
                    return response
                problem, wanted = f"answered {response.status_code}", _retry_after(response)
                said = _said(response)
                problem += f" ({said})" if said else ""
            wait = max(wanted, pause * (0.5 + 0.5 * self._jitter()))
            if self._clock() + wait >= end:
                raise UnavailableError(url, f"{problem}, given up after {self._deadline:g} s")
            self._sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _is_none(response: httpx2.Response) -> bool:
    if response.status_code in (502, 503, 504):
        return True
    return response.status_code == 500 and "x-request-id" not in response.headers


def _retry_after(response: httpx2.Response) -> float:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdigit() and len(text) < 6 else 0.0


def _said(response: httpx2.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return ""
    return str(body.get("error", "")) if isinstance(body, dict) else ""
