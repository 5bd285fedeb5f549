"""From chosen probes and opened checkpoints to tables on disk: what is there already is kept, what was interrupted goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from gsnr import table
from gsnr.probes.common.options import ProbeOptions
from gsnr.probes.common.resume_cache import ResumeCache, Rows
from gsnr.probes.common.subject import Subject
from gsnr.probes.common.targets import labels

RULE = 2  # by which images, partners and fits are chosen: one more where tables of before are not comparable


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One probe of some checkpoints, with its options, into one table."""

    name: str
    probe: ModuleType
    options: ProbeOptions
    subjects: list[Subject]
    out: Path

    @property
    def path(self) -> Path:
        return self.out / f"{self.name}.parquet"

    @property
    def sums(self) -> Path:
        """Where --save-sums writes."""
        return self.out / f"{self.name}.sums"

    @property
    def settings(self) -> dict[str, Any]:
        """What the table depends on, as JSON gives it back."""
        made = {"weights": self.subjects[0].checkpoint.weights, "checkpoints": [self._identity(subject) for subject in self.subjects]}
        return json.loads(json.dumps(asdict(self.options) | made | {"rule": RULE}))

    @property
    def _defaults(self) -> dict[str, Any]:
        """What an option that there was not yet when something was measured is taken for."""
        return json.loads(json.dumps(asdict(type(self.options)())))

    def _identity(self, subject: Subject) -> dict[str, Any]:
        """What is measured: a checkpoint and its data."""
        c = subject.checkpoint
        extra = getattr(self.probe, "identity", None)
        data = repr(subject.header) + (extra(subject, self.options) if extra else "")
        aligned = {"align_from": subject.align_from.sha} if subject.align_from else {}
        return {"run": c.run_name, "sha": c.sha, "step": c.step, "data": hashlib.sha256(data.encode()).hexdigest()} | aligned

    def is_there(self, overwrite: bool, save_sums: bool = False) -> bool:
        """True where the table has these settings already. Raises ValueError where it has others, or no sums, and may not be replaced."""
        if not self.path.exists() or overwrite:
            return False
        was = self._defaults | table.provenance(self.path).get("settings", {})
        changed = [key for key, value in self.settings.items() if was.get(key) != value]
        if changed:
            raise ValueError(
                f"{self.path}: measured with other settings ({changed[0]} was {was.get(changed[0])!r}, now {self.settings[changed[0]]!r}); "
                "add --overwrite, or name another folder with --out"
            )
        if save_sums and getattr(self.probe, "SUMS", False) and not self.sums.is_dir():
            raise ValueError(f"--save-sums: {self.path} was measured without; add --overwrite, or name another folder with --out")
        return True

    def run(self, *, resume: bool, overwrite: bool, save_sums: bool) -> None:
        """Measures every checkpoint, and writes the tables; finished pieces stay beside them until they are all there."""
        kept = ResumeCache(self.out / f".{self.name}.resume")
        with kept.held():
            if overwrite and not resume:
                kept.clear()
            kept.begin(self.settings | {"save_sums": save_sums}, resume, self._defaults | {"save_sums": False})
            if overwrite and not kept.finished:
                shutil.rmtree(self.sums, ignore_errors=True)  # of an earlier measurement
            try:
                rows, notes = self._measured(kept, save_sums)
            except KeyboardInterrupt as stop:
                raise KeyboardInterrupt(*([f"the same command with --resume goes on: {kept.folder}"] if kept.finished else [])) from stop
            finally:
                if not kept.finished:
                    kept.remove()
            self._write(rows, notes)
            kept.remove()
        print(f"{self.path}: {len(rows[self.probe.KIND])} rows")

    def _measured(self, kept: ResumeCache, save_sums: bool) -> tuple[Rows, list[dict[str, Any]]]:
        """Rows of all checkpoints, and notes of each."""
        rows: Rows = {}
        notes = []
        for index, subject in enumerate(self.subjects):
            of_one = subject.checkpoint.run_name if len(self.subjects) > 1 else ""
            sums = self.sums / of_one if save_sums else None
            found, its_notes = self.probe.run(subject, self.options, ResumeCache(kept.folder / f"ckpt{index}"), sums)
            notes.append(self._identity(subject) | {"config": asdict(subject.checkpoint.config), "notes": its_notes})
            for kind, values in found.items():
                rows.setdefault(kind, []).extend(values)
        return rows, notes

    def _write(self, rows: Rows, notes: list[dict[str, Any]]) -> None:
        """All tables or none; the table itself last: it says that all is there. What an earlier measurement left of other kinds goes."""
        named = {target: label for subject in self.subjects for target, label in labels(subject).items()}
        provenance = {"settings": self.settings, "checkpoints": notes, "labels": named, "created": self.subjects[0].created}
        main = self.probe.KIND
        beside = {kind: self.out / f"{self.name}.{kind}.parquet" for kind in table.KINDS if kind != main}
        with table.writing() as write:
            for kind in [*(kind for kind in rows if kind != main), main]:
                if rows[kind]:
                    write(beside.pop(kind, self.path), kind, rows[kind], provenance)
        for path in beside.values():
            path.unlink(missing_ok=True)
