"""What measuring costs (`gsnr bench`: bench, methods, peers, subjects) and how often its intervals cover (`gsnr coverage`)."""
