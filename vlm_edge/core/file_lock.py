"""One writer at a time, by a lock that the system drops when its process ends, however that comes."""

from __future__ import annotations


def lock_exclusively(handle: int) -> bool:
    """Lock an open file; False where another process holds it.

    Windows has no such locks: there, two writers at once are the user's to avoid.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
