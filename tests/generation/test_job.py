"""Run in its folder: shares of its parts, and their progress."""

import pytest

from gms_fast.generation.job import Share


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_shares_have_every_part_once_and_are_about_equal(count):
    for n in range(1, min(count, 9) + 1):
        shares = [Share.of(f"{k}/{n}").parts(count) for k in range(1, n + 1)]
        assert sorted(part for share in shares for part in share) == [*range(count)]
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["1/1", " 1/1 ", "2/3", "03/8"])
def test_share_is_read(text):
    k, n = map(int, text.split("/"))
    assert Share.of(text) == Share(k, n)


@pytest.mark.parametrize(
    "text", ["", "1", "/", "1/", "/2", "3/2", "0/2", "0/0", "1/-2", "1.0/2", "1/2/3", "a/b", "²/3"]
)
def test_what_is_no_share_is_refused(text):
    with pytest.raises(ValueError, match="shard must be K/N with K from 1 to N, such as 3/8: got "):
        Share.of(text)


def test_more_shares_than_parts_are_refused():
    with pytest.raises(ValueError, match="shard must be K/N with N at most 3, the number of shards: got 1/4"):
        Share(1, 4).parts(3)
