"""Draw the README's picture from a survey: python docs/images/make.py SURVEY OUT.png.

Needs chromium. The picture in the repository is that of `make demo`, seed 0.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from plotly.offline import get_plotlyjs

from thalweg.report import figures, photograph
from thalweg.survey import Survey

COLOURS = {"main": "#0072b2", "muted": "#777777", "text": "#222222", "grid": "#e4e4e4"}
PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; display: flex; background: #ffffff }} div {{ width: 600px; height: 400px }}
</style><div id="a"></div><div id="b"></div><script>{plotly}</script><script>
const specs = {specs};
["a", "b"].forEach((id, i) => Plotly.newPlot(id, specs[i].data, specs[i].layout,
  {{ displayModeBar: false, staticPlot: true }}));
</script>"""


def styles() -> dict[str, str]:
    """Return the colours that the report's style sheet gives its light theme."""
    sheet = (Path(figures.__file__).parent / "style.css").read_text("utf-8")
    light = sheet.partition("@media")[0]
    pairs = [line.split(":", 1) for line in light.replace("{", ";").split(";") if "--" in line]
    return {name.strip().lstrip("-"): value.strip() for name, value in pairs}


def main(survey: str, out: str) -> None:
    """Write the disconnectivity graph and the path with the largest gain over its line."""
    with Survey.read(survey) as found:
        record = found.record()
    gain = max(record.paths, key=lambda p: p.line_maximum.upper - p.maximum.upper)
    specs = json.dumps([figures.disconnectivity(record), figures.path(record, gain)])
    for name, colour in (COLOURS | styles()).items():
        specs = specs.replace(f'"@{name}"', f'"{colour}"')
    page = PAGE.format(plotly=get_plotlyjs(), specs=specs)
    photograph(page, out, width=1200, height=400)


if __name__ == "__main__":
    main(*sys.argv[1:])
