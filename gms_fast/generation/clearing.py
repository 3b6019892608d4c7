"""Deletion of a run and nothing else from its folder."""

import os
from pathlib import Path

from gms_fast.generation import settings
from gms_fast.generation.shards import FORMS, Cut
from gms_fast.storage import atomic
from gms_fast.storage.claims import Claims


def clear(out: Path) -> None:
    """Delete the run in a folder, if there is one. Raises BlockingIOError while another process draws there."""
    if (found := settings.stored(out)) is None:
        return
    shards = FORMS[found["form"]](out, Cut(found["n"], found["shard_size"]), (), "")
    with Claims(out / settings.CLAIMS) as claims:
        if busy := [name for name in sorted(os.listdir(claims.folder)) if not claims.take(name)]:
            raise BlockingIOError(f"out: {out} is in use by a process that draws {busy[0]}: wait until it ends")
        for part in shards.there(os.listdir(out)):
            shards.remove(part)
        statistics = [f"{settings.MEASURED}/{path.name}" for path in (out / settings.MEASURED).glob("*.safetensors")]
        atomic.clear(out, [*statistics, settings.WHOLE])
        atomic.remove(out / settings.FILE)  # last, so that what is left after a kill is known for what it is
