"""Checks that every claim has a test, and every test a claim."""

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
ID = r"D(\d\d)\.(\d+)"


def claimed() -> list[tuple[str, str]]:
    """Return (id, chapter file) of every claim: a bold id at the start of a line."""
    return [
        (f"D{a}.{b}", path.stem)
        for path in sorted(HERE.glob("[0-9][0-9]_*.md"))
        for a, b in re.findall(rf"^\*\*{ID}\*\*", path.read_text("utf8"), re.MULTILINE)
    ]


def covered() -> list[tuple[str, str]]:
    """Return (id, test file) of every test function named test_dCC_N_..."""
    found = []
    for path in sorted(HERE.glob("test_[0-9][0-9]_*.py")):
        for node in ast.parse(path.read_text("utf8")).body:
            match = re.match(r"test_d(\d\d)_(\d+)_", getattr(node, "name", ""))
            if match:
                found.append((f"D{match[1]}.{match[2]}", path.stem))
    return found


def test_every_claim_has_a_test_and_every_test_a_claim() -> None:
    assert {id_ for id_, _ in claimed()} == {id_ for id_, _ in covered()}
    assert claimed()


def test_a_claim_is_made_once() -> None:
    ids = [id_ for id_, _ in claimed()]
    assert len(ids) == len(set(ids))


def test_claims_and_tests_stand_in_the_files_of_their_chapter() -> None:
    for id_, stem in claimed() + covered():
        assert id_[1:3] == stem.removeprefix("test_")[:2], f"{id_} stands in {stem}"


def test_every_chapter_has_its_test_module_and_the_reverse() -> None:
    chapters = {path.stem for path in HERE.glob("[0-9][0-9]_*.md")}
    modules = {path.stem.removeprefix("test_") for path in HERE.glob("test_[0-9][0-9]_*.py")}
    assert chapters <= modules
    assert {stem[:2] for stem in modules} - {"00"} == {stem[:2] for stem in chapters}


def test_every_test_of_a_chapter_carries_an_id() -> None:
    for path in HERE.glob("test_[0-9][0-9]_*.py"):
        if path.stem != "test_00_claims":
            names = re.findall(r"^def (test_\w+)", path.read_text("utf8"), re.MULTILINE)
            assert all(re.match(r"test_d\d\d_\d+_\w+", name) for name in names), path.name


def test_every_id_that_is_mentioned_exists() -> None:
    ids = {id_ for id_, _ in claimed()}
    for path in [*HERE.glob("*.md"), *HERE.glob("test_[0-9][0-9]_*.py")]:
        for match in re.finditer(ID, path.read_text("utf8")):
            assert match[0] in ids, f"{path.name} mentions {match[0]}, which is claimed nowhere"


def test_every_link_between_chapters_resolves() -> None:
    for path in HERE.glob("*.md"):
        for target in re.findall(r"\]\(([\w/.]+?)(?:#[\w-]+)?\)", path.read_text("utf8")):
            assert (HERE / target).exists(), f"{path.name} links to {target}"
