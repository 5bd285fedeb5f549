"""Figures: one file each, found by name. A file has

TABLE                  the probe whose table it reads (`RUN/probes/<TABLE>.parquet`)
TITLE                  what it shows, in a few words
CAPTION                plain sentences: how to read it
draw(table) -> Figure  a function of that table alone; never touches torch or the disk. ValueError where the table has nothing to draw

and, where they are needed,

KIND                   "metrics", "samples" or "maps": it reads `<TABLE>.<KIND>.parquet` instead
BESIDE                 another probe's name: the rows of its table, where the run has it, are `table.attrs["beside"]`, a list of dicts
SEVERAL_RUNS = True    it compares runs, and gets their tables one after another
example() -> rows      dicts as `gsnr.table.write` takes them, such as TABLE holds, for the contract test; where no probe of ours makes that table

`gsnr.figures.contract` checks all of it. Looks and labels of targets are those of `gsnr.figures.targets`.
"""

if __name__ == "figures":  # `python -m figures` in a checkout
    from gsnr.checkout import same_as_in_gsnr

    same_as_in_gsnr(__name__)
