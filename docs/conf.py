"""The settings of the site, which ``make docs`` builds without a network."""

from __future__ import annotations

import sys
from importlib.metadata import version as version_of
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent), str(DOCS.parent / "integrations")]  # this checkout, whatever is installed

project = "sb3_ppo_ext"
author = "The sb3_ppo_ext developers"
copyright = author
release = version = version_of("sb3_ppo_ext")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton", "site_links"]
exclude_patterns = ["_build"]
myst_heading_anchors = 4  # the anchors of a plain git host
# Another package's class is no page of ours, and its pages are not downloaded; a name of this package must be found.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!sb3_ppo_ext).*")]
nitpick_ignore = [  # in signatures only: a type variable and a protocol
    ("py:class", "sb3_ppo_ext.objective.registration.Function"),
    ("py:class", "sb3_ppo_ext_torchrl.loop_checkpoints.Stateful"),
]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False

html_theme = "sphinx_rtd_theme"  # that of Stable-Baselines3's documentation
html_title = f"sb3_ppo_ext {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_depth": 3, "collapse_navigation": False}
html_show_sourcelink = False
html_show_copyright = False
html_show_sphinx = False
copybutton_exclude = ".linenos, .gp, .go"
