"""Locks on open files, which the system takes back when a process ends, however that happens."""

from __future__ import annotations

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def lock(handle: int) -> bool | None:
    """Lock an open file or folder until it is closed, without waiting.

    Returns whether that worked: False where someone else has it, None where the platform or the file
    system knows no such locks.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
