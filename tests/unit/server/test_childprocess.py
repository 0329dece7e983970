"""What the lines of a child process say."""

from __future__ import annotations

from fewstep.server import childprocess


def test_lines_that_tell_how_far_it_is() -> None:
    assert childprocess.said("fewstep: 12 of 600 images, 3.0 images/s") == childprocess.Said(
        "12 of 600 images, 3.0 images/s", 12, 600
    )
    assert childprocess.said("fewstep: encoding 3/5").done == 3
    assert childprocess.said("fewstep: a 16/9 picture").done is None
