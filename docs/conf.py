"""Sphinx: ``make docs``. Warnings are errors, and references to names of ours must resolve."""

import os
import re
import shutil
from importlib.metadata import version as installed
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

HERE = Path(__file__).parent
# Names that can be imported from several places are documented in one.
PLACES = {
    "QBMVI": "scvi_qbm.model",
    "Ising": "scvi_qbm.ising",
    "check_sampler": "scvi_qbm.samplers.conformance",
    "get_sampler": "scvi_qbm.samplers.registry",
    "list_samplers": "scvi_qbm.samplers.registry",
    "register_sampler": "scvi_qbm.samplers.registry",
}
REPOSITORY = "https://github.com/scvi-qbm/scvi-qbm"

project = "scvi-qbm"
author = "The scvi-qbm developers"
copyright = author
release = installed("scvi-qbm")
version = release

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
# rst: for the pages that autosummary makes.
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# Notebooks are executed by `make tutorials` and by the tests; here their outputs are shown.
nb_execution_mode = "off"

autosummary_generate = True
autodoc_default_options = {"members": True, "inherited-members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
autodoc_type_aliases = {name: name for name in ("ArrayLike", "FloatArray", "F64")}
python_use_unqualified_type_names = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_param = True
# Types of a NamedTuple's attributes stand in its signature; from the text napoleon guesses.
napoleon_attr_annotations = False

nitpicky = True
# Other projects' names resolve where their inventories can be fetched; ours must resolve anywhere.
nitpick_ignore_regex = [
    ("py:.*", r"(?!scvi_qbm)[A-Za-z_][\w.]*(\[\w+)?"),
    ("py:class", r"'\w+'"),  # names of types that are not resolved
    ("py:.*", r"scvi_qbm\.(.*\.)?_\w+(\.\w+)?"),  # private classes in signatures
    ("py:.*", r"scvi_qbm\.samplers\.engine\..*"),  # shared by the samplers, not public
    # In signatures of public functions, but not to be imported.
    (
        "py:class",
        r"scvi_qbm\..*\.(Task|DatasetInfo|\w+Scores?|ScGraphReference|Report|Reference"
        r"|CorrectedState|Ladders)",
    ),
]
if os.environ.get("READTHEDOCS") or os.environ.get("DOCS_INTERSPHINX"):
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "matplotlib": ("https://matplotlib.org/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "python": ("https://docs.python.org/3/", None),
        "scvi": ("https://docs.scvi-tools.org/en/stable/", None),
        "torch": ("https://docs.pytorch.org/docs/stable/", None),
    }

html_theme = "sphinx_book_theme"
html_title = project
html_math_renderer = "mathml"  # needs no script and no network
html_static_path = ["_static"]
html_theme_options = {
    "path_to_docs": "docs",
    "repository_url": REPOSITORY,
    "show_toc_level": 2,
    "use_repository_button": True,
}


def copy_tutorials() -> None:
    """Notebooks live beside the code; their links to pages here are made local."""
    target = HERE / "tutorials"
    target.mkdir(exist_ok=True)
    for path in target.glob("*.ipynb"):
        path.unlink()
    for path in sorted((HERE.parent / "tutorials").glob("*.ipynb")):
        text = path.read_text(encoding="utf-8").replace("](../docs/", "](../")
        (target / path.name).write_text(text, encoding="utf-8")


def repository_links(app, docname, source) -> None:
    """What leads out of this folder is shown at the repository."""
    if "/" in docname:  # there, ../ stays within the folder
        return
    text = re.sub(r"\]\(\.\./tutorials/([\w.]+\.ipynb)\)", r"](tutorials/\1)", source[0])
    source[0] = re.sub(r"\]\(\.\./((?!docs/)[\w./-]+)\)", rf"]({REPOSITORY}/blob/main/\1)", text)


def resolve_alias(app, env, node, contnode):
    """Lead references by another place to the one in PLACES."""
    name = node.get("reftarget", "").rpartition(".")[2]
    if name not in PLACES:
        return None
    full, domain = f"{PLACES[name]}.{name}", env.domains.python_domain
    kind = node["reftype"]
    return domain.resolve_xref(env, node["refdoc"], app.builder, kind, full, node, contnode)


def skip_foreign(app, what, name, thing, skip, options):
    """Members that our own bases give are shown, not those that other projects document."""
    thing = getattr(thing, "fget", None) or getattr(thing, "__func__", None) or thing
    module = getattr(thing, "__module__", None)
    return skip or not (module is None or module.startswith("scvi_qbm"))


def visit_math(translator, node) -> None:
    """A formula as MathML."""
    block = isinstance(node, nodes.math_block)
    formula = tex2mathml(node.astext().strip(), as_block=block)
    around = '<div style="margin: 1em 0; overflow-x: auto">{}</div>' if block else "{}"
    translator.body.append(around.format(formula))
    raise nodes.SkipNode


def setup(app) -> None:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    shutil.rmtree(HERE / "api" / "generated", ignore_errors=True)  # names that are no more
    copy_tutorials()
    app.connect("autodoc-skip-member", skip_foreign)
    app.connect("missing-reference", resolve_alias)
    app.connect("source-read", repository_links)
