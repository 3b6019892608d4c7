"""Queue of missing parts, with claims and a clock of the test's own."""

import time

import pytest

from gms_fast.generation import queue
from gms_fast.generation.queue import LEAST, PATIENCE, Queue


class World:
    """Folder, claims and time as processes see them; `events` happen at their times."""

    def __init__(self):
        self.now, self.done, self.claims, self.events, self.looks = 0.0, set(), {}, [], 0

    def sleep(self, seconds):
        self.now += seconds
        while self.events and self.events[0][0] <= self.now:
            self.events.pop(0)[1]()

    def look(self):
        self.looks += 1
        assert self.looks < 10_000, "it never ends"
        return set(self.done)


class Owner:
    """Claims of one process: dead ones are free, others after a given time."""

    def __init__(self, world, who):
        self.world, self.who = world, who

    def clock(self):
        return self.world.now

    def names(self):
        return set(self.world.claims)

    def take(self, name, *, slow=None):
        if name in self.world.claims:
            who, since = self.world.claims[name]
            late = slow is not None and self.world.now - since > slow
            if who == self.who or (who != "dead" and not late):
                return False
        self.world.claims[name] = (self.who, self.world.now)
        return True

    def drop(self, name):
        if self.world.claims.get(name, ("",))[0] == self.who:
            del self.world.claims[name]

    def sweep(self, done):
        for name in done & self.world.claims.keys():
            if self.world.claims[name][0] != self.who:
                del self.world.claims[name]


@pytest.fixture
def world(monkeypatch):
    world = World()
    monkeypatch.setattr(time, "sleep", world.sleep)
    return world


def process(world, parts, who="me", seconds=1.0):
    """Parts that a process completes in order, each in a given number of seconds."""
    owner = Owner(world, who)
    for part in Queue(parts, world.look, lambda part: part in world.done, str, owner):
        yield part
        world.sleep(seconds)
        world.done.add(part)
        owner.drop(str(part))


def test_process_alone_does_every_part_once_in_its_order(world):
    assert [*process(world, [3, 1, 2, 0])] == [3, 1, 2, 0]
    assert world.now == 4.0
    assert world.claims == {}


def test_nothing_is_left_to_do_where_all_is_done(world):
    world.done = {0, 1, 2}
    assert [*process(world, [0, 1, 2])] == []
    assert world.now == 0


def test_what_is_no_part_of_this_process_is_left_alone(world):
    world.done, world.claims = {5}, {"6": ("other", 0.0)}
    assert [*process(world, [0, 2])] == [0, 2]
    assert world.claims == {"6": ("other", 0.0)}


def test_processes_that_are_alive_and_quick_do_nothing_twice(world):
    parts, found = [*range(12)], []
    ranks = {who: process(world, parts[4 * i :] + parts[: 4 * i], who, 0.0) for i, who in enumerate("abc")}
    while ranks:
        for who, rank in [*ranks.items()]:
            if len(found) == 12 or (part := next(rank, None)) is None:
                del ranks[who]
            else:
                found.append(part)
    assert sorted(found) == parts


def test_part_that_another_has_is_waited_for(world):
    world.claims = {"1": ("other", 0.0)}

    def finish():
        world.done.add(1)
        del world.claims["1"]

    world.events = [(3.5, finish)]
    assert [*process(world, [0, 1, 2])] == [0, 2]
    assert 3.5 <= world.now < 8


def test_part_that_was_done_since_the_last_look_is_not_done_again(world):
    found = process(world, [0, 1, 2])
    assert next(found) == 0
    world.done.add(1)  # while this process draws
    assert [*found] == [2]
    assert world.claims == {}


def test_part_of_a_process_that_died_is_done(world):
    world.claims = {"0": ("dead", 0.0), "2": ("dead", 0.0)}
    assert sorted(process(world, [0, 1, 2])) == [0, 1, 2]
    assert world.claims == {}


def test_part_of_a_process_that_dies_meanwhile_is_done(world):
    world.claims = {"1": ("other", 0.0)}
    world.events = [(2.5, lambda: world.claims.update({"1": ("dead", 0.0)}))]
    assert [*process(world, [0, 1])] == [0, 1]
    assert world.now < LEAST + 1


def test_claim_that_is_given_up_without_work_is_done(world):
    """The process was interrupted, or its disk was full."""
    world.claims = {"1": ("other", 0.0)}
    world.events = [(2.5, world.claims.clear)]
    assert [*process(world, [0, 1])] == [0, 1]


@pytest.mark.parametrize("seconds", [0.1, 10.0])
def test_part_of_a_process_that_is_much_slower_is_done_too(world, seconds):
    world.claims = {"1": ("slow", 0.0)}
    assert [*process(world, [0, 1, 2], seconds=seconds)] == [0, 2, 1]
    least = max(LEAST, PATIENCE * seconds)
    assert least < world.now - seconds < least + queue._POLL[1] + 2 * seconds


def test_process_that_has_done_nothing_knows_not_who_is_slow(world):
    world.claims = {"0": ("slow", 0.0)}
    world.events = [(1000.0, lambda: world.done.add(0))]
    assert [*process(world, [0])] == []
    assert world.now >= 1000


def test_looks_are_rare_while_it_waits(world):
    world.claims = {"0": ("slow", 0.0)}
    world.events = [(100.0, lambda: world.done.add(0))]
    assert [*process(world, [0])] == []
    assert world.looks < 70
    assert world.now < 103


def test_claims_that_the_dead_left_on_what_is_done_are_swept(world):
    world.done, world.claims = {0}, {"0": ("dead", 0.0)}
    assert [*process(world, [0, 1])] == [1]
    assert world.claims == {}


def test_list_that_is_that_of_a_while_ago_is_not_asked_over_and_over(world):
    """Network file systems return such outdated lists."""
    world.done, look = {0, 1}, world.look
    world.look = lambda: look() if world.now > 30 else set()
    assert [*process(world, [0, 1])] == []
    assert world.looks < 10
    world.done = {0}
    world.now = 0.0
    assert [*process(world, [0, 1])] == [1]


def test_part_that_was_just_finished_is_no_reason_to_wait_for_others(world):
    """One part is done since the listing, some are claimed, and many are free."""
    world.claims = {str(part): ("other", 0.0) for part in range(8)}
    world.events = [(1000.0, lambda: world.done.update(range(8)))]
    found, look = process(world, [*range(8), 8, *range(9, 20)]), world.look
    world.look = lambda: look() - {8}
    world.done = {8}
    assert [next(found) for _ in range(11)] == [*range(9, 20)]
    assert world.now < 20


def test_part_that_is_finished_while_it_is_taken_over_is_not_done_again(world):
    world.claims = {"1": ("other", 0.0)}
    taken = Owner.take

    def take(self, name, *, slow=None):
        got = taken(self, name, slow=slow)
        if got and name == "1":
            world.done.add(1)
        return got

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Owner, "take", take)
        assert [*process(world, [0, 1])] == [0]
    assert world.claims.keys() <= {"1"}
