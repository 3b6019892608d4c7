"""Bars, which a release should pass, and aims for figures."""

from typing import NamedTuple


class Bar(NamedTuple):
    """`value` should be at most (or at least) `bar`, better still `aim`."""

    name: str
    value: float
    bar: float
    aim: float
    at_most: bool
    bound_by: str = ""  # "host": the GPU waited for the host

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
    """The bound of a figure made of these rows, if it is not the GPU."""
    return next((row["bound by"] for row in rows if "bound by" in row), "")


def ratio(rows: list[dict], over: str, under: str, bar: float, aim: float, *, at_most: bool) -> list[Bar]:
    """The bar on time(over)/time(under), if both were measured."""
    measured = {row["name"]: row for row in rows}
    if not {over, under} <= measured.keys():
        return []
    a, b = measured[over], measured[under]
    return [Bar(f"{over} / {under}", a["over_randn"][1] / b["over_randn"][1], bar, aim, at_most, bound_by(a, b))]
