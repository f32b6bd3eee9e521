"""The console: rank 0 speaks, the others only of errors."""

from __future__ import annotations

import logging

import pytest

from minimind.runtime.logging import set_up_logging


@pytest.mark.parametrize(
    ("rank", "said"),
    [
        (0, ["plain", "careful", "broken"]),
        (3, ["rank 3: broken"]),
    ],
)
def test_what_each_rank_says(capsys: pytest.CaptureFixture[str], rank: int, said: list[str]):
    set_up_logging(rank)
    set_up_logging(rank)
    logger = logging.getLogger("minimind.test")
    logger.debug("detail")
    logger.info("plain")
    logger.warning("careful")
    logger.error("broken")
    captured = capsys.readouterr()
    assert captured.err.split("\n")[:-1] == said
    assert captured.out == ""


def test_other_packages_only_warn(capsys: pytest.CaptureFixture[str]):
    set_up_logging(0)
    logging.getLogger("matplotlib.font_manager").info("found a font")
    logging.getLogger("matplotlib.font_manager").warning("found no font")
    assert capsys.readouterr().err == "found no font\n"
