"""Pictures of pages: the size asked for, what the page shows, a clear word without a browser."""

from __future__ import annotations

import importlib
import shutil
import struct
import subprocess

import pytest
from PIL import Image

from thalweg.report import photograph, save


def test_a_page_is_photographed_in_the_size_and_colours_it_has(chromium, tmp_path):
    page = "<body style='margin: 0; background: #0072b2'>"
    photograph(page, tmp_path / "new" / "page.png", width=310, height=205)
    with Image.open(tmp_path / "new" / "page.png") as picture:
        assert picture.size == (310, 205)
        assert picture.convert("RGB").getpixel((300, 200)) == (0x00, 0x72, 0xB2)


@pytest.mark.slow
def test_a_figure_is_saved_both_ways(chromium, tmp_path):
    go = pytest.importorskip("plotly.graph_objects")
    drawn = go.Figure(go.Scatter(x=[0, 1], y=[0, 1], line={"color": "#d55e00", "width": 20}))
    save(drawn, tmp_path / "line.png", width=400, height=300)
    header = (tmp_path / "line.png").read_bytes()[16:24]
    assert struct.unpack(">II", header) == (400, 300)
    with Image.open(tmp_path / "line.png") as picture:
        colours = picture.convert("RGB").getcolors(400 * 300)
        assert (0xD5, 0x5E, 0x00) in [colour for _, colour in colours]
    save(drawn, tmp_path / "line.html")
    assert "#d55e00" in (tmp_path / "line.html").read_text("utf-8")


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"a photograph is a \.png file, got 'a\.svg'"):
        photograph("<p>", tmp_path / "a.svg")
    with pytest.raises(ValueError, match="width and height must be at least 1, got 0 and 800"):
        photograph("<p>", tmp_path / "a.png", width=0)


def test_no_browser_and_a_failing_one_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="needs Chromium or Chrome, and none was found"):
        photograph("<p>", tmp_path / "a.png")
    monkeypatch.setattr(shutil, "which", lambda name: "browser")
    failed = subprocess.CompletedProcess([], 7, "", "first\nno display\n")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: failed)
    said = r"browser wrote no picture \(status 7\); it said: no display"
    with pytest.raises(RuntimeError, match=said):
        photograph("<p>", tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_a_page_whose_script_never_ends_is_given_up(chromium, tmp_path, monkeypatch):
    module = importlib.import_module("thalweg.report.photograph")
    monkeypatch.setattr(module, "PATIENCE", 2.0)
    with pytest.raises(RuntimeError, match="drew no picture in 2 s; a script of the page may not"):
        photograph("<script>for(;;);</script>", tmp_path / "a.png")
