"""Plug-ins as strangers write them, one file each, outside the folders of ours: `tests/test_strangers.py` trains, probes and draws them."""
