"""Mutation testing of the objectives and the prior: `python .ci/mutate.py [MODULE ...]`.

Mutates each module of `.ci/mutation.toml` by cosmic-ray's operators, and by one more that drops a
method call (`var.sqrt()` becomes `var`). A mutant lives in the memory of a forked process that
runs the tests; no file is changed. Prints the survivors that the configuration does not explain,
and fails if there are any. Needs `pip install cosmic-ray`, and os.fork.
"""

import ast
import collections
import difflib
import gc
import importlib.machinery
import os
import re
import signal
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parent.parent
CONFIG = tomllib.loads((ROOT / ".ci/mutation.toml").read_text())


def by_cosmic_ray(source: str) -> Iterator[tuple[str, str]]:
    """Every mutation by an operator that is not left out: its name, the mutated source."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    excluded = re.compile("|".join(CONFIG["exclude_operators"]))
    for name in operator_names():
        operator, short = get_operator(name), name.removeprefix("core/")
        if operator.arguments() or excluded.fullmatch(short):
            continue
        occurrence = 0
        while (mutated := mutate_code(source, operator(), occurrence)) is not None:
            yield short, mutated
            occurrence += 1


def by_dropping_a_call(source: str) -> Iterator[tuple[str, str]]:
    """Every method call dropped: a.b(...) becomes a."""
    text = source.encode()
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            kept = node.func.value
            end = starts[(kept.end_lineno or 0) - 1] + (kept.end_col_offset or 0)
            dot = text.index(b".", end)  # between them, the parentheses that close what is kept
            after = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
            yield "DropCall", (text[:dot] + text[after:]).decode()


def meaning(source: str) -> str:
    """The syntax tree, up to the * and / of signatures, which are no arithmetic."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            node.args = node.posonlyargs + node.args + node.kwonlyargs
            node.defaults += [default for default in node.kw_defaults if default]
            node.posonlyargs, node.kwonlyargs, node.kw_defaults = [], [], []
    return ast.dump(tree)


def mutants(path: str) -> Iterator[tuple[str, str, str, str]]:
    """Every mutant that is Python and differs: operator, changed lines (old, new), source."""
    source = (ROOT / path).read_text()
    seen = {meaning(source)}
    for mutate in (by_cosmic_ray, by_dropping_a_call):
        for operator, mutated in mutate(source):
            try:
                tree = meaning(mutated)
            except SyntaxError:
                continue
            if tree not in seen:
                seen.add(tree)
                diff = list(difflib.ndiff(source.splitlines(), mutated.splitlines()))
                old, new = (
                    " ".join(line[1:].strip() for line in diff if line[0] == sign) for sign in "-+"
                )
                yield operator, old, new, mutated


def survives(path: str, mutated: str) -> bool:
    """Whether the tests pass in a child that imports `mutated` in the place of `path`."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(run_tests(path, mutated))
        finally:
            os._exit(70)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def run_tests(path: str, mutated: str) -> int:
    """Pytest's exit status."""
    import pytest

    signal.alarm(CONFIG["timeout_seconds"])
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    loader = importlib.machinery.SourceFileLoader
    read_code = loader.get_code

    def get_code(self: Any, fullname: str) -> Any:
        if Path(self.path) == ROOT / path:
            return compile(mutated, self.path, "exec")
        return read_code(self, fullname)

    loader.get_code = get_code
    return int(pytest.main([*CONFIG["pytest_options"], *CONFIG["tests"]]))


def explained(path: str, old: str, new: str) -> bool:
    """Whether the configuration says why the mutant computes the same."""
    return any(
        (entry["module"], entry["old"]) == (path, old) and re.fullmatch(entry["new"], new)
        for entry in CONFIG["equivalent"]
    )


def load_once() -> None:
    """Import what the tests import, for the children to share, but not what may be mutated."""
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    sys.pycache_prefix = tempfile.mkdtemp()
    import pytest

    import pyro_scale

    if Path(str(pyro_scale.__file__)).parent != ROOT / "pyro_scale":
        sys.exit(f"pyro_scale is imported from {pyro_scale.__file__}, not from {ROOT}")
    pytest.main([*CONFIG["pytest_options"], "-q", "--collect-only", *CONFIG["tests"]])
    for name, module in list(sys.modules.items()):
        file = str(getattr(module, "__file__", ""))
        if file.startswith(str(ROOT)) and "site-packages" not in file:
            del sys.modules[name]
    gc.collect()
    gc.freeze()  # or every child spends most of its time collecting what it inherited


def main() -> int:
    """Run every mutant of the modules named on the command line, or of all."""
    load_once()
    if not survives("", ""):
        sys.exit("the tests fail without a mutation")
    unexplained = 0
    for path in sys.argv[1:] or CONFIG["modules"]:
        count = collections.Counter({"killed": 0, "equivalent": 0, "SURVIVED": 0})
        for operator, old, new, mutated in mutants(path):
            outcome = "killed"
            if survives(path, mutated):
                outcome = "equivalent" if explained(path, old, new) else "SURVIVED"
            count[outcome] += 1
            if outcome == "SURVIVED":
                sys.stdout.write(f"SURVIVED {path} {operator}\n- {old}\n+ {new}\n")
                sys.stdout.flush()
        unexplained += count["SURVIVED"]
        sys.stdout.write(f"{path}: {count.total()} mutants, {dict(count)}\n")
        sys.stdout.flush()
    return int(unexplained > 0)


if __name__ == "__main__":
    sys.exit(main())
