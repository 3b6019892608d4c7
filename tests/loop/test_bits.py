"""Bits of every op and of `sample` equal the recorded ones.

So a seed gives the same result before and after a change.
"""

import json

import pytest
import records

from gms_fast.ops import native

RECORDED = json.loads(records.FILE.read_text())
CALLS = records.all_of()


@pytest.mark.skipif(not native.available, reason="the record is of the compiled kernels")
@pytest.mark.parametrize("name", RECORDED)
def test_bits_are_those_on_record(name):
    assert records.digest(CALLS[name]()) == RECORDED[name]


def test_every_call_is_on_record():
    assert CALLS.keys() == RECORDED.keys()
