"""Probes: one measurement a file, found by name. A file has

    SUMMARY                                   one line for --list
    KIND                                      "cells" (rows of G-SNR) or "metrics" (rows of metric, value, low, high)
    cannot(subject)                           why this checkpoint cannot be probed so, or None
    plan(subject, options) -> list[str]       what would be measured, for --dry-run
    run(subject, options, sums) -> {kind: rows}, notes   rows as `gsnr.table` names them ("samples" beside "cells"); notes go into provenance;
                                              sums: folder for gradient sums, or None

Probes never import one another.
"""
