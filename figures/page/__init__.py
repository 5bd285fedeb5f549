"""What the page of `gsnr report` is made of: one kind of content a file, each a function that gives HTML with every text escaped.

Values become HTML only through jinja2 templates with autoescape, so a run's name or a target's label is never markup. The page's own script is
the only one that its Content-Security-Policy lets run, and that policy lets nothing be loaded.
"""
