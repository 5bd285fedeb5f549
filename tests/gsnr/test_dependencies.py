"""What the library needs: torch, numpy, scipy and pandas, with what these four need themselves, and nothing else."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import re, sys
from importlib import metadata

allowed, waiting = {"gsnr"}, ["torch", "numpy", "scipy", "pandas"]
while waiting:
    name = re.split(r"[^\\w.-]", waiting.pop(), maxsplit=1)[0].lower().replace("_", "-")
    if name not in allowed:
        allowed.add(name)
        try:
            waiting += [need for need in metadata.requires(name) or () if "extra ==" not in need]
        except metadata.PackageNotFoundError:
            pass  # a requirement of another platform
owners = metadata.packages_distributions()


def foreign(name):
    own = owners.get(name.partition(".")[0])
    return own and not {x.lower().replace("_", "-") for x in own} & allowed


class Installed:
    # all of sys.meta_path, as if the foreign packages were not there

    def __init__(self, finders):
        self.finders = finders

    def find_spec(self, name, path=None, target=None):
        finders = () if foreign(name) else self.finders
        return next((spec for finder in finders if (spec := finder.find_spec(name, path, target)) is not None), None)


for name in filter(foreign, list(sys.modules)):
    del sys.modules[name]  # what site's .pth files brought
sys.meta_path[:] = [Installed(list(sys.meta_path))]
for name in ("pyarrow", "safetensors", "tqdm", "diffusers"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} was not refused")

import gsnr, gsnr.table, torch
from torch import nn

model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
data = {"x": torch.randn(9, 5)}
loss = lambda m, b: m(b["x"]).square().sum(1)
for engine in ("auto", "loop", "vmap"):
    result = gsnr.measure(model, loss, [data], engine=engine)
    print(result["all"].n, result["all"].ci()[0] < result["all"].gsnr)
assert gsnr.compare(model, loss, loss, [data])["all"].n == 9
assert gsnr.check(model, loss, data).ok
assert gsnr.Monitor(model, {"loss": loss}, [data], every=1)(1)["loss"]["all"].n == 9
"""


def test_measures_an_mlp_without_any_other_package() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == ["9 True"] * 3
