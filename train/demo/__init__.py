"""The demo: `images` composes its data, `cache` encodes them on first use, `fit_vae` and `fit_teacher` made what lies in `assets/`.

Tables in docs/results.md and digests in tests come from exactly these images and weights: an image that changes raises `images.VERSION`, and
`assets/` is written only by `gsnr fit-demo-vae` and `gsnr fit-demo-teacher`.
"""
