"""Figures: one file each, found by name. A file has

TABLE                  the probe whose table it reads (`RUN/probes/<TABLE>.parquet`)
draw(table) -> Figure  a function of that table alone; never touches torch or the disk
"""
