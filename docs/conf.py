"""How `make docs` builds the documentation: pages from docstrings, without the network."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent)]

project = "numa-rl"
project_copyright = "2026, the authors of numa-rl"
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_parser",
    "docstrings",
    "exercises",
    "mathml",
    "names",
]
exclude_patterns = ["_build"]
default_role = "name"
highlight_language = "none"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
ARRAYS = ("FloatArray", "IntArray", "BoolArray", "MaskArray", "StateArray", "Matrix", "F32", "F64", "I32", "Bool")
autodoc_type_aliases = {name: name for name in ARRAYS} | {"npt.ArrayLike": "ArrayLike"}
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]  # a list, as of arguments: types are in the signature
python_maximum_signature_line_length = 120  # of full names: fewer are shown
add_module_names = False
toc_object_entries_show_parents = "hide"
viewcode_line_numbers = True

html_math_renderer = "mathml"
myst_heading_anchors = 3

# A reference that does not resolve is an error, unless what it names is another project's.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(np|npt|numpy|collections|pathlib|gymnasium|enum|types)\..*"),
    ("py:class", r"numa_rl\.roofline\.Values"),  # a type variable
]

html_theme = "furo"
html_title = "numa-rl"
html_static_path = ["_static"]
html_css_files = ["numa-rl.css"]
html_copy_source = False
html_show_sourcelink = False
