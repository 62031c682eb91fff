"""docs/systems.md: which published systems are served, and by which tests that is proved.

``python tests/support/published/page.py`` writes it anew, from the marks ``system`` of the tests.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "systems.md"
HEAD = """# Systems

Published systems that are served, each with the tests that prove it (`pytest -m system`). The page
is made of the marks of those tests by `python tests/support/published/page.py`.

| system | proved by |
|---|---|
"""


def proofs() -> dict[str, list[str]]:
    """Return the tests that carry a mark, by the system that it names."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for system in map(_system_of, node.decorator_list):
                    if system is not None:
                        found.setdefault(system, []).append(
                            f"`{path.relative_to(ROOT)}::{node.name}`"
                        )
    return found


def _system_of(decorator: ast.expr) -> str | None:
    if not isinstance(decorator, ast.Call) or not ast.unparse(decorator.func).endswith(
        "pytest.mark.system"
    ):
        return None
    (name,) = decorator.args
    return str(ast.literal_eval(name))


def page() -> str:
    """Return the page as the marks say it."""
    rows = sorted(proofs().items(), key=lambda item: item[0].lower())
    return HEAD + "".join(f"| {system} | {', '.join(tests)} |\n" for system, tests in rows)


if __name__ == "__main__":
    PAGE.write_text(page())
