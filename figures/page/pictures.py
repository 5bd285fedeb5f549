"""Pictures on the page: figures as WebP without loss (half the bytes of PNG) with their values under the pointer, and samples."""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path

from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from gsnr import files
from gsnr.figures.page.hover import marks
from gsnr.figures.page.layout import render, template
from gsnr.figures.style import paper, placed

DPI = 200
SHOWN_PER_INCH = 140  # of CSS pixels, where there is room: a figure of the full page fills the column of text
QUALITY = 80  # of samples, which are photographs
LARGEST = 50_000_000  # pixels of a picture that is read
WIDEST = 1280  # pixels of one that is shown, at half its size
_PICTURE = template(
    """<figure><div class="plot{% if width > 640 %} wide{% endif %}">
<img alt="{{ alt }}" width="{{ width }}" height="{{ height }}" src="data:image/webp;base64,{{ data }}">
{% if marks %}<svg viewBox="0 0 {{ across }} {{ up }}" preserveAspectRatio="none" aria-hidden="true">{% for m in marks %}<rect x="{{ m[0] }}"
 y="{{ m[1] }}" width="{{ m[2] }}" height="{{ m[3] }}"><title>{{ m[4] }}</title></rect>{% endfor %}</svg>
{% endif %}
</div><figcaption>{{ caption }}</figcaption></figure>
"""
)


def _encoded(picture: Image.Image, **options: object) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", **options)
    return base64.b64encode(buffer.getvalue()).decode()


def drawn(figure: Figure, alt: str, caption: str) -> Markup:
    """A figure, cropped to what is drawn."""
    with paper():
        figure.dpi = DPI
        FigureCanvasAgg(figure)
        crop = placed(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, bbox_inches=crop)
        values = marks(figure)
    # in hundredths of an inch from the upper left of the cropped picture
    shown = [
        (round(100 * (m.x - crop.x0)), round(100 * (crop.y1 - m.y - m.height)), *(max(1, round(100 * x)) for x in (m.width, m.height)), m.text)
        for m in values
    ]
    return render(
        _PICTURE,
        alt=alt,
        caption=caption,
        width=round(SHOWN_PER_INCH * crop.width),
        height=round(SHOWN_PER_INCH * crop.height),
        data=_encoded(Image.open(buffer).convert("RGB"), lossless=True, method=2),  # 4, the default, takes three times as long for as many bytes
        marks=shown,
        across=round(100 * crop.width),
        up=round(100 * crop.height),
    )


def photographed(path: Path, alt: str, caption: str) -> Markup:
    """A PNG from a disk, made smaller. Raises ValueError naming one that cannot be shown."""
    try:
        files.require_regular(path)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as opened:
                if opened.width * opened.height > LARGEST:
                    raise ValueError(f"has {opened.width} x {opened.height} pixels")
                picture = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{path}: cannot be shown ({error})") from error
    picture.thumbnail((WIDEST, 10 * WIDEST))
    data = _encoded(picture, quality=QUALITY)
    return render(_PICTURE, alt=alt, caption=caption, width=picture.width // 2, height=picture.height // 2, data=data, marks=[], across=1, up=1)
