"""The wheel and the source distribution hold what they should, and nothing else."""

import subprocess
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NAME = "pyro_scale-" + PYPROJECT["project"]["version"]
INFO = {f"{NAME}.dist-info/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")}
SOURCES = {
    *(".cff", ".toml", ".gitignore", "LICENSE", "PKG-INFO"),
    *(".py", ".typed", ".md", ".ipynb", ".json", ".safetensors", ".png"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("distribution")


@pytest.fixture(scope="module")
def wheel(folder):
    return Path(next(WheelBuilder(str(ROOT)).build(directory=str(folder / "wheel"))))


@pytest.fixture(scope="module")
def sdist(folder):
    return Path(next(SdistBuilder(str(ROOT)).build(directory=str(folder / "sdist"))))


def members(path):
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist())
    with tarfile.open(path) as archive:
        return {member.name for member in archive if member.isfile()}


def sources(*places):
    """Those that git knows of, or would; where there is no git, all files but what Python wrote."""
    if (ROOT / ".git").exists():
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *places]
        told = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        paths = [ROOT / name for name in told.split("\0") if name]
    else:
        paths = [path for place in places for path in [ROOT / place, *(ROOT / place).rglob("*")]]
    kept = [path for path in paths if path.is_file() and path.parent.name != "__pycache__"]
    return {path.relative_to(ROOT).as_posix() for path in kept}


def test_the_wheel_is_the_package_and_its_licence(wheel):
    package = sources("pyro_scale") - {"pyro_scale/conftest.py"}  # the examples' names
    assert {"pyro_scale/py.typed", "pyro_scale/__init__.py", "pyro_scale/cli/run.py"} <= package
    assert members(wheel) == package | INFO | {f"{NAME}.dist-info/licenses/LICENSE"}


def test_the_source_distribution_is_what_the_tests_need(sdist):
    places = PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    wanted = sources(*places, "README.md", "LICENSE", "pyproject.toml", ".gitignore")
    assert {
        "tests/serialization/golden/0.1.0/expected.json",
        "notebooks/01_why_gamma.ipynb",
    } <= wanted
    assert members(sdist) == {f"{NAME}/{name}" for name in wanted | {"PKG-INFO"}}


def test_no_data_and_nothing_of_one_machine(sdist):
    """No formats of cells, and no file that names the folder it was made in."""
    assert {Path(name).suffix or Path(name).name for name in members(sdist)} <= SOURCES
    with tarfile.open(sdist) as archive:
        for member in archive:
            assert member.size < 300_000, member.name
            assert str(ROOT).encode() not in archive.extractfile(member).read(), member.name


def test_the_source_distribution_builds_the_same_wheel(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    again = next(WheelBuilder(str(tmp_path / NAME)).build(directory=str(tmp_path)))
    assert Path(again).read_bytes() == wheel.read_bytes()


def test_what_an_index_is_told(wheel):
    with zipfile.ZipFile(wheel) as archive:
        told = Parser().parsestr(archive.read(f"{NAME}.dist-info/METADATA").decode())
        commands = archive.read(f"{NAME}.dist-info/entry_points.txt").decode()
    assert told["Name"] == "pyro-scale"
    assert told["License-Expression"] == "MIT"
    assert told["Requires-Python"] == ">=3.11"
    assert "Typing :: Typed" in told.get_all("Classifier")
    assert told.get_payload().startswith((ROOT / "README.md").read_text()[:200])
    assert "pyro-scale = pyro_scale.cli:main" in commands
