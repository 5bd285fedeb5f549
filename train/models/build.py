"""The one place that makes a backbone of a configuration."""

from __future__ import annotations

from gsnr.train.config import ModelConfig
from gsnr.train.models.backbone import Backbone
from gsnr.train.models.mmdit import MMDiT
from gsnr.train.models.sit import SiT


def build(model: ModelConfig) -> Backbone:
    """Freshly initialised, by torch's global random state."""
    return MMDiT(**model.options) if model.text else SiT(**model.options)
