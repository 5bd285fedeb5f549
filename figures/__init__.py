"""Figures: one file each, found by name. A file has

TABLE                  the probe whose table it reads (`RUN/probes/<TABLE>.parquet`)
draw(table) -> Figure  a function of that table alone; never touches torch or the disk
"""

if __name__ == "figures":  # `python -m figures` in a checkout
    from gsnr.checkout import same_as_in_gsnr

    same_as_in_gsnr(__name__)
