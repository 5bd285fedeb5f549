from tests import forked as forked  # before anything imports torch
