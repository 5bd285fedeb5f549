"""`python -m gsnr`: the command `gsnr`."""

from gsnr.commands import main

main()
