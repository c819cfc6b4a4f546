"""Sphinx configuration. Build: ``make docs`` (every warning is an error)."""

import csv
import importlib.util
import re
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

project = "celery-batches"
author = "celery-batches contributors"
copyright = author
release = installed_version("celery-batches")
version = release

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_tables"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["tables.css"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
# Docstrings inherited from Celery use roles that only Celery's own documentation defines.
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False

# No intersphinx: the documentation builds without a network. So names of the standard library and
# of Celery stay unlinked, and any other unknown name is an error.
_foreign = sorted({"amqp", "billiard", "celery", "kombu", "vine", *sys.stdlib_module_names})
nitpick_ignore_regex = [("py:.*", rf"({'|'.join(map(re.escape, _foreign))})(\..*)?")]
# The package imports some of Celery's classes for type checkers only. Beside these, the signatures
# show the names of classes without their modules.
_for_types = (
    "Celery",
    "Consumer",
    "Context",
    "EagerResult",
    "Request",
    "ResultBase",
    "ResultSet",
    "Signature",
)
nitpick_ignore = [("py:class", name) for name in (*_for_types, "AbstractContextManager")]


def write_tables(app):
    """Tables that are code, or that have a column for the tests, as pages can include them."""
    docs = Path(app.srcdir)
    tables = docs / "_tables"
    tables.mkdir(exist_ok=True)
    for name in ("acks", "tools"):
        spec = importlib.util.spec_from_file_location(name, docs / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        (tables / f"{name}.rst").write_text(module.as_rst())
    for source in docs.glob("honours-*.csv"):
        with source.open(newline="") as rows, (tables / source.name).open("w", newline="") as shown:
            csv.writer(shown).writerows(row[:-1] for row in csv.reader(rows))


def link_pages(app, relative_path, parent_docname, content):
    """Link pages from the README, which names them by their paths in the repository."""
    path = r"`([^`<]+) <(?:docs/)?([\w/-]+)\.rst>`__"
    content[0] = re.sub(path, lambda link: f":doc:`{link[1]} <{link[2].lower()}>`", content[0])


def setup(app):
    app.connect("builder-inited", write_tables)
    app.connect("include-read", link_pages)
