"""From a checkpoint to many samples on disk: `gsnr sample --n N`, and grids of several checkpoints from the same noise, `gsnr sample --grid`."""
