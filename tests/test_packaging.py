"""What installs: kernels/ and reference/ inside the package, the types, and an import that costs nothing."""

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("slotattn_fast", "kernels", "reference", "pyproject.toml", "README.md", "LICENSE")


def python(executable: str | Path, code: str, folder: Path) -> str:
    """What `code` prints, run in `folder` without the environment's own Python paths."""
    done = subprocess.run([executable, "-I", "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, so that the build leaves nothing in them, and without a network."""
    folder = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    done = subprocess.run(build, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (folder / "dist").glob("*.whl")
    return path


def test_the_wheel_holds_every_module_and_the_types(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {"slotattn_fast/py.typed"}
    for folder, package in (("slotattn_fast", ""), ("kernels", "kernels/"), ("reference", "reference/")):
        expected |= {
            f"slotattn_fast/{package}{path.relative_to(ROOT / folder).as_posix()}"
            for path in (ROOT / folder).rglob("*.py")
        }
    for folder in (ROOT / "slotattn_fast" / "pretrained").iterdir():
        if folder.is_dir() and folder.name != "__pycache__":
            expected |= {f"slotattn_fast/pretrained/{folder.name}/{path.name}" for path in folder.iterdir()}
    assert "slotattn_fast/pretrained/quick/model.safetensors" in expected
    assert names == expected


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh one with the wheel, which sees this one's packages, but not its editable install of this project."""
    folder = tmp_path_factory.mktemp("env")
    venv.create(folder)
    install = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--no-deps", "--no-index"]
    done = subprocess.run([*install, wheel], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # A line in a .pth file puts a folder on the path without reading the .pth files in it, as editable installs use.
    others = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    (site_packages(folder) / "others.pth").write_text("\n".join(others))
    return folder


def site_packages(folder: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))


def test_the_installed_wheel_imports(environment: Path, tmp_path: Path) -> None:
    code = """
import slotattn_fast, slotattn_fast.kernels, slotattn_fast.reference, torch
for module in (slotattn_fast, slotattn_fast.kernels, slotattn_fast.reference):
    print(module.__file__)
assert slotattn_fast.SlotAttention(3, 8)(torch.randn(2, 5, 8)).shape == (2, 3, 8)
"""
    files = python(environment / "bin" / "python", code, tmp_path).split()
    package = site_packages(environment) / "slotattn_fast"
    assert files == [str(package / folder / "__init__.py") for folder in ("", "kernels", "reference")]
    assert (environment / "bin" / "slotattn").exists()


def test_import_brings_nothing_heavy(environment: Path, tmp_path: Path) -> None:
    code = "import sys, slotattn_fast; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = set(python(environment / "bin" / "python", code, tmp_path).split())
    assert "slotattn_fast" in loaded
    assert not loaded & {"torch", "triton", "numpy", "scipy", "matplotlib", "lightning_fabric", "tensorboard"}


def test_the_module_brings_no_compiler(environment: Path, tmp_path: Path) -> None:
    """torch._dynamo takes longer to import than all the rest."""
    code = """
import sys, torch, slotattn_fast
slotattn_fast.SlotAttention(3, 8)(torch.randn(2, 5, 8)).sum().backward()
print(*sys.modules)
"""
    loaded = set(python(environment / "bin" / "python", code, tmp_path).split())
    assert "slotattn_fast.operators" in loaded
    assert not loaded & {"torch._dynamo", "torch._inductor", "triton"}


@pytest.mark.parametrize("name", ["kernels", "reference"])
def test_kernels_and_reference_import_nothing_of_the_package(name: str, environment: Path, tmp_path: Path) -> None:
    """Imports run one way."""
    code = f"import sys, slotattn_fast.{name}; print(*(x for x in sys.modules if x.startswith('slotattn_fast.')))"
    loaded = python(environment / "bin" / "python", code, tmp_path).split()
    assert loaded
    assert all(x.startswith(f"slotattn_fast.{name}") for x in loaded), loaded


def test_everything_public_is_there() -> None:
    import slotattn_fast

    for name in slotattn_fast.__all__:
        assert getattr(slotattn_fast, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'SlotAttentionn'"):
        slotattn_fast.SlotAttentionn  # noqa: B018
