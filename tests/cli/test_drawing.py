"""Names of partial results, and messages that count them."""

from gms_fast.cli import drawing


def test_names_that_are_spare_are_those_at_which_nothing_is(tmp_path):
    out = tmp_path / "x.v2.PNG"
    for name in ("x.v2.part.PNG", "x.v2.part-2.PNG", "x.v2.part-3.PNG"):
        found = drawing.spare(out, out.suffix)
        assert found.name == name
        found.symlink_to("nowhere")
    folder = tmp_path / "results.v2"
    (tmp_path / "results.v2.part").mkdir()
    assert drawing.spare(folder) == tmp_path / "results.v2.part-2"


def test_one_thing_is_not_several():
    assert [drawing.counted(n) for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [drawing.whole(n) for n in (1, 2)] == ["the image is", "all 2 images are"]
    assert drawing.share(1, 2) == "1 of 2 images, the first one, is"
    assert drawing.share(2, 2) == drawing.whole(2)
    assert drawing.share(2, 6, " of --seed 3") == "2 of 6 images, the first ones of --seed 3, are"
