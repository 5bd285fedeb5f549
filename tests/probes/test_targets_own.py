"""A checkpoint whose own alignment has no gradient of one sample."""

from __future__ import annotations

from pathlib import Path

import pytest

from gsnr.probes import alignment
from gsnr.probes.common.command import main as probe
from gsnr.probes.common.options import TargetOptions
from gsnr.probes.common.subject import load
from gsnr.train.command import main as train
from tests.conftest import call


def test_it_is_refused_by_name_and_never_taken_for_another(tmp_path: Path) -> None:
    words = ("--preset", "smoke", "--alignment", "spare", "--alignment.across", "1", "--steps", 1, "--trackers", "none", "--out", tmp_path / "run")
    assert call(train, *words) == 0
    with pytest.raises(ValueError, match=r"--targets own: .*run.* is coupled"):
        call(probe, "--ckpt", tmp_path / "run", "--probe", "alignment", "--targets", "own", "--out", tmp_path / "out")
    subject = load(tmp_path / "run", data=None, vae_name=None, model=None, weights="ema")
    said = "\n".join(alignment.plan(subject, TargetOptions()))
    assert "left out: the checkpoint's own alignment is coupled" in said and "spare" not in said.split("targets:")[1].split("\n")[0]
