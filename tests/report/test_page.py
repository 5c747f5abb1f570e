"""The page: self-contained, escaped, complete, and written whole or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from html.parser import HTMLParser

import plotly.graph_objects as go
import pytest

from thalweg.estimate import Bound
from thalweg.report import render, write
from thalweg.report.tables import duration

EVIL = "<script>alert('x')</script><img src=http://x.y/z onerror=alert(1)>\"'&</style>@ink"


class Reader(HTMLParser):
    """Collects tags, attributes, visible text and the scripts."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.links, self.handlers, self.text, self.scripts = [], [], [], [], []
        self.stack = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "img", "br", "link", "input"):
            self.stack.append(tag)
        if tag == "script":
            self.scripts.append("")
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "poster"):
                self.links.append((tag, name, value))
            if name.startswith("on"):
                self.handlers.append((tag, name))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag, f"unbalanced </{tag}>"

    def handle_data(self, data):
        if self.stack and self.stack[-1] == "script":
            self.scripts[-1] += data
        elif self.stack and self.stack[-1] != "style":
            self.text.append(data)


def figures(page):
    return json.loads(Reader(page).scripts[0])


def test_the_page_is_self_contained(make):
    page = render(make.realistic())
    reader = Reader(page)
    assert reader.stack == []
    assert reader.links == []
    assert reader.handlers == []
    assert not {"link", "iframe", "object", "embed", "img"} & set(reader.tags)
    assert len(reader.scripts) == 3
    assert page.count("plotly.js v") >= 1
    assert "default-src 'none'" in page.partition("</head>")[0]
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert not re.search(r"https?:", "".join(reader.text))


def test_text_from_the_record_is_never_markup(make):
    minima = [
        make.minimum(
            EVIL,
            origin=EVIL,
            metrics={EVIL: make.estimate(1.0, 0.1)},
            held_out={EVIL: make.estimate(1.0, 0.1)},
        ),
        make.minimum("m1", 0.12),
    ]
    record = make.survey(
        minima,
        [make.path(EVIL, "m1", 0.5, method=EVIL)],
        name=EVIL,
        created=EVIL,
        failures=(make.failure(EVIL, EVIL),),
        config={EVIL: EVIL},
        provenance={EVIL: {EVIL: [EVIL]}},
    )
    page = render(record)
    reader = Reader(page)
    assert len(reader.scripts) == 3
    assert "img" not in reader.tags
    assert reader.handlers == []
    assert reader.links == []
    assert EVIL in "".join(reader.text)
    assert "alert('x')" not in "".join(reader.scripts[1:])
    spec = figures(page)
    assert "<" not in re.sub(r"<br>|<extra>|</extra>", "", json.dumps(spec))
    assert "&lt;script&gt;" in json.dumps(spec)


def test_every_figure_is_valid_plotly(make):
    drawn = figures(render(make.realistic()))
    assert set(drawn) == {
        *("tree", "persistence", "spectra", "curvature", "density", "laws", "layers", "levels-0"),
        *(f"path-{k}" for k in range(7)),
    }
    for spec in drawn.values():
        text = re.sub(r'"@(ink|muted|grid|paper|accent)"', '"#123456"', json.dumps(spec))
        figure = go.Figure(json.loads(text))  # validates every property
        assert figure.layout.xaxis.title.text
        assert figure.layout.yaxis.title.text
        assert figure.layout.paper_bgcolor == "rgba(0,0,0,0)"
    with pytest.raises(ValueError, match="Invalid property"):
        go.Figure({"data": [], "layout": {"xaxys": {}}})


def test_the_figures_hold_the_record(make):
    record = make.realistic()
    drawn = figures(render(record))
    marks = {trace.get("name"): trace for trace in drawn["tree"]["data"]}
    leaves = marks["minimum ± sampling error"]
    assert sorted(leaves["y"]) == sorted(m.loss for m in record.minima)
    assert leaves["error_y"]["array"] == pytest.approx([0.0061] * 6)
    assert len(marks["pass, order unresolved"]["y"]) == sum(
        not merge.resolved for merge in record.tree.merges
    )
    carriers = {frozenset(merge.edge) for merge in record.tree.merges}
    first = min(
        (p for p in record.paths if frozenset((p.a, p.b)) in carriers),
        key=lambda p: p.maximum.upper,
    )
    assert drawn["path-0"]["data"][1]["y"] == list(first.losses)
    band = drawn["path-0"]["layout"]["shapes"][0]
    assert (band["y0"], band["y1"]) == (first.maximum.lower, first.maximum.upper)
    eigen = record.minima[0].eigenvalues
    spectrum = drawn["spectra"]["data"][0]
    assert spectrum["y"] == list(eigen.values)
    assert spectrum["error_y"]["array"] == pytest.approx(
        [u - v for u, v in zip(eigen.upper, eigen.values, strict=True)]
    )
    assert [s.endswith("-open") for s in spectrum["marker"]["symbol"]] == [
        not done for done in eigen.converged
    ]


def test_tables_hold_every_minimum_path_failure_and_setting(make):
    record = make.realistic()
    text = " ".join(Reader(render(record)).text)
    for minimum in record.minima:
        assert minimum.id in text
    for shown in (
        "0.0061",
        "± 2.5",
        "m0 – m5",
        "the loss is not finite at step 41",
        "data.digest",
        "path.images",
        "1 min 37 s",
        "2,410 parameters",
        "held out: accuracy",
        "6 minima, 5 merges, 1 root",
        "47,000",
    ):
        assert shown in text, shown


def test_an_empty_survey_and_what_is_not_finite(make):
    page = render(make.survey())
    assert "No minimum has been found" in page
    assert figures(page) == {}
    minima = [
        make.minimum("m0", math.nan, noise=math.nan, trace=(math.nan, math.nan), top=None),
        make.minimum("m1", noise=None, trace=None),
    ]
    path = make.path(
        "m0",
        "m1",
        0.2,
        losses=(math.nan,) * 21,
        bracket=Bound(0.1, math.inf, "estimated", "estimated"),
    )
    drawn = figures(render(make.survey(minima, [path], tree=None)))
    assert drawn["path-0"]["data"][1]["y"] == [None] * 21
    assert drawn["curvature"]["data"][0]["y"] == [None]


def test_minima_that_nothing_joins_end_in_the_open(make):
    minima = [make.minimum("m0", 0.1), make.minimum("m1", 0.2)]
    drawn = figures(render(make.survey(minima)))["tree"]
    stems = next(t for t in drawn["data"] if t.get("name") == "no path known")
    assert stems["x"] == [0, 0, None, 1, 1, None]
    assert stems["y"][1] == stems["y"][4] > 0.2


def test_losses_far_apart_have_a_log_axis_and_negative_ones_never(make):
    minima = [make.minimum("m0", 0.1), make.minimum("m1", 0.1)]
    far = figures(render(make.survey(minima, [make.path("m0", "m1", 5.0)])))
    assert far["path-0"]["layout"]["yaxis"]["type"] == "log"
    assert far["path-0"]["layout"]["yaxis"]["title"]["text"] == "loss (log scale)"
    low = [make.minimum("m0", -140.0), make.minimum("m1", -80.0)]
    below = figures(render(make.survey(low, [make.path("m0", "m1", -40.0, ends=(-140, -80))])))
    assert "type" not in below["tree"]["layout"]["yaxis"]


def test_more_paths_than_are_drawn(make):
    minima = [make.minimum(f"m{k}") for k in range(9)]
    paths = [make.path(f"m{a}", f"m{b}", 0.2 + a / 10) for a in range(9) for b in range(a)]
    page = render(make.survey(minima, paths))
    assert sum(key.startswith("path-") for key in figures(page)) == 24
    assert "the table has the other 12 too" in page


def test_write_is_atomic(make, tmp_path, monkeypatch):
    target, umask = tmp_path / "digits.html", os.umask(0o027)
    os.umask(umask)
    assert write(make.survey(), target) == target
    assert target.read_text("utf-8") == render(make.survey())
    assert os.listdir(tmp_path) == ["digits.html"]
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OSError,
        match=r"cannot write the report: the disk is full; the report "
        r"needs \d\.\d MB, so free some space. Nothing was changed",
    ) as caught:
        write(make.realistic(), target)
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == ["digits.html"]
    assert target.read_text("utf-8") == render(make.survey())


def test_write_says_what_is_wrong_with_the_place(make, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder .*absent does not exist; create it"):
        write(make.survey(), tmp_path / "absent" / "r.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="cannot write the report: that is a folder"):
        write(make.survey(), tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]


def test_duration():
    assert [duration(s) for s in (0.0, 59.94, 60)] == ["0.0 s", "59.9 s", "1 min 0 s"]
    assert duration(3600) == "1 h 0 min"
    assert duration(math.nan) == "nan s"
