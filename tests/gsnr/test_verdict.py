"""The verdict's sentences on tables made for the purpose: each says what intervals, floors and paired tests allow, and no more."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

import gsnr
from gsnr.verdicts import ABOVE, AGAINST, AT_FLOOR, BY_CONSTRUCTION, NO_FLOOR, UNCLEAR, UNRESOLVED, WITH

NAN = float("nan")
RESOLVED = {"gsnr": 1.0, "gsnr_high": 1.2, "below_detection": False, "floor": 0.0, "above_floor": True}
NOTHING = {"gsnr": 0.1, "gsnr_high": 1.0, "below_detection": True, "floor": 0.0, "above_floor": False}
AT = RESOLVED | {"above_floor": False}
GOES = {WITH: (0.3, 0.2, 0.4), AGAINST: (-0.3, -0.4, -0.2), UNCLEAR: (0.05, -0.05, 0.15)}
SURELY = {WITH: (0.3, 0.26, 0.34), AGAINST: (-0.3, -0.34, -0.26)}


def angle(values: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(("cos_denoise", "cos_low", "cos_high"), values, strict=True))


def table(**targets: list[dict[str, Any]]) -> pd.DataFrame:
    """target -> what each of its bins says."""
    rows = []
    for target, bins in targets.items():
        for b, said in enumerate(bins):
            where = {"run": "r", "checkpoint": "1", "probe": "alignment", "target": target, "control": "none", "projector": "fit", "group": "all"}
            edges = {"bin": b, "t_low": round(b / len(bins), 6), "t_high": round((b + 1) / len(bins), 6), "n": 256, "underfit": False}
            rows.append(where | edges | angle(GOES[UNCLEAR]) | said)
    return pd.DataFrame(rows)


def test_two_adjacent_bins_are_spoken_of_and_a_lone_one_is_not() -> None:
    with_two = [RESOLVED | angle(GOES[WITH])] * 2 + [NOTHING] * 3
    lone = [RESOLVED | angle((0.13, 0.03, 0.23))] + [NOTHING] * 4
    found = gsnr.verdict(table(both=with_two, lone=lone))
    assert found.sentences[0] == "With denoising, resolved, above its control: both from t = 0 to 0.4."
    assert [r.gradient for r in found.ranges] == [ABOVE, UNRESOLVED, ABOVE, UNRESOLVED]
    assert found.sentences[1] == "Of lone nothing can be said: measure more images (--n-images), or another target."


def test_a_lone_bin_that_would_be_found_among_all_is_spoken_of() -> None:
    lone = [RESOLVED | angle(SURELY[AGAINST])] + [NOTHING] * 4
    assert gsnr.verdict(table(x=lone, y=lone)).sentences[1] == f"Against denoising: x and y from t = 0 to 0.2. {BY_CONSTRUCTION}"
    weak = [RESOLVED | {"gsnr_high": 1.99} | angle(SURELY[AGAINST])] + [NOTHING] * 4  # the angle is, the gradient is not
    assert "Against denoising" not in gsnr.verdict(table(x=weak)).sentences[1]


def test_a_lone_bin_that_may_be_chance_is_said_to_be() -> None:
    """The table above the sentence shows it, so "nowhere" would be untrue."""
    found = gsnr.verdict(table(x=[NOTHING, RESOLVED | {"gsnr_high": 1.99} | angle(GOES[WITH])] + [NOTHING] * 3))
    assert found.sentences[0] == "With denoising in single bins alone, which may be chance: x from t = 0.2 to 0.4."


def test_at_all_t() -> None:
    found = gsnr.verdict(table(x=[RESOLVED | angle(GOES[WITH])] * 5))
    assert found.sentences == ("With denoising, resolved, above its control: x at all t.", "Against denoising: none, at any t.")


@pytest.mark.parametrize(("cell", "gradient"), [(NOTHING, UNRESOLVED), (AT, AT_FLOOR)])
def test_what_is_not_above_its_control_has_no_direction(cell: dict[str, Any], gradient: str) -> None:
    found = gsnr.verdict(table(x=[cell | angle(SURELY[WITH])] * 5))
    assert (found.ranges[0].gradient, found.ranges[0].denoising) == (gradient, "")
    assert found.sentences[0] == "No target's gradient is resolved, above its control and with denoising, at any t."


def test_without_controls_it_says_so() -> None:
    cell = RESOLVED | {"floor": NAN, "above_floor": False} | angle(GOES[WITH])
    found = gsnr.verdict(table(x=[cell] * 5))
    assert found.ranges[0].gradient == NO_FLOOR
    assert found.sentences[0] == "With denoising, resolved (no control was measured): x at all t."


def test_an_underfit_projector_says_nothing_of_its_target() -> None:
    found = gsnr.verdict(table(x=[RESOLVED | angle(SURELY[WITH]) | {"underfit": True}] * 5))
    assert found.sentences[0].startswith("No target's gradient")
    assert "projector below a constant" in str(found)


def test_easy_targets_are_marked() -> None:
    cells = table(x=[RESOLVED | angle(GOES[WITH])] * 5)
    shares = cells[["target", "control", "projector", "bin"]].assign(metric="constant_share", value=[0.95, 0.95, 0.5, 0.5, 0.5])
    found = gsnr.verdict(cells, shares)
    assert [(r.t_low, r.t_high, r.easy) for r in found.ranges] == [(0.0, 0.4, True), (0.4, 1.0, False)]
    assert list(found.to_frame()["bins"]) == [2, 3]
    assert "easy" in str(found).splitlines()[2]


def test_projectors_of_one_kind() -> None:
    cells = pd.concat([table(x=[RESOLVED | angle(GOES[WITH])] * 5), table(x=[RESOLVED | angle(GOES[AGAINST])] * 5).assign(projector="ckpt")])
    assert [r.denoising for r in gsnr.verdict(cells).ranges] == [WITH]


def test_refusals() -> None:
    cells = table(x=[NOTHING] * 2)
    with pytest.raises(ValueError, match="group 'head' is not in the table; choose from all"):
        gsnr.verdict(cells, group="head")
    with pytest.raises(ValueError, match="about one checkpoint; the table has 2"):
        gsnr.verdict(pd.concat([cells, cells.assign(run="s")]))
    with pytest.raises(ValueError, match="nothing but controls"):
        gsnr.verdict(table(x=[RESOLVED] * 5).assign(control="shuffled"))
    with pytest.raises(ValueError, match="table of probe 'alignment', not vae_swap"):
        gsnr.verdict(cells.assign(probe="vae_swap"))
