"""Forks of one checkpoint, for `gsnr fork`: `rows` (what a fork differs in), `start` (a run folder that goes on from the checkpoint), `measure`
(what a finished fork is worth), `compare` (paired differences, intervals, power), `tables` (what is written)."""
