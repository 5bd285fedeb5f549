"""`python -m gsnr.probe`: the probe command, whose code is in `gsnr.probes`. See `gsnr probe --help`."""

from gsnr import commands

if __name__ == "__main__":
    commands.run("probe")
