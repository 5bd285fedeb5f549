"""Criteria: what may tell, from one checkpoint, which target to align to, at which block and times. One file each, found by name; a file has

    LABEL                 what tables call it
    SUMMARY               what it is, in a sentence, with its source
    PASSES                the shared passes of `gsnr.probes.common.case.Case` that it reads: their time counts as its own
    measure(case) -> {row: (value, low, high)}     95 % interval; NaN where it is not defined for a row

More is taken to be better: a criterion picks the row where it is largest. Whether that row gains most is what `gsnr recommend --validate` asks.
"""
