"""Which arm of a rollout answers a request: a hash of rollout and key, without any state."""

from __future__ import annotations

import hashlib
import random

_RANGE = float(1 << 64)


def challenger_answers(rollout: str, key: str | None, split: float) -> bool:
    """Say whether the challenger answers a request.

    The same key falls the same way in every replica, a larger split keeps all keys of a smaller one
    (steps nest), and two rollouts draw independently.

    Args:
        rollout: Id of the rollout under way.
        key: The request's key, e.g. a user; None or empty draws at random.
        split: Share of the challenger, in [0, 1].
    """
    if split <= 0.0:
        return False
    if not key:
        return random.random() < split
    digest = hashlib.blake2b(f"{rollout}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / _RANGE < split
