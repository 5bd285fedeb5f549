"""Sets of images compared by their features: what `gsnr evaluate --samples` does."""
