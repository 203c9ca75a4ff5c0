"""Names in single backticks: links where they name something documented, else code.

A name is looked for where it stands (class, then module), then as the one documented module, class or function
that is called so. Names of arguments, files and options stay code, as do names that two objects share.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PyXRefRole
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

KINDS = frozenset({"module", "class", "exception", "function"})


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the role, which is the default one, and who resolves it."""
    app.add_role("name", NameRole())
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class NameRole(PyXRefRole):
    """A reference to anything Python, marked as one that may lead nowhere."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Make a reference of the text."""
        self.name, self.refdomain, self.reftype = "py:obj", "py", "obj"
        self.classes = ["xref", "py", "py-obj"]
        return self.create_xref_node()

    def process_link(
        self, env: BuildEnvironment, refnode: nodes.Element, has_explicit_title: bool, title: str, target: str
    ) -> tuple[str, str]:
        """Mark it."""
        refnode["may_lead_nowhere"] = True
        return super().process_link(env, refnode, has_explicit_title, title, target)


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.TextElement
) -> nodes.reference | nodes.TextElement | None:
    """The reference that Python's domain did not find where it stands, or the text alone."""
    if not node.get("may_lead_nowhere"):
        return None
    target = node["reftarget"]
    objects = env.domains.python_domain.objects
    found = [name for name, entry in objects.items() if f".{name}".endswith(f".{target}") and entry.objtype in KINDS]
    if len(found) != 1:
        return contnode
    entry = objects[found[0]]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, found[0])
