"""What every alignment, schedule, router, projector and VAE has to hold, ours and strangers': one file a kind, with check(name) -> what was checked.

`gsnr check-plugin FILE` and the tests run the same checks. They raise ValueError, in one line, for the first thing that is broken.
"""
