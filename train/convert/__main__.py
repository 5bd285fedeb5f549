"""`python -m train.convert`: see `gsnr convert --help`."""

from gsnr import commands

commands.run("convert")
