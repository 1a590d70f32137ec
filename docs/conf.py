"""The documentation as a site: `make docs`. Nothing in it is fetched from elsewhere."""

from regraft import __version__ as release

project = "regraft"
author = "the regraft authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
root_doc = "index"
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build"]
myst_heading_anchors = 3
nitpicky = True
nitpick_ignore_regex = [("py:.*", r".*")]  # types of other libraries have no page here
html_theme = "furo"
html_title = f"regraft {release}"
html_copy_source = False
html_show_sphinx = False
