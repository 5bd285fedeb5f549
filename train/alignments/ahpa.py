"""AHPA: hidden states pulled towards a timestep-routed mixture of mid and deep VAE features (AHPA Eq. 2-5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from gsnr import table
from gsnr.options import option
from gsnr.train.alignments._learned import LearnedAlignment, LearnedConfig
from gsnr.train.alignments._routed import SOURCES
from gsnr.train.config import ModelConfig
from gsnr.train.routers._encodings import ENCODINGS

LABEL = "AHPA"


@dataclass(frozen=True, kw_only=True)
class Config(LearnedConfig):
    router: str = option("mlp", "what makes the mixture weights (Table D.17)", "routers")
    router_depth: int = option(4, "linear layers of the router's MLP (Tables A.9, D.17)", low=1, high=64)
    t_encoding: str = option("linear", "how the router reads t (Table D.17)", tuple(ENCODINGS))
    router_table: str = option("", "of router table: mixture.parquet of `gsnr probe --probe mixture`, kept in the run's configuration (ours)")
    table_metric: str = option("weight", "weights of that table: by descent of denoising a unit of noise, or by G-SNR alone", ("weight", "agnostic"))
    table_edges: tuple[float, ...] = option((), "of router table: edges of bins of t, read from the table")
    table_weights: tuple[float, ...] = option((), "of router table: for each bin a weight of each group, read from the table")

    def for_depth(self, depth: int) -> Self:
        made = super().for_depth(depth)
        if (self.router == "table") != bool(self.router_table or self.table_edges):
            raise ValueError("alignment.router_table: goes with alignment.router table, and that needs it")
        if not self.router_table:
            return made
        edges, weights = mixture_weights(Path(self.router_table), SOURCES[self.source], self.table_metric)
        return replace(made, router_table="", table_edges=edges, table_weights=weights)


def mixture_weights(path: Path, sources: tuple[str, ...], metric: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Edges of the bins, and the weights of these groups bin by bin. Raises ValueError, naming the file, for a table that is not there, is not of one
    checkpoint, of bins that are not all of t, or of other groups."""
    rows = table.read(path, "mixture")
    rows = rows[(rows["metric"] == metric)].sort_values("bin")
    bins = rows[["bin", "t_low", "t_high"]].drop_duplicates().sort_values("bin")
    edges = (*map(float, bins["t_low"]), *map(float, bins["t_high"][-1:]))
    if set(rows["target"]) != set(sources) or len(rows) != len(bins) * len(sources):
        found = ", ".join(dict.fromkeys(rows["target"]))
        raise ValueError(f"alignment.router_table {path}: has weights of {found}, not of {', '.join(sources)} of one checkpoint")
    if (edges[0], edges[-1]) != (0.0, 1.0) or list(bins["t_high"][:-1]) != list(bins["t_low"][1:]):
        raise ValueError(f"alignment.router_table {path}: its bins are not all of t; probe bins from 0 to 1")
    by_group = {source: rows[rows["target"] == source]["value"].tolist() for source in sources}
    return edges, tuple(float(by_group[source][b]) for b in range(len(bins)) for source in sources)


class Alignment(LearnedAlignment):
    def __init__(self, config: Config, model: ModelConfig, groups: Mapping[str, tuple[int, ...]]) -> None:
        of_router = {"depth": config.router_depth, "encoding": config.t_encoding}
        super().__init__(config, model, groups, router=config.router, **of_router, table_edges=config.table_edges, table_weights=config.table_weights)
