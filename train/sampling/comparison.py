"""Grids of several checkpoints from the same noise (paper, Fig. H.6): a row a method, a column a class, or a class at a step of the training.

A column's noise is that of its class, whatever the checkpoint, the step and the other classes; so is that of the steps of an SDE.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from gsnr.train.sampling import recipe
from gsnr.train.sampling.recipe import Recipe
from gsnr.train.sampling.run import to_device
from gsnr.train.sampling.subject import Subject, open_subject, with_prompts

HEAD, LETTER = 18, 7  # pixels above the images; of a letter's width


def at_step(run: Path, step: int | None) -> Path:
    """A run's checkpoint of that step. Raises ValueError listing those that are there."""
    if step is None:
        return run
    kept = {int(path.name): path for path in (run / "checkpoints").glob("*") if path.name.isdecimal()}
    if step not in kept:
        raise ValueError(f"--at-steps {step}: {run} has {', '.join(map(str, sorted(kept))) or 'no checkpoints'}")
    return kept[step]


def row(opened: list[Subject], by: Recipe, classes: tuple[int, ...], device: str) -> np.ndarray:
    """(K,H,W,3): of each class, of each of a method's checkpoints."""
    found = []
    for subject in opened:
        to_device(subject, device)
        x = recipe.latents(subject, by, np.array(classes, dtype=np.int64), device)
        found.append(recipe.images(subject, by, x, 0))
        subject.loaded.model.to("cpu")
    return np.stack(found, axis=1).reshape(-1, *found[0].shape[1:])


def sheet(rows_RKHWC: np.ndarray, names: list[str], heads: list[str]) -> Image.Image:
    """R rows of K uint8 images, with a name before each row and a head above each column."""
    rows, columns, h, w, _ = rows_RKHWC.shape
    margin = LETTER * max(map(len, names)) + LETTER
    drawn = Image.new("RGB", (margin + columns * w, HEAD + rows * h), "white")
    drawn.paste(Image.fromarray(rows_RKHWC.transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, 3)), (margin, HEAD))
    draw = ImageDraw.Draw(drawn)
    for place, name in enumerate(names):
        draw.text((margin // 2, HEAD + (place + 0.5) * h), name, fill="black", anchor="mm")
    for place, head in enumerate(heads):
        draw.text((margin + (place + 0.5) * w, HEAD // 2), head, fill="black", anchor="mm")
    return drawn


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The columns: classes, or numbers of prompts; words, prompts, encoder: --classes, --prompts and --text-encoder as given."""

    classes: tuple[int, ...]
    words: str | None = None
    prompts: Path | None = None
    encoder: str | None = None


def comparison(paths: list[Path], steps: list[int | None], by: Recipe, asked: Asked, weights: str, vae: str | None, device: str) -> Image.Image:
    """by: of classes `balanced`, so that sample c is of class c, or of prompt c. Raises ValueError for a checkpoint that is missing, or whose
    images are of another size than the first's."""
    rows, names, side = [], [], 0
    for path in tqdm(paths, desc="sampling", unit="method", leave=False):
        found = (open_subject(at_step(path, step), weights, vae, other=True) for step in steps)
        opened = [with_prompts(subject, asked.prompts, None, asked.words, asked.encoder) for subject in found]
        for subject in opened:
            subject.check(by.guidance, () if subject.reads_text else asked.classes)
            side = side or subject.side
            if subject.side != side:
                raise ValueError(f"--ckpt {path}: draws images of {subject.side} pixels a side, {paths[0]} of {side}")
        rows.append(row(opened, by, asked.classes, device))
        names.append(opened[0].loaded.run_name)
    heads = [f"{c}" if step is None else f"{c} @ {step}" for c in asked.classes for step in steps]
    return sheet(np.stack(rows), names, heads)
