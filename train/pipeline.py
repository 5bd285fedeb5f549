"""A checkpoint as a pipeline of diffusers, in a folder of its own that needs neither run nor cache.

    pipe = SiTPipeline.from_pretrained(FOLDER).to("cuda")         # written by `gsnr convert --to pipeline`
    images = pipe(class_labels=[207, 360], guidance_scale=1.8, guidance_interval=(0.0, 0.7), generator=torch.Generator().manual_seed(0)).images

Of a model that reads text: pipe(text_states=gsnr.train.text.encode(ENCODER, ["a red seven"])) in place of class_labels.
It holds the velocity model, its VAE and the latents' scaling, and samples as `gsnr sample` does: `gsnr.train.samplers`, `gsnr.train.guidance`.
Shapes: B images, latent (C,h,w), picture (H,W,3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from gsnr import checksums, files
from gsnr.commandline import unknown
from gsnr.train import samplers
from gsnr.train.data.latents import Scaling
from gsnr.train.guidance import Guidance, velocity_of
from gsnr.train.models.backbone import Backbone
from gsnr.train.runs import checkpoint
from gsnr.train.sampling.eight_bit import RULES, to_uint8
from gsnr.train.sampling.subject import Subject, subject_of

OUTPUTS = ("pil", "np", "latent")
TOGETHER = 16  # pictures in one pass of the decoder
Generators = torch.Generator | list[torch.Generator]


class SiTPipeline(DiffusionPipeline):
    """transformer: the velocity model; vae: a model of diffusers whose decode(raw).sample is a picture in [-1, 1]. latent_factor, _channel_scale,
    _channel_bias: see `gsnr.train.data.latents`. unconditional: whether labels were dropped in training, which guidance needs. id2label: a class's
    names, with commas between them."""

    model_cpu_offload_seq = "transformer->vae"

    def __init__(
        self,
        transformer: Backbone,
        vae: ModelMixin,
        latent_factor: float = 1.0,
        latent_channel_scale: list[float] | None = None,
        latent_channel_bias: list[float] | None = None,
        unconditional: bool = True,
        id2label: dict[int, str] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae)
        scale, bias = tuple(latent_channel_scale or ()), tuple(latent_channel_bias or ())
        self.scaling = Scaling(factor=latent_factor, channel_scale=scale, channel_bias=bias)
        self.unconditional = unconditional
        self.labels = {name.strip(): int(label) for label, names in (id2label or {}).items() for name in names.split(",")}
        kept = {"latent_factor": latent_factor, "latent_channel_scale": list(scale), "latent_channel_bias": list(bias)}
        self.register_to_config(**kept, unconditional=unconditional, id2label=id2label)

    def get_label_ids(self, names: str | list[str]) -> list[int]:
        """Classes of these names. Raises ValueError for one that there is not."""
        asked = [names] if isinstance(names, str) else names
        for name in asked:
            if not self.labels:
                raise ValueError(f"class_labels: {name!r}: this pipeline knows no names, but numbers")
            if name not in self.labels:
                raise ValueError(unknown("class_labels:", name, self.labels))
        return [self.labels[name] for name in asked]

    def _classes(self, class_labels: int | str | Sequence[int | str]) -> Tensor:
        """(B,) int64. Raises ValueError for one that there is not."""
        asked = [class_labels] if isinstance(class_labels, int | str) else list(class_labels)
        found = [self.get_label_ids(label)[0] if isinstance(label, str) else int(label) for label in asked]
        count = self.transformer.config.num_classes
        if not found:
            raise ValueError("class_labels: names no class")
        for label in found:
            if not 0 <= label < count:
                raise ValueError(f"class_labels: {label} is none of 0 to {count - 1}")
        return torch.tensor(found, device=self._execution_device)

    def _conditions(self, class_labels: int | str | Sequence[int | str] | None, text_states: Tensor | None) -> Tensor:
        """What the model is told of each sample. Raises ValueError for classes where it reads text, for text where it does not, and for neither."""
        m = self.transformer.config
        reads, other = ("text_states", "class_labels") if "text_width" in m else ("class_labels", "text_states")
        given = {"class_labels": class_labels, "text_states": text_states}
        if given[other] is not None or given[reads] is None:
            raise ValueError(f"{other if given[other] is not None else reads}: this model reads {reads}, and no {other}")
        if text_states is None:
            assert class_labels is not None
            return self._classes(class_labels)
        if text_states.ndim != 3 or text_states.shape[1:] != (m.text_tokens, m.text_width) or not len(text_states):
            raise ValueError(f"text_states: of shape {tuple(text_states.shape)}; this model reads (samples, {m.text_tokens}, {m.text_width})")
        return text_states.to(self._execution_device)

    def _normal(self, name: str, shape: tuple[int, ...], given: Tensor | None, generator: Generators | None) -> Tensor:
        """What was given, or from the generator. Raises ValueError for another shape, and for a list of generators of another length."""
        if given is None:
            if isinstance(generator, list) and len(generator) != shape[0]:
                raise ValueError(f"generator: a list of {len(generator)} for {shape[0]} samples")
            return randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)
        if given.shape != shape:
            raise ValueError(f"{name}: of shape {tuple(given.shape)}; these samples are of {shape}")
        return given.to(self._execution_device)

    def _noise(self, samples: int, generator: Generators | None, latents: Tensor | None = None, class_tokens: Tensor | None = None) -> samplers.State:
        """Where the samples start; the class tokens are drawn after the latents. Raises ValueError for class tokens that the model does not have."""
        m = self.transformer.config
        x = self._normal("latents", (samples, m.in_channels, m.input_size, m.input_size), latents, generator)
        extra = m.get("extra_token")
        if extra is not None:
            return x, self._normal("class_tokens", (samples, extra), class_tokens, generator)
        if class_tokens is not None:
            raise ValueError("class_tokens: this model has none; leave them out")
        return x

    def _guidance(self, latents: Guidance, scale: float | None, interval: tuple[float, float] | None) -> Guidance:
        """The latents' guidance, with that of the class token. Raises ValueError for what this model has not."""
        if scale is not None or interval is not None:
            if self.transformer.config.get("extra_token") is None:
                raise ValueError("class_token_scale, class_token_interval: this model has no class token; leave them out")
            low, high = interval or (latents.low, latents.high)
            latents = replace(latents, token=Guidance(weight=latents.weight if scale is None else scale, low=low, high=high))
        if latents.used and not self.unconditional:
            raise ValueError(f"guidance_scale {latents.weight}: this model was trained without label dropout, so it has no unconditional velocity")
        return latents

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | None = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int | None = None,
        generator: Generators | None = None,
        *,
        sampler: str = "euler",
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_channels: int | None = None,
        class_token_scale: float | None = None,
        class_token_interval: tuple[float, float] | None = None,
        text_states: Tensor | None = None,
        latents: Tensor | None = None,
        class_tokens: Tensor | None = None,
        noise: samplers.Noise | None = None,
        uint8: str = "repa",
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """.images: a list of PIL images ("pil"), (B,H,W,3) float32 in [0, 1] ("np"), or final latents (B,C,h,w) float32 ("latent").

        class_labels: numbers, or names of id2label; of a model that reads text: text_states (B,L,C), as `gsnr.train.text.encode` makes them of
        captions. guidance_scale 1 is none; it acts for t in guidance_interval (t = 1 is noise) on the first
        guidance_channels latent channels (None: all). class_token_scale, class_token_interval: the same of the class token, for a model that has one
        (None: as the latents). num_inference_steps: default the sampler's. sampler: of `gsnr.train.samplers`. latents: (B,C,h,w) standard normal,
        where the samples start (default: from the generator), class_tokens: (B,E) likewise; noise: of step k of an SDE (default: likewise).
        uint8: how "pil" rounds to 8 bits (`gsnr.train.sampling.eight_bit`).
        Raises ValueError in one line for whatever is wrong with them, and for samples that are not finite."""
        if output_type not in OUTPUTS:
            raise ValueError(unknown("output_type", output_type, OUTPUTS))
        if uint8 not in RULES:
            raise ValueError(unknown("uint8", uint8, RULES))
        if num_inference_steps is not None and num_inference_steps < 1:
            raise ValueError(f"num_inference_steps {num_inference_steps}: must be at least 1")
        low, high = guidance_interval
        by = Guidance(weight=guidance_scale, low=low, high=high, channels=guidance_channels)
        guidance = self._guidance(by, class_token_scale, class_token_interval)
        y = self._conditions(class_labels, text_states)
        start = self._noise(len(y), generator, latents, class_tokens)
        velocity = velocity_of(self.transformer, y, guidance)
        drawn = noise or (lambda step: self._noise(len(y), generator))
        with self.progress_bar(total=samplers.evaluations(sampler, num_inference_steps)) as bar:
            state = samplers.integrate(sampler, _told(velocity, bar.update), start, num_inference_steps, drawn)
        final = samplers.latents_of(state).float()
        if not final.isfinite().all():
            raise ValueError(f"the samples are not finite (guidance_scale {guidance_scale}, num_inference_steps {num_inference_steps})")
        images = self._output(final, output_type, uint8)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _output(self, final_BChw: Tensor, output_type: str, uint8: str) -> Any:
        if output_type == "latent":
            return final_BChw
        raw = self.scaling.raw(final_BChw).to(self.vae.dtype)
        pixels = torch.cat([self.vae.decode(part).sample.float() for part in raw.split(TOGETHER)])
        if output_type == "pil":
            return [Image.fromarray(picture) for picture in to_uint8(pixels, uint8)]
        return (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()


def _told(velocity: samplers.Velocity, tell: Callable[[], object]) -> samplers.Velocity:
    """The same velocity; tells of every evaluation."""

    def watched(x: samplers.State, t: float) -> samplers.State:
        tell()
        return velocity(x, t)

    return watched


def of_subject(subject: Subject, id2label: dict[int, str] | None = None) -> SiTPipeline:
    """Raises ValueError for a VAE that is no model of diffusers."""
    if not isinstance(subject.frozen.model, ModelMixin):
        raise ValueError(f"--vae {subject.frozen.name}: no model of diffusers, so that no pipeline can hold it")
    return SiTPipeline(
        transformer=subject.loaded.model,
        vae=subject.frozen.model,
        latent_factor=subject.scaling.factor,
        latent_channel_scale=list(subject.scaling.channel_scale),
        latent_channel_bias=list(subject.scaling.channel_bias),
        unconditional=subject.loaded.config.label_dropout > 0,
        id2label=id2label,
    )


def save_pipeline(ckpt: checkpoint.Checkpoint, folder: Path, vae: str | None = None, id2label: dict[int, str] | None = None) -> SiTPipeline:
    """Writes the pipeline's folder, with checksums, whole or not at all. vae: hub id or folder; default the one that the checkpoint names.

    Raises ValueError for a VAE that does not fit, for names of classes that there are not, and where the folder exists."""
    if id2label and ckpt.config.model.text:
        raise ValueError(f"--labels: {ckpt.folder} reads captions, and has no classes to name; leave it out")
    if folder.exists():
        raise ValueError(f"--out {folder}: exists; name a new folder")
    files.check_writable(folder, "--out")
    made = of_subject(subject_of(ckpt, vae), id2label)
    with files.making(folder) as aside:
        made.save_pretrained(aside)
        (aside / checksums.MANIFEST).write_text(checksums.Manifest.of(aside).text())
    return made
