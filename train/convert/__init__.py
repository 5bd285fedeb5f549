"""Checkpoints of other projects: `foreign` reads and recognises a file without running anything in it, `conversion` makes it one of ours.

A new format is its name in `foreign.KINDS`, what tells it apart in `foreign`, and its head in `conversion.READ_HEAD`. Nothing is guessed: a file
that our SiT cannot hold exactly is refused in one line.
"""
