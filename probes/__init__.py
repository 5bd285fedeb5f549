"""Probes: one measurement a file, found by name. A file has

    SUMMARY                                   one line for --list, a literal
    KIND                                      "cells" (rows of G-SNR) or "metrics" (rows of metric, value, low, high)
    SCALES                                    the options that its time is proportional to, for --dry-run
    Options                                   a class of `gsnr.probes.common.options`, or a child of one with options of its own
    cannot(subject, options)                  why this checkpoint cannot be probed so, or None; ValueError for bad options
    plan(subject, options) -> list[str]       what would be measured, for --dry-run
    run(subject, options, resume, sums) -> {kind: rows}, notes   rows as `gsnr.table` names them ("samples" beside "cells"); notes go into
                                              provenance; resume: a ResumeCache, where finished pieces are kept; sums: folder for gradient
                                              sums, or None
    identity(subject, options) -> str         what else the measurement depends on (optional)
    SUMS = True                               where it writes gradient sums, for --save-sums (optional)

Rows are checked as they are made, piece by piece. Probes never import one another; what they share is in `gsnr.probes.common`.
"""

if __name__ == "probes":  # `python -m probes...` in a checkout
    from gsnr.checkout import same_as_in_gsnr

    same_as_in_gsnr(__name__)
