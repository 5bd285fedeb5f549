"""Offline: pictures become a cache. `sources` finds pictures and labels, `contents` tells others under the same names, `images` crops, `encode` runs
VAE and teacher, `shards` writes, `job` decides and checks, `processes` lets several work on one cache, `command` is `gsnr prepare`.

What a row holds may change only with `options` of `job.decide`, or the schema version: both keep rows of two kinds out of one cache. Training
imports nothing of this room but through the demo's cache, which is made on first use.
"""
