"""Probes: one measurement a file, found by name. A file has

    SUMMARY                                   one line for --list
    KIND                                      "cells" (rows of G-SNR) or "metrics" (rows of metric, value, low, high)
    SCALES                                    the options that its time is proportional to, for --dry-run
    cannot(subject, options)                  why this checkpoint cannot be probed so, or None; ValueError for bad options
    plan(subject, options) -> list[str]       what would be measured, for --dry-run
    run(subject, options, parts, sums) -> {kind: rows}, notes   rows as `gsnr.table` names them ("samples" beside "cells"); notes go into
                                              provenance; parts: where finished pieces are kept; sums: folder for gradient sums, or None

Probes never import one another.
"""

if __name__ == "probes":  # `python -m probes` in a checkout
    from gsnr.checkout import same_as_in_gsnr

    same_as_in_gsnr(__name__)
