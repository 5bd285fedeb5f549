"""Parameter groups of a SiT, by parameter name: what the column `group` of every G-SNR table holds."""

from __future__ import annotations

BACKBONE = "backbone"  # the label that becomes the table's group "all"
LABEL = "label"
KINDS = {"attn": "attention", "mlp": "MLP", "adaLN_modulation": "adaLN"}  # of a block's parameters


def groups_of(name: str, last_block: int) -> tuple[str, ...]:
    """Labels of a parameter of the backbone up to block `last_block` (1-based): the backbone, its block, its kind; the label embedding is a
    group of its own and no part of the backbone. () for what lies above."""
    if name.startswith("y_embedder."):
        return (LABEL,)
    if name.startswith(("x_embedder.", "t_embedder.")):
        return (BACKBONE, "embedders")
    if not name.startswith("blocks."):
        return ()
    _, number, part, *_ = name.split(".")
    block = int(number) + 1
    return (BACKBONE, f"block {block}", KINDS[part]) if block <= last_block else ()


def in_table(label: str) -> str:
    """A label as the table calls it."""
    return "all" if label == BACKBONE else label
