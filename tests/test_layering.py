"""Imports go one way: every import statement of every file, lazy and type-only ones included."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

TORCH = frozenset(
    {"torch", "torchaudio", "torchvision", "transformers", "flash_attn", "silero_vad"}
)
WEB = frozenset(
    {"fastapi", "starlette", "uvicorn", "uvloop", "httptools", "websockets", "aiohttp", "httpx", "pydantic"}
    | {"pydantic_settings", "prometheus_client", "ray"}
)  # fmt: skip
OURS = frozenset(
    {"model", "streaming", "streaming.engine", "server", "recipes", "benchmarks", "tests"}
)


@dataclass(frozen=True, slots=True)
class Rule:
    """What the files of a zone may import beside the standard library, numpy and themselves."""

    ours: frozenset[str] = frozenset()
    torch: bool = False
    web: bool = False


# Benchmarks are clients of the public protocol, but for these, which time the model and the engine from inside.
INSIDE = (
    "steps",
    "parts",
    "shapes",
    "codec_distance",
    "latency",
    "engine_steps",
    "heard",
    "models",
)
FROM_INSIDE = Rule(
    frozenset(
        {"model", "streaming", "streaming.engine", "recipes", "benchmarks", "benchmarks.models"}
    ),
    torch=True,
)
RULES = {
    "model": Rule(torch=True),
    "streaming": Rule(),
    "streaming.engine": Rule(frozenset({"model", "streaming"}), torch=True),
    "server": Rule(frozenset({"streaming"}), web=True),
    "recipes": Rule(frozenset({"model", "streaming"}), torch=True),
    "benchmarks": Rule(frozenset({"streaming", "server.events"}), web=True),
    **{f"benchmarks.{name}": FROM_INSIDE for name in INSIDE},
}
PACKAGES = ("model", "streaming", "server", "recipes", "benchmarks")


def zone(module: str, zones: frozenset[str]) -> str | None:
    """The innermost of `zones` that the module lies in."""
    holding = [z for z in zones if module == z or module.startswith(z + ".")]
    return max(holding, key=len, default=None)


def imported(source: str, module: str, *, is_package: bool) -> list[tuple[int, str]]:
    """Line and name of every module that the source may import; of `from a import b` both `a` and `a.b`."""
    found: list[tuple[int, str]] = []
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found.append((node.lineno, base))
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            argument = node.args[0]
            if name in {"import_module", "__import__"} and isinstance(argument, ast.Constant):
                found.append((node.lineno, str(argument.value)))
    return found


def faults(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Every import that the table does not allow."""
    home = zone(module, frozenset(RULES))
    assert home is not None, module
    rule = RULES[home]
    found = []
    for line, name in imported(source, module, is_package=is_package):
        top = name.split(".")[0]
        target = zone(name, OURS | RULES.keys() | rule.ours)
        is_ours_and_barred = target not in (None, home) and target not in rule.ours
        if is_ours_and_barred or (top in TORCH and not rule.torch) or (top in WEB and not rule.web):
            found.append(f"{module}:{line} imports {name}")
    return found


def files() -> list[Path]:
    return sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_imports_go_one_way() -> None:
    found = [
        fault
        for path in files()
        for fault in faults(
            path.read_text(), module_of(path), is_package=path.name == "__init__.py"
        )
    ]
    assert files() and found == []


def test_package_files_hold_a_docstring_and_nothing_else() -> None:
    for path in files():
        if path.name == "__init__.py":
            body = ast.parse(path.read_text()).body
            assert len(body) <= 1, path
            assert all(isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) for n in body)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("model.mel", "import streaming.media"),
        ("model.mel", "from server import app"),
        ("model.mel", "import fastapi"),
        ("streaming.vad", "import torch"),
        ("streaming.vad", "from torch.nn import functional"),
        ("streaming.vad", "def f():\n    import torch"),
        ("streaming.vad", "if TYPE_CHECKING:\n    from model.config import OmniConfig"),
        ("streaming.vad", "from streaming.engine.pages import PagePool"),
        ("streaming.vad", "from streaming import engine"),
        ("streaming.vad", "from . import engine"),
        ("streaming.vad", "from .engine import pages"),
        ("streaming.vad", "import importlib\nimportlib.import_module('silero_vad')"),
        ("streaming.vad", "__import__('pydantic')"),
        ("streaming.engine.runner", "from server.events import Event"),
        ("streaming.engine.runner", "import fastapi"),
        ("server.app", "import torch"),
        ("server.app", "import model"),
        ("server.app", "from streaming import engine"),
        ("recipes.tiny.speech", "import server"),
        ("recipes.tiny.speech", "from streaming.engine import engine"),
        ("benchmarks.load", "import torch"),
        ("benchmarks.load", "from server import session"),
        ("benchmarks.load", "from streaming.engine import engine"),
        ("benchmarks.steps", "import server.session"),
        ("model.mel", "import benchmarks.steps"),
        ("server.app", "import tests.fakes"),
    ],
)
def test_arrows_that_point_up_are_found(module: str, source: str) -> None:
    assert faults(source, module) != []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("model.mel", "import torch\nfrom model.streaming import State"),
        ("streaming.vad", "import numpy\nimport onnxruntime\nfrom streaming.media import MediaChunk"),
        ("streaming.vad", "from streaming import media\nfrom . import errors"),
        ("streaming.engine.runner", "import torch\nfrom model import omni\nfrom streaming import packets"),
        ("streaming.engine.runner", "from . import pages\nfrom .. import media"),
        ("server.app", "import fastapi\nfrom streaming.packets import Reply\nfrom server import events"),
        ("recipes.tiny.speech", "import torch, model.omni\nfrom recipes.tiny import loop"),
        ("benchmarks.load", "import websockets\nfrom server.events import parse\nfrom benchmarks import report"),
        ("benchmarks.steps", "import torch\nfrom streaming.engine import engine"),
        ("benchmarks.parts.mel", "import torch\nfrom model import mel"),
    ],
)  # fmt: skip
def test_arrows_that_point_down_are_not(module: str, source: str) -> None:
    assert faults(source, module) == []
