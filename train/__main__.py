"""`python -m train`: see `gsnr train --help`."""

from gsnr import commands

commands.run("train")
