"""`python -m train.prepare`: see `gsnr prepare --help`."""

from gsnr import commands

commands.run("prepare")
