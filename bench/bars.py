"""What a figure should reach: a bar, which a release should pass, and an aim."""

from typing import NamedTuple


class Bar(NamedTuple):
    """`value` should be at most (or at least) `bar`, better still `aim`."""

    name: str
    value: float
    bar: float
    aim: float
    at_most: bool

    @property
    def passed(self) -> bool:
        return self.value <= self.bar if self.at_most else self.value >= self.bar

    def as_json(self) -> dict[str, object]:
        return {**self._asdict(), "passed": self.passed}

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        by = abs(self.value / self.bar - 1)
        outcome = "pass" if self.passed else "MISS"
        return f"{outcome} by {by:.0%}: {self.name} = {self.value:.3g} (bar {sign} {self.bar:g}, aim {self.aim:g})"


def ratio(rows: list[dict], over: str, under: str, bar: float, aim: float, *, at_most: bool) -> list[Bar]:
    """The bar on time(over)/time(under), if both were measured."""
    median = {row["name"]: row["over_randn"][1] for row in rows}
    if not {over, under} <= median.keys():
        return []
    return [Bar(f"{over} / {under}", median[over] / median[under], bar, aim, at_most)]
