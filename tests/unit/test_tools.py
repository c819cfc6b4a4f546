"""The table of monitoring tools: each row has its set-up, and each set-up its row."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import peers

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("tools_table", ROOT / "docs" / "tools.py")
assert spec
assert spec.loader
table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(table)


def test_each_row_is_tested() -> None:
    """The tools in the table are those that run in a worker under test."""
    setups = (ROOT / "tests" / "integration" / "apps" / "tools").glob("[!_]*.py")
    assert sorted(tool.module for tool in table.TOOLS) == sorted(path.stem for path in setups)


def test_the_table_has_all_rows() -> None:
    """The table in the documentation has a row for each tool, and all its cells."""
    rows = table.as_rst().split("   * - ")[1:]
    assert [row.splitlines()[0] for row in rows[1:]] == [tool.title for tool in table.TOOLS]
    assert {row.count("\n     -") for row in rows} == {3}


def test_tools_have_an_environment() -> None:
    """`make peers` installs the tools."""
    assert "tools" in peers.REQUIREMENTS
