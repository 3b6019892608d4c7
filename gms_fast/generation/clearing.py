"""Deletion of a run, and of nothing else, from its folder."""

import os
import time
from pathlib import Path

from gms_fast.generation import settings
from gms_fast.generation.shards import FORMS, Cut
from gms_fast.storage import atomic
from gms_fast.storage.claims import BEAT, EXPIRES, Claims

_POLL = 0.5  # seconds


def clear(out: Path) -> None:
    """Delete the run in a folder, if there is one.

    Raises BlockingIOError if another process is drawing there.
    """
    if (found := settings.stored(out)) is None:
        return
    shards = FORMS[found["form"]](out, Cut(found["n"], found["shard_size"]), (), "")
    with Claims(out / settings.CLAIMS) as claims:
        _hold_all(out, claims)
        for part in shards.there(os.listdir(out)):
            shards.remove(part)
        statistics = [f"{settings.MEASURED}/{path.name}" for path in (out / settings.MEASURED).glob("*.safetensors")]
        atomic.clear(out, [*statistics, settings.WHOLE])
        shards.sweep(lambda name: False)
        atomic.remove(out / settings.FILE)  # last, so that what a kill leaves is still known as a run


def _hold_all(out: Path, claims: Claims) -> None:
    """Take over all claims; those of other machines after they expire.

    Raises BlockingIOError for a live claim.
    """
    deadline = time.monotonic() + EXPIRES + BEAT
    while busy := [name for name in sorted(claims.names()) if not claims.take(name) and not claims.ours(name)]:
        if time.monotonic() > deadline or any(map(claims.is_here, busy)):
            raise BlockingIOError(f"out: {out} is in use by a process that is drawing {busy[0]}: wait for it to finish")
        time.sleep(_POLL)
