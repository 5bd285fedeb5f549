"""Training: SiT with alignment targets from a frozen VAE encoder. `gsnr.load_model(PATH)` gives the backbone of a run or checkpoint."""

if __name__ == "train":  # `python -m train` in a checkout
    from gsnr.checkout import same_as_in_gsnr

    same_as_in_gsnr(__name__)
