"""The contract of a VAE."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gsnr import plugins
from gsnr.plugins import hold
from gsnr.train.contracts.problem import alike
from gsnr.train.priors import features
from gsnr.train.priors.layers import GROUPS
from gsnr.train.vaes import FrozenVAE
from gsnr.train.weights_hash import weights_hash

CELLS = 2  # of the latent, a side


def check(name: str) -> list[str]:
    """Raises ValueError for the first rule that VAE `name` breaks, on its example; what was checked otherwise."""
    torch.manual_seed(0)
    kind = plugins.find("vaes", name).VAE
    hold(isinstance(kind, type) and issubclass(kind, FrozenVAE), name, "VAE does not extend FrozenVAE")
    vae = kind.example()
    hold(isinstance(vae, kind), name, "example() gives no VAE of this kind")
    return check_vae(name, vae)


def check_vae(name: str, vae: FrozenVAE) -> list[str]:
    """The same on any VAE, whose weights are changed by it."""
    return [*_latents(name, vae), *_layers(name, vae), *_decoder(name, vae), *_identity(name, vae)]


def _images(vae: FrozenVAE) -> Tensor:
    """(2,3,H,W) in [-1, 1]."""
    return torch.rand(2, 3, CELLS * vae.downsampling, CELLS * vae.downsampling, generator=torch.Generator().manual_seed(1)) * 2 - 1


def _latents(name: str, vae: FrozenVAE) -> list[str]:
    """Shapes, dtype, determinism, one image's latent is its own, no gradients, the scaling."""
    x, shape = _images(vae), (2, vae.channels, CELLS, CELLS)
    mean, std = vae.encode(x)
    for what, z in (("mean", mean), ("std", std)):
        if z is not None:
            hold(
                z.shape == shape and z.dtype == torch.float32,
                name,
                f"{what} of {tuple(z.shape)}, {z.dtype}, for {tuple(x.shape)}; not {shape}, float32",
            )
            hold(bool(torch.isfinite(z).all()), name, f"{what} is not finite")
            hold(not z.requires_grad, name, f"a gradient flows into {what}; nothing of a VAE is trained")
    hold(std is None or bool((std >= 0).all()), name, "std is negative")
    torch.manual_seed(7)
    hold(torch.equal(vae.encode(x)[0], mean), name, "the same images have two latents; draw random numbers nowhere")
    hold(alike(vae.encode(x[1:])[0], mean[1:]), name, "an image's latent depends on the other images of its batch")
    hold(not torch.allclose(mean[0], mean[1]), name, "another image has the same latent")
    scaling = vae.scaling
    if scaling is not None:
        lengths = (len(scaling.channel_scale), len(scaling.channel_bias))
        hold(math.isfinite(scaling.factor) and scaling.factor != 0, name, f"its scaling factor is {scaling.factor}")
        hold(
            lengths in ((0, 0), (vae.channels,) * 2), name, f"its scaling has {lengths[0]} scales and {lengths[1]} biases of {vae.channels} channels"
        )
    return [
        f"latents: (B,3,H,W) to (B,{vae.channels},H/{vae.downsampling},W/{vae.downsampling}) in float32, finite, one image's is its own",
        "posterior: its standard deviation" if std is not None else "no posterior: std is 0 in a cache",
        "scaling: its own" if scaling is not None else "no scaling: gsnr prepare measures it",
    ]


def _layers(name: str, vae: FrozenVAE) -> list[str]:
    """Known groups, numbered in the order in which they run, each once a pass, of the channels that they say."""
    layers, modules = vae.layers, dict(vae.encoder.named_modules())
    hold([layer.number for layer in layers] == list(range(1, len(layers) + 1)), name, "its layers are not numbered 1, 2, ...")
    for layer in layers:
        hold(layer.group in GROUPS, name, f"layer {layer.name!r} is of group {layer.group!r}; choose from {', '.join(GROUPS)}")
        hold(layer.name in modules, name, f"layer {layer.name!r} is no module under its encoder")
    ran: list[str] = []
    hooks = [modules[layer.name].register_forward_hook(_noting(ran, layer.name)) for layer in layers]
    try:
        _, _, found = features.encode(vae, _images(vae), layers, CELLS)
    finally:
        for hook in hooks:
            hook.remove()
    hold(ran == [layer.name for layer in layers], name, f"its layers run as {', '.join(ran)}; name each that runs once, in that order")
    said = {}
    for group, f in found.items():
        members = [layer for layer in layers if layer.group == group]
        for layer, maps in zip(members, f.unbind(1), strict=True):
            hold(maps.shape[1] == layer.channels, name, f"layer {layer.name!r} has {maps.shape[1]} channels, not the {layer.channels} that it says")
        hold(bool(torch.isfinite(f).all()) and not f.requires_grad, name, f"features of {group} are not finite, or carry gradients")
        said[group] = f"{group} {len(members)} of {members[0].channels} channels"
    return [f"layers: {'; '.join(said[group] for group in sorted(said))}"]


def _noting(ran: list[str], layer: str) -> Callable[..., None]:
    return lambda *_: ran.append(layer)


def _decoder(name: str, vae: FrozenVAE) -> list[str]:
    if not vae.decodes:
        return ["no decoder: gsnr sample, evaluate --frechet and train --sample-every refuse"]
    raw = torch.randn(2, vae.channels, CELLS, CELLS, generator=torch.Generator().manual_seed(2))
    pictures = []
    for _ in range(2):
        torch.manual_seed(3)
        with torch.no_grad():
            pictures.append(vae.decode(raw))
    shape = tuple(_images(vae).shape)
    hold(pictures[0].shape == shape, name, f"decodes {tuple(raw.shape)} to {tuple(pictures[0].shape)}, not {shape}")
    hold(bool(torch.isfinite(pictures[0]).all()), name, "decodes to values that are not finite")
    hold(torch.equal(*pictures), name, "decodes the same latents to two pictures from one seed")
    return ["decoder: latents back to pictures, a function of them and the seed"]


def _identity(name: str, vae: FrozenVAE) -> list[str]:
    """Frozen; the hash changes with the weights, and all weights that matter are in it."""
    parameters = list(vae.model.parameters())
    hold(
        not vae.model.training and not any(p.requires_grad for p in parameters),
        name,
        "is not frozen; call FrozenVAE.__init__ with the finished model",
    )
    hold(all(p.dtype == torch.float32 for p in parameters), name, "its weights are not in float32")
    hold(vae.sha == weights_hash(vae.model, vae.settings), name, "its hash is not that of its weights and settings")
    before = vae.encode(_images(vae))[0]
    with torch.no_grad():
        for p in parameters:
            p.mul_(0.9).add_(0.01)
    hold(vae.sha != weights_hash(vae.model, vae.settings), name, "other weights have the same hash")
    hold(not torch.equal(vae.encode(_images(vae))[0], before), name, "its latents do not come of the weights in `model`, which its hash is taken of")
    return ["identity: a hash that other weights change; frozen, float32"]
