"""What a worker says to its broker."""

from __future__ import annotations

import threading
from typing import Any

from tfpool.shm.doorbell import Doorbell
from tfpool.wire.messages import Bell, pack


class Voice:
    """Speaks from any thread; what is said to a broker that is gone is lost.

    ``reign`` counts the brokers. Its number marks an order, so that the answer reaches who gave it, or nobody. ``lock``
    holds all talk up while it is held.
    """

    def __init__(self, bell: Doorbell) -> None:
        self.bell = bell
        self.reign = 0
        self.lock = threading.RLock()

    def say(self, verb: Bell, *fields: Any, fds: tuple[int, ...] = ()) -> None:
        """Tell the broker that there is now; the descriptors stay the caller's."""
        with self.lock:
            try:
                self.bell.ring(pack([verb, *fields]), fds)
            except (BrokenPipeError, ConnectionResetError):
                pass

    def answer(self, reign: int, verb: Bell, *fields: Any) -> bool:
        """Tell the broker of a reign; False if that is over."""
        with self.lock:
            if reign != self.reign:
                return False
            self.say(verb, *fields)
            return True

    def turn_to(self, bell: Doorbell) -> None:
        """Speak to a new broker from now on."""
        with self.lock:
            self.bell.close()
            self.bell = bell
            self.reign += 1
