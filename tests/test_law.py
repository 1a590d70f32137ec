"""The laws of the house: who may import whom, what is public, what must never be in the code."""

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import regraft
from regraft.core import errors
from regraft.core.errors import RegraftError

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
from write_architecture import LAYERS

SOURCE = Path(regraft.__file__).parent
TORCH_MODULES = {
    *(
        f"backbones.{name}"
        for name in ("weights", "network", "mobilenet", "stages", "split_network", "onnx_export", "torch_engine")
    ),
    "backbones.torch_export",
    "backbones.torch_defaults",
    *(
        f"training.{name}"
        for name in (
            "augmentation",
            "batches",
            "batchnorm",
            "bf16",
            "cached_activations",
            "checkpoint",
            "finetune",
            "folded_batchnorm",
            "interpolation",
            "loop",
            "parallel",
            "threads",
            "train_state",
        )
    ),
}
HEAVY = {"torch", "torchvision", "timm", "openvino", "sklearn", "scipy", "onnx"}


@cache
def modules() -> dict[str, ast.Module]:
    return {
        ".".join(path.relative_to(SOURCE).with_suffix("").parts): ast.parse(path.read_text())
        for path in sorted(SOURCE.rglob("*.py"))
        if path.stem not in ("__init__", "__main__")
    }


def imported(tree: ast.Module, *, top_level_only: bool = False) -> set[str]:
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layer(module: str) -> str:
    return module.removeprefix("regraft.").partition(".")[0]


@pytest.mark.parametrize("module", modules())
def test_layers_import_only_from_those_before_them(module):
    for name in imported(modules()[module]):
        if name.startswith("regraft.") and layer(name) in LAYERS:
            assert LAYERS.index(layer(name)) <= LAYERS.index(layer(module)), f"{module} imports {name}"


def test_every_folder_and_module_has_its_place_among_the_layers():
    assert {layer(module) for module in modules()} == set(LAYERS)


def test_what_delivers_and_serves_never_learns():
    for module, tree in modules().items():
        if module.startswith(("bundle.", "serving.")):
            assert not {name for name in imported(tree) if name.startswith("regraft.training")}, module


def test_no_module_imports_itself_in_a_circle():
    graph = {m: {n.removeprefix("regraft.") for n in imported(t)} & modules().keys() for m, t in modules().items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for other in graph[module]:
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_torch_is_imported_in_its_own_modules_only():
    for module, tree in modules().items():
        if module not in TORCH_MODULES:
            assert not {n.partition(".")[0] for n in imported(tree, top_level_only=True)} & {"torch", "timm"}, module


def test_public_names_are_exactly_those_listed():
    assert sorted(regraft.__all__) == regraft.__all__
    assert set(regraft.__all__) == set(regraft._HOMES)
    for name in regraft.__all__:
        assert inspect.getdoc(getattr(regraft, name)), name
    with pytest.raises(AttributeError):
        regraft.nothing  # noqa: B018


def test_everything_public_has_a_docstring():
    for module, tree in modules().items():
        assert ast.get_docstring(tree), module
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{module}.{node.name}"


def public_functions():
    """Functions and methods without an underscore, by where they stand."""
    for module, tree in modules().items():
        for node in tree.body:
            members = node.body if isinstance(node, ast.ClassDef) else [node]
            for one in members if not getattr(node, "name", "_").startswith("_") else []:
                if isinstance(one, ast.FunctionDef) and not one.name.startswith("_"):
                    yield f"{module}.{node.name}.{one.name}", one


def test_what_a_function_raises_stands_in_its_docstring():
    known = {name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, RegraftError)}
    for place, function in public_functions():
        calls = [node.exc for node in ast.walk(function) if isinstance(node, ast.Raise)]
        raised = {call.func.id for call in calls if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)}
        if raised & known:
            assert "Raise" in (ast.get_docstring(function) or ""), f"{place} raises {raised & known}"


def test_public_names_give_the_shapes_of_arrays():
    for name in regraft.__all__:
        one = getattr(regraft, name)
        if dataclasses.is_dataclass(one):
            told = (inspect.getdoc(one) or "").replace("`", "")
            for field in dataclasses.fields(one):
                if field.type is np.ndarray:
                    assert re.search(rf"{field.name}(, \w+)*: \([A-Z]", told), f"{name}.{field.name}"


def test_nothing_is_unpickled_unsafely():
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        for banned in (
            "weights_only=False",
            "pickle.load",
            "allow_pickle=True",
            "LOAD_TRUNCATED_IMAGES",
            "eval(",
            "exec(",
        ):
            if (path.name, banned) == ("pillow_settings.py", "LOAD_TRUNCATED_IMAGES"):
                continue  # where it is kept off
            assert banned not in text.replace(".eval()", ""), f"{path}: {banned}"


def names_in_tests() -> set[str]:
    """What tests address by name, as "regraft.commands.train.train_run": to change it, watch it or stop at it."""
    texts = (path.read_text() for path in Path(__file__).parent.rglob("*.py"))
    return {name for text in texts for name in re.findall(r'"(regraft(?:\.[a-z_]+)+\.[A-Za-z_]+)"', text)}


def is_there(name: str) -> bool:
    """Whether it is a module, or defined or imported in one."""
    module, _, rest = name.removeprefix("regraft.").rpartition(".")
    if f"{module}.{rest}" in modules():
        return True
    nodes = list(ast.walk(modules().get(module, ast.Module([], []))))
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    known = {alias.asname or alias.name for node in imports for alias in node.names}
    return rest in known | {getattr(node, kind, "") for node in nodes for kind in ("name", "id")}


def test_what_tests_address_by_name_is_there():
    named = [name for name in sorted(names_in_tests()) if layer(name) in LAYERS]
    assert [name for name in named if not is_there(name)] == []
    assert len(named) > 20


def test_the_quick_tier_has_no_torch_and_no_processes(request):
    if not request.config.getoption("--quick"):
        pytest.skip("only of `make quick`")
    assert "torch" not in sys.modules
    with pytest.raises(pytest.skip.Exception):
        import_module("torch")
    with pytest.raises(pytest.skip.Exception):
        subprocess.run([sys.executable, "-c", ""], check=True)


def test_help_is_light():
    """What it waits for is what it imports: little, and little of it not Python's own."""
    code = """import atexit, runpy, sys
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
runpy.run_module("regraft", run_name="__main__")"""
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: ")
    loaded = done.stderr.split()
    others = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names
    assert not others & HEAVY
    assert {name for name in others if not name.startswith("_")} <= {"click", "numpy", "regraft"}
    assert len([name for name in loaded if name.startswith("regraft")]) <= 25
    assert len(loaded) <= 350


OVERWRITERS = {"write_atomic", "remove", "replace_any", "rmtree", "unlink", "os.replace", "write_bytes", "write_text"}
OWN_PLACES = {  # modules that overwrite or remove, and why nothing of the user's is there
    "core.files": "what the others stand on",
    "core.ownership": "asks first",
    "backbones.backbone": "the cache",
    "backbones.derived": "the cache",
    "backbones.onnx_export": "the cache",
    "data.feature_cache": "the cache",
    "labelling.thumbnails": "the cache",
    "models.head_cache": "the cache",
    "data.dataset_writers": "a folder that is not published yet",
    "data.fetch": "a folder that is not published yet",
    "data.sources": "a temporary folder",
    "data.remote": "the cache",
    "data.orchard": "a folder that is not published yet",
    "data.sorting": "removes what is still a copy of a photo elsewhere, and writes where nothing is",
    "bundle.write": "a folder that is not published yet",
    "exporters.formats": "a folder that is not published yet",
    "exporters.sample_photos": "a folder that is not published yet",
    "commands.hub": "a folder that is not published yet",
    "commands.scan": "a folder that is not published yet",
    "training.checkpoint": "a folder that is not published yet",
    "commands.export": "asks ExportedFiles first",
    "serving.keeping": "names that are the content's hash, where nothing is yet",
    "serving.model": "a folder of the server's own",
}


def test_what_overwrites_or_removes_files_is_where_nothing_of_the_users_is():
    found = set()
    for place, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                text = ast.unparse(node.func)
                of_files = text in OVERWRITERS or text.rpartition(".")[2] in OVERWRITERS - {"remove", "replace_any"}
                found |= {place} if of_files and not text.startswith("self.") else set()
    assert found <= OWN_PLACES.keys(), "use core.ownership.write_output or remove_made"
    assert OWN_PLACES.keys() <= found, "no longer writes"
