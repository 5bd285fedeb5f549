"""Parameter groups of a backbone, by parameter name: what the column `group` of G-SNR tables and the lines of gsnr.jsonl mean.

"backbone" is the embedders of patches, time and extra token, the blocks, the aggregators of a routed model ("routing") and the final layer; the
embedding of what the model is told, label or text, is a group of its own. Of an MMDiT's block, patches ("x") and text ("context") are groups too.
"""

from __future__ import annotations

BACKBONE = "backbone"  # the label that becomes the table's group "all"
LABEL, TEXT = "label", "text"
STREAMS = ("x", "context")  # of an MMDiT's block
KINDS = {"attn": "attention", "mlp": "MLP", "adaLN_modulation": "adaLN"}  # of a block's parameters


def groups_of(name: str, last_block: int | None = None) -> tuple[str, ...]:
    """Labels of a parameter: the backbone, its block, its kind. last_block: the gradient reaches no further than this block (1-based), and what
    lies above is in no group: ()."""
    if name.startswith("y_embedder."):
        return (LABEL,)
    if name.startswith("context_embedder."):
        return (TEXT,)
    if name.startswith(("x_embedder.", "t_embedder.", "extra_embedder.")):
        return (BACKBONE, "embedders")
    if name.startswith("final_layer."):
        return (BACKBONE, "final layer") if last_block is None else ()
    if name.startswith("routing.aggregators."):  # number i gives what sublayer i + 1 reads: 2 k gives what block k leaves
        return (BACKBONE, "routing") if last_block is None or int(name.split(".")[2]) <= 2 * last_block else ()
    _, number, *parts = name.split(".")
    block = int(number) + 1
    if last_block is not None and block > last_block:
        return ()
    of_stream = (f"{parts.pop(0)} of block {block}",) if parts[0] in STREAMS else ()
    return (BACKBONE, f"block {block}", *of_stream, KINDS[parts[0]])


def in_table(label: str) -> str:
    """A label as the table calls it."""
    return "all" if label == BACKBONE else label
