"""The search of GMS's settings: its trials and its choice; nothing is drawn."""

from bench.experiments import settings
from gms_fast.quality import cells, subjects


def played(best):
    """Make records by a function of the cell instead of drawing samples."""

    def measured(todo):
        return [
            {**cell.fields, "calls": cell.steps + 1, "frechet": best(cell), "precision": 1, "recall": 1, "energy": 0}
            for cell in todo
        ]

    return measured


def test_the_least_distance_is_kept_at_every_stage():
    wanted = {"until=3 ": 4, "switch=1.5": 2, "fit=exact": 1, "clip_pixel=5": 0.5}

    def distance(cell):
        return 10 - sum(gain for part, gain in wanted.items() if part in cell.solver) + 0.1 * (cell.grid != "1.2")

    found = settings.search("digits", 5, played(distance))
    assert found["best"]["grid"] == "1.2"
    assert found["best"]["steps"] == 4
    assert all(part in found["best"]["solver"] for part in wanted)
    texts = [(row["solver"], row["grid"]) for row in found["tried"]]
    assert len(set(texts)) == len(texts)
    assert texts[0] == (found["best"]["solver"], "1.2")


def test_without_a_jump_no_covariance_is_added():
    found = settings.search("digits", 5, played(lambda cell: float("teleport" in cell.solver)))
    assert "teleport" not in found["best"]["solver"]
    assert not any("then gms:" in row["solver"] for row in found["tried"])


def test_all_that_is_begun_with_can_be_drawn():
    for choice in settings.begun():
        cells.check(choice.cell("digits", 5), settings.N, subjects.build("digits"))
