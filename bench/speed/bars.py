"""Bars and aims of figures: a release should pass every bar."""

from typing import NamedTuple


class Bar(NamedTuple):
    """A figure with the bar that it should pass and the aim beyond.

    Args:
        name: The figure.
        value: Its value.
        bar: Limit that a release should pass.
        aim: Better value to work towards.
        at_most: True if smaller is better.
        bound_by: "host" if the GPU waited for the host; else empty.
    """

    name: str
    value: float
    bar: float
    aim: float
    at_most: bool
    bound_by: str = ""

    @property
    def passed(self) -> bool:
        return self.value <= self.bar if self.at_most else self.value >= self.bar

    def as_json(self) -> dict[str, object]:
        shown = {**self._asdict(), "passed": self.passed}
        bound = shown.pop("bound_by")
        return shown | ({"bound by": bound} if bound else {})

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        by = abs(self.value / self.bar - 1)
        outcome = "pass" if self.passed else "MISS"
        bound = f", bound by the {self.bound_by}" if self.bound_by else ""
        return (
            f"{outcome} by {by:.0%}: {self.name} = {self.value:.3g} (bar {sign} {self.bar:g}, aim {self.aim:g}){bound}"
        )


def bound_by(*rows: dict) -> str:
    """Return the bound of a figure made of these rows, or "" if it is the GPU."""
    return next((row["bound by"] for row in rows if "bound by" in row), "")


def ratio(rows: list[dict], over: str, under: str, bar: float, aim: float, *, at_most: bool) -> list[Bar]:
    """Return the bar on time(over)/time(under), if both were measured."""
    measured = {row["name"]: row for row in rows}
    if not {over, under} <= measured.keys():
        return []
    a, b = measured[over], measured[under]
    return [Bar(f"{over} / {under}", a["over_randn"][1] / b["over_randn"][1], bar, aim, at_most, bound_by(a, b))]
