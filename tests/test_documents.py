"""Links in the prose lead somewhere, and the model page's code runs."""

import re
from pathlib import Path
from urllib.parse import unquote

import jupytext
import pytest

import pyro_scale as ps

ROOT = Path(__file__).parent.parent
PROSE = sorted(
    path
    for pattern in (
        *("*.md", "derivations/*.md", "notebooks/*.md", "notebooks/*.py"),
        "tests/benchmarks/*.md",
    )
    for path in ROOT.glob(pattern)
)
LINK = re.compile(r"\[[^\[\]]*(?:\[[^\]]*\][^\[\]]*)*\]\(<?([^()\s>]+)>?\)")


def markdown(path):
    """What a reader sees of a file, code blocks and code left out."""
    text = path.read_text("utf8")
    if path.suffix == ".py":
        cells = jupytext.reads(text, fmt="py:percent").cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return re.sub(r"`[^`\n]*`", "code", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def anchors(path):
    """The anchors that GitHub gives the headings: lower case, punctuation gone, hyphens."""
    found = []
    text = re.sub(r"^```.*?^```", "", path.read_text("utf8"), flags=re.M | re.S)
    for heading in re.findall(r"^#+ +(.*?)\s*$", text, re.M):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return found


def broken(path):
    """The relative links of a file that lead nowhere."""
    wrong = []
    for target in LINK.findall(markdown(path)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = unquote(target).partition("#")
        there = path.parent / name if name else path
        inside = there.exists() and there.resolve().is_relative_to(ROOT)
        if not inside or (anchor and (there.suffix != ".md" or anchor not in anchors(there))):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_and_anchors_resolve(path):
    assert broken(path) == []


def test_broken_links_are_found(tmp_path, monkeypatch):
    """The power of the check above."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "there.md").write_text("# A heading, with `code`\n\n## Twice\n\n## Twice\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md) [b](there.md#a-heading-with-code) [c](there.md#twice-1) [d](#here) "
        "[e](gone.md) [f](there.md#gone) [g](https://example.org/gone.md) [h](../outside.md)\n\n"
        "```\n[i](in_code.md)\n```\n\n# Here\n"
    )
    assert broken(page) == ["gone.md", "there.md#gone", "../outside.md"]


def test_the_readme_and_the_reading_path_reach_every_page():
    """From the README, by links, every chapter and notebook."""
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in reached or not page.is_file():
            continue
        reached.add(page)
        if page.suffix == ".ipynb":
            page = page.with_suffix(".py")
        if page in PROSE:
            names = [target.partition("#")[0] for target in LINK.findall(markdown(page))]
            todo += [(page.parent / name).resolve() for name in names if name and ":" not in name]
    pages = [*ROOT.glob("*.md"), *ROOT.glob("derivations/*.md"), *ROOT.glob("notebooks/*.ipynb")]
    assert {path.name for path in pages} - {path.name for path in reached} <= {"CHANGELOG.md"}


@pytest.mark.slow
def test_the_model_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it writes files
    page = (ROOT / "derivations" / "model.md").read_text("utf8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    names = {}
    for block in blocks:
        exec(compile(block, "model.md", "exec"), names)
    assert names["z"].shape == (300, 5)
    assert names["q_c"].shape == (300, 3)
    assert set(names["table"].to_frame()["status"]) <= {"holds", "unsupported"}
    asked = {name for name in dir(ps.SCALE) if name.startswith("get_")}
    assert asked <= set(re.findall(r"model\.(get_\w+)", page)) | {
        "get_binary_accessibility",
        "get_decoder_weights",
    }
