"""`python -m figures`: see `gsnr figures --help`."""

from gsnr import commands

commands.run("figures")
