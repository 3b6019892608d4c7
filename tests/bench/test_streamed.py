"""The experiment on streamed features: both ways get the same rows."""

import torch

from bench.experiments import streamed


def test_both_ways_measure_the_same_rows(capsys):
    rows = streamed.all_rows(600, 3, 1)
    index = torch.cat([index for _, index in streamed.batches(600, 3, 1)])
    assert torch.equal(streamed.running(600, 3, 1)[0].rows, rows.double()[streamed.running(600, 3, 1)[0].index])
    assert torch.equal(index, torch.arange(600))
    wanted = streamed.by_torchmetrics(600, 3)
    for way in streamed.WAYS:
        assert abs(streamed.distance(way, 600, 3) / wanted - 1) < 1e-9
    assert streamed.reordered(600, 3) < 1e-12
    streamed.one("streamed", 100, 3)
    assert '"KiB": ' in capsys.readouterr().out
