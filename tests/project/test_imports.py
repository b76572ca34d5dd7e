"""Imports: under any mode of torch, twice, and where torch has moved its private names."""

from __future__ import annotations

import ast
import subprocess
import textwrap
from pathlib import Path

import torchinit
import warm
from conftest import native_only

FILLS = """
torch.manual_seed(3)
a = torchinit.normal_(torch.empty(4))
with torchinit.batch():
    b = torchinit.uniform_(torch.empty(4))
with torchinit.patch_nn_init():
    c = torch.nn.init.normal_(torch.empty(4)).tolist() + torch.randn(3).tolist()
print(torch.get_rng_state().sum().item(), a.tolist(), b.tolist(), c[:4])
"""

MODES = {
    "plain": "import torchinit",
    "inference mode": "with torch.inference_mode(): import torchinit",
    "fake tensors": """
        from torch._subclasses.fake_tensor import FakeTensorMode
        with FakeTensorMode(): import torchinit
        """,
    "functionalize": """
        def f(x):
            import torchinit
            return torchinit.normal_(x.clone())
        torch.func.functionalize(f)(torch.zeros(3))
        import torchinit
        """,
    "grad": """
        def f(x):
            import torchinit
            return (torchinit.normal_(x.clone()) * x).sum()
        torch.func.grad(f)(torch.zeros(3))
        import torchinit
        """,
    "vmap": """
        def f(x):
            import torchinit
            return torchinit.normal_(x)
        torch.vmap(f, randomness="different")(torch.zeros(3, 2))
        import torchinit
        """,
    "make_fx": """
        from torch.fx.experimental.proxy_tensor import make_fx
        def f(x):
            import torchinit
            return torchinit.normal_(x.clone())
        make_fx(f, tracing_mode="symbolic")(torch.zeros(3))
        import torchinit
        """,
    "export": """
        class M(torch.nn.Module):
            def forward(self, x):
                import torchinit
                return torchinit.normal_(torch.empty_like(x)) + x
        torch.export.export(M(), (torch.zeros(3),), strict=False)
        import torchinit
        """,
    "meta as default device": """
        torch.set_default_device("meta")
        import torchinit
        torch.set_default_device(None)
        """,
    "first draw in inference mode": """
        import torchinit
        with torch.inference_mode(): torchinit.normal_(torch.empty(3))
        """,
    "first draw in a batch, then fake": """
        import torchinit
        from torch._subclasses.fake_tensor import FakeTensorMode
        with torchinit.batch():
            torchinit.normal_(torch.empty(3))
            with FakeTensorMode(): torchinit.normal_(torch.empty(3))
        """,
    "twice": """
        import importlib, sys
        import torchinit
        importlib.reload(torchinit)
        importlib.reload(sys.modules["torchinit.fill.operators"])
        importlib.reload(sys.modules["torchinit.streams.keys"])
        importlib.reload(sys.modules["torchinit.orthogonal"])
        importlib.reload(sys.modules["torchinit.native.load"])
        for name in [name for name in sys.modules if name.startswith("torchinit")]:
            del sys.modules[name]
        import torchinit
        torchinit.orthogonal_(torch.empty(3, 3))
        torch.ops.torchinit.normal_(torch.empty(3), torch.tensor(1), 0.0, 1.0)
        """,
}


def run(code: str) -> subprocess.CompletedProcess:
    program = "import torch\n" + textwrap.dedent(code)
    return warm.run("-c", program, warnings_as_errors="UserWarning")


@native_only
def test_every_import_gives_the_same_fills():
    outputs = {}
    for name, code in MODES.items():
        process = run(textwrap.dedent(code) + FILLS)
        assert process.returncode == 0, (name, process.stderr)
        outputs[name] = process.stdout
    assert set(outputs.values()) == {outputs["plain"]}


PRIVATE = [
    ("torch._C", "_len_torch_dispatch_stack"),
    ("torch._C", "_len_torch_function_stack"),
    ("torch._C", "_get_tracing_state"),
    ("torch._C", "_increment_version"),
    ("torch._C._functorch", "peek_interpreter_stack"),
    ("torch._C._functorch", "get_interpreter_stack"),
    ("torch._subclasses.fake_tensor", "FakeTensor"),
    ("torch.autograd.forward_ad", "_current_level"),
    ("torch", "_is_functional_tensor"),
    ("torch._C._functorch", "is_functorch_wrapped_tensor"),
    ("torch.overrides", "_get_current_function_mode_stack"),
    ("torch.utils._device", "DeviceContext"),
    ("torch.utils._device", "_device_constructors"),
    ("torch.multiprocessing.reductions", "StorageWeakRef"),
    ("torch._C", "DisableTorchFunction"),
    ("torch.jit._builtins", "_register_builtin"),
    ("torch.jit._builtins", "_get_builtin_table"),
]


@native_only
def test_private_names_that_moved_cost_time_and_nothing_else():
    """All of them at once, each hidden from our import alone."""
    names = [f"{module}.{name}" for module, name in PRIVATE]
    code = f"""
        import importlib
        hidden = {names!r}
        original = importlib.import_module

        class Without:
            def __init__(self, module, path):
                self._module, self._path = module, path
            def __getattr__(self, name):
                if self._path + "." + name in hidden:
                    raise AttributeError(name)
                return getattr(self._module, name)

        importlib.import_module = lambda name, *rest: (
            Without(original(name, *rest), name)
            if name.split(".")[0] == "torch"
            else original(name, *rest)
        )
        import torchinit
        importlib.import_module = original
        from torchinit.native import torch_private
        of_an_object = "torch.autograd.forward_ad._current_level"
        assert set(hidden) - {{of_an_object}} <= set(torch_private.missing), torch_private.missing
        """
    process = run(textwrap.dedent(code) + FILLS)
    assert process.returncode == 0, process.stderr
    assert process.stdout == run(MODES["plain"] + FILLS).stdout


def test_no_private_name_is_missing():
    from torchinit.native import torch_private

    assert torch_private.missing == []


def test_what_the_import_leaves_out():
    modules = {
        *("torch._dynamo", "matplotlib", "transformers", "scipy"),
        *("torch.distributed.tensor", "torch.distributed.fsdp"),
    }
    process = run(f"import sys\nimport torchinit\nprint({modules!r} & set(sys.modules))")
    assert process.returncode == 0, process.stderr
    assert process.stdout == "set()\n"


def test_one_package_imports_other_libraries_of_models():
    """All that knows Transformers lies in frameworks/; what a command shows may use it besides."""
    package = Path(torchinit.__file__).parent
    importing = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] in ("transformers", "peft", "timm") for name in names):
                importing.add(path.relative_to(package).parts[0])
    assert importing <= {"frameworks", "cli"}


def test_one_file_knows_dtensors_and_none_imports_them():
    """They are looked for among the modules that are there."""
    package = Path(torchinit.__file__).parent
    knowing = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith("torch.distributed") for name in names), path
            if isinstance(node, ast.Constant) and node.value == "torch.distributed.tensor":
                knowing.add(str(path.relative_to(package)))
    assert knowing == {"placement/distributed.py"}
