"""Runs of routed models (DAR): training, going on, alignments, and the start from a plain checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gsnr import plugins, table
from gsnr.options import kinds
from gsnr.probes.common.command import main as probe
from gsnr.train.command import main as train
from gsnr.train.runs import checkpoint
from gsnr.train.trainer import make_objective, start_from
from tests.conftest import call


def test_it_trains_resumes_and_is_probed(tmp_path: Path) -> None:
    """With an alignment; 3 steps and 3 more are 6 bit for bit, and a probe measures its own target."""
    model = ("--model.residual", "dar", "--model.queries", "dynamic", "--model.chunk", 2, "--model.query-std", 0.5)
    words = ("--preset", "smoke", *model, "--trackers", "none", "--save-every", 3, "--optim.warmup", 0)  # gates begin at 0
    assert call(train, *words, "--steps", 6, "--out", tmp_path / "whole") == 0
    assert call(train, *words, "--steps", 3, "--out", tmp_path / "run") == 0
    assert call(train, *words, "--steps", 6, "--out", tmp_path / "run", "--resume") == 0
    whole, run = (checkpoint.load(tmp_path / name, "raw").model.state_dict() for name in ("whole", "run"))
    assert set(whole) == set(run) and all(torch.equal(whole[name], run[name]) for name in whole)
    assert whole["routing.aggregators.3.query"].abs().max() > 0, "it learnt"
    small = ("--bins", 1, "--n-images", 8, "--fit-samples", 128, "--controls", "none", "--targets", "own")
    assert call(probe, "--ckpt", tmp_path / "run", "--probe", "alignment,denoising", *small) == 0
    groups = [set(table.read(tmp_path / "run" / "probes" / f"{name}.parquet")["group"]) for name in ("alignment", "denoising")]
    assert all("routing" in found for found in groups)


@pytest.mark.parametrize("name", sorted(set(plugins.names("alignments")) - {"none", "multi", "attention", "pooled", "repi"}))
def test_every_alignment_trains_a_step_on_it(name: str, tmp_path: Path) -> None:
    """Whose features the demo's data hold."""
    words = ("--preset", "smoke", "--alignment", name, "--model.residual", "dar", "--trackers", "none", "--steps", 1, "--out", tmp_path / "run")
    narrow = ("--alignment.projector-width", 16) if "projector_width" in kinds(plugins.find("alignments", name).Config) else ()
    assert call(train, *words, *narrow, "--model.chunk", 2) == 0


@pytest.mark.parametrize(("chunk", "queries"), [(0, "dynamic"), (2, "static")])
def test_a_start_from_a_plain_model(chunk: int, queries: str, smoke_run: Path) -> None:
    """Same function, but for eps of LayerNorm."""
    was = checkpoint.load(smoke_run, "ema")
    options = {"residual": "dar", "chunk": chunk, "summary": "sum", "queries": queries}
    config = replace(was.config, model=replace(was.config.model, **options))
    assert was.header is not None
    made = make_objective(config, was.header)
    start_from(smoke_run, made, config)
    generator = torch.Generator().manual_seed(0)
    given = (torch.randn(4, 4, 8, 8, generator=generator), torch.rand(4, generator=generator), torch.arange(4))
    with torch.no_grad():
        torch.testing.assert_close(made.model(*given), was.model(*given), rtol=2e-4, atol=2e-5)
    for changes, said in (
        ({"queries": "static_t"}, "static_t adds the time embedding"),
        ({"query_std": 0.1}, "--model.query-std is 0.1, not 0"),
        ({"chunk": 2, "summary": "last"}, "--model.summary last forgets"),
        ({"depth": 2}, "its model's depth is 3, this run's 2"),
    ):
        with pytest.raises(ValueError, match=said):
            start_from(smoke_run, made, replace(config, model=replace(config.model, **changes)))
