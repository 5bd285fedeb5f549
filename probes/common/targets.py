"""Which alignment targets there are for a checkpoint: those of the alignments that are there, as far as its data hold what they read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from types import ModuleType
from typing import Any

from gsnr import plugins
from gsnr.probes.common.options import CONSTANT, NONE, WITHIN_CLASS, TargetOptions
from gsnr.probes.common.subject import Subject
from gsnr.train.alignments import COUPLED, VIEWS, AlignmentModule
from gsnr.train.config import alignment_config, resolve_alignment
from gsnr.train.objective import attach_teacher, make_alignment

USUAL = ("own", "uniform_mid", "uniform_deep")


def _not_measured(module: ModuleType) -> str:
    """Why an alignment has no gradient of one sample; "" where it has."""
    return COUPLED if module.Alignment.coupled else VIEWS if module.Config().views > 1 else ""


def unmeasured(alignment: AlignmentModule) -> str:
    """Why a checkpoint's own alignment has no gradient of one sample; "" where it has."""
    return COUPLED if alignment.coupled else VIEWS if alignment.views > 1 else ""


def own_target(subject: Subject) -> tuple[str, AlignmentModule] | None:
    """(name, module) of what hidden states at `subject.tap` were aligned to, in the checkpoint or in that of --align-from: the first of
    several; None for no alignment."""
    parts = subject.aligned.alignment.parts
    return (parts[0].config.target_name(parts[0].name), parts[0]) if parts else None


def _readable(subject: Subject, options: dict[str, Any]) -> bool:
    """Whether the data hold what an alignment reads; of pictures, also a teacher to show them to."""
    config, header = alignment_config(options), subject.header
    if not set(config.needs) <= header.groups.keys():
        return False
    if not config.pictures:
        return True
    try:
        attach_teacher(make_alignment(options, subject.checkpoint.config.model, header.groups), header)
    except ValueError:
        return False
    return True


def available(subject: Subject) -> dict[str, dict[str, Any]]:
    """target -> options of its alignment: the checkpoint's own first, then all that its data allow; none whose loss couples samples."""
    own, model = own_target(subject), subject.checkpoint.config.model
    trained = None if own is None else own[1].config
    made: dict[str, dict[str, Any]] = {}
    for name in plugins.names("alignments"):
        module = plugins.find("alignments", name)
        for target, options in () if module.Alignment.coupled else module.Config.targets(name, model, trained).items():
            resolved = resolve_alignment({"name": name, "tap": subject.tap} | options, model)
            if _readable(subject, resolved):
                made[target] = resolved
    if own is None or unmeasured(own[1]):
        return made
    return {own[0]: {"name": own[1].name} | asdict(own[1].config.over_patches())} | {
        target: options for target, options in made.items() if target != own[0]
    }


def left_out() -> dict[str, str]:
    """alignment -> why no per-sample probe takes it, of those that none does."""
    found = {name: _not_measured(plugins.find("alignments", name)) for name in plugins.names("alignments")}
    return {name: why for name, why in found.items() if why}


def chosen(subject: Subject, asked: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The targets asked for, by name; "own" is the checkpoint's, "all" all of them; () the usual ones that there are.

    Raises ValueError listing what there is.
    """
    options, own = available(subject), own_target(subject)
    if asked == ("all",):
        return options
    if "own" in asked and own is not None and (said := unmeasured(own[1])):
        raise ValueError(f"--targets own: {subject.aligned.folder} {said}")
    names = [own[0] if name == "own" and own and not unmeasured(own[1]) else name for name in asked or USUAL]
    for name in names:
        if name not in options and asked:
            if name in plugins.names("alignments") and (said := _not_measured(plugins.find("alignments", name))):
                raise ValueError(f"--targets {name}: {said}")
            why = f"{subject.checkpoint.folder} is aligned to nothing" if name == "own" else "it does not exist, or the data lack its features"
            raise ValueError(f"--targets {name}: {why}; choose from all, own, {', '.join(options)}")
    return {name: options[name] for name in dict.fromkeys(names) if name in options}


def labels(subject: Subject) -> dict[str, str]:
    """target -> what its alignment's file calls it, where it does (`LABEL`)."""
    own = {target: options["name"] for target, options in available(subject).items() if target == options["name"]}
    found = {target: getattr(plugins.find("alignments", name), "LABEL", "") for target, name in own.items()}
    return {target: label for target, label in found.items() if label}


def trained_target(subject: Subject, targets: Iterable[str]) -> str | None:
    """Which of the targets the checkpoint has a projector of; None for none."""
    own = own_target(subject)
    return own[0] if own is not None and own[0] in targets and subject.align_from is None else None


def unfit(subject: Subject, options: TargetOptions) -> dict[str, str]:
    """Control -> why there is none here, of those in the options."""
    found = {}
    if subject.checkpoint.config.model.text:
        found[WITHIN_CLASS] = f"{subject.checkpoint.folder} reads captions, and has no classes"
    if "fresh" not in options.projector and ("ckpt" not in options.projector or trained_target(subject, chosen(subject, options.targets)) is None):
        found[CONSTANT] = "a projector that is fitted to a constant learns it, and all are fitted"
    return {control: why for control, why in found.items() if control in options.controls}


def check(subject: Subject, options: TargetOptions) -> None:
    """Raises ValueError for targets that there are not, a projector that the checkpoint has not, or controls that are none and some."""
    if NONE in options.controls and len(options.controls) > 1:
        raise ValueError(f"--controls {','.join(options.controls)}: none stands alone")
    targets = chosen(subject, options.targets)
    for control, why in unfit(subject, options).items():
        if options.controls != type(options).controls:  # of the usual ones those that fit are taken, and `plan` says which are not
            raise ValueError(f"--controls {control}: {why}; choose shuffled{', or --projector fresh' if control == CONSTANT else ''}")
    if set(options.projector) == {"ckpt"} and trained_target(subject, targets) is None:
        raise ValueError(f"--projector ckpt: {subject.checkpoint.folder} has none for the targets {', '.join(targets)}; choose fit")
