"""What a training step reads: caches and other people's latents by row, the permutation and random numbers of samples, batches, held-out samples.

A batch is a pure function of (seed, step), whatever the number of processes and workers; nothing here may depend on how a run went. Nothing
here writes or encodes (that is `gsnr.train.prepare`) or knows of models. A new layout of latents is a reader in `latent_folders.READERS`.
"""
