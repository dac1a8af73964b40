"""Rules of the code base: who imports whom, how long things are, and that the texts agree with the code."""

import ast
import functools
import re
import resource
import subprocess
import sys
from pathlib import Path

from extension import KERNEL_FOLDERS
from nerf.config.config import GROUPS
from nerf.config.parser import iterate

ROOT = Path(__file__).resolve().parent.parent
OUR_PACKAGES = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))  # every package
KERNELS = [p for p in OUR_PACKAGES if p not in ("nerf", "guidance", "extension", "batch_jobs")]
NATIVE_KERNELS = [p for p in KERNELS if (ROOT / p / "src").is_dir()]  # those with sources to compile
PACKAGES = (
    "core",
    "config",
    "mesh",
    "fields",
    "data",
    "render",
    "training",
    "run",
    "evaluation",
    "viewer",
)  # of nerf; each uses only those before
TOP_LEVEL = {
    "network": (),
    "network_grid": (),
    "provider": ("run", "evaluation"),
    "renderer": ("run", "viewer"),
    "utils": ("viewer",),
}  # module -> users
LONGEST_FILE, LONGEST_FUNCTION = 500, 60


def files_of(*folders):
    """The Python files of some folders of the project, and those at the top."""
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(path for path in found if "__pycache__" not in path.parts)


def name(path):
    """Path inside the project, as the tests are called."""
    return path.relative_to(ROOT).as_posix()


PRODUCT = files_of(*OUR_PACKAGES) + [
    ROOT / f"{name}.py" for name in ("main", "optimizer", "preprocess_image", "setup", "somnia")
]
NERF_MODULES = {name(p)[len("nerf/") : -len(".py")] for p in files_of("nerf")}
TESTS = files_of("tests")
SIDE = files_of("scripts", "benchmarks")
EVERY = PRODUCT + SIDE + TESTS


def faults(paths, of):
    """File -> what is wrong with it. One test asks all files: a thousand small ones take longer to begin than to run."""
    return {name(path): found for path in paths if (found := of(path))}


@functools.cache
def parsed(path):
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def nodes(path):
    """Its nodes that some test asks for: imports, functions, handlers, attributes."""
    asked = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.ExceptHandler | ast.Attribute
    return [node for node in ast.walk(parsed(path)) if isinstance(node, asked)]


@functools.cache
def imports(path):
    """Dotted names of everything a file imports, at the top or inside a function; annotations-only imports left out."""
    found = set()
    hidden = {
        id(inner)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.If) and any("TYPE_CHECKING" in vars(part).values() for part in ast.walk(node.test))
        for inner in ast.walk(node)
    }
    for node in nodes(path):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno}: imports are absolute here"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def nerf_modules(path):
    """Which modules of nerf a file imports, as ``cameras`` or ``render/plain``."""
    found = set()
    for dotted in imports(path):
        parts = dotted.split(".")
        if parts[0] == "nerf":
            candidates = ["/".join(parts[1:end]) for end in range(len(parts), 1, -1)]
            found |= {next(c for c in candidates if c in NERF_MODULES)}
    return found


def lines_of_code(function):
    """Length of a function without its docstring."""
    text = function.body[0] if ast.get_docstring(function) else None
    return function.end_lineno - function.lineno + 1 - (text.end_lineno - text.lineno + 1 if text else 0)


def ours(path):
    """Which packages of this project a file imports."""
    return {dotted.split(".")[0] for dotted in imports(path)} & {*OUR_PACKAGES, "optimizer", "main"}


# ---- who imports whom ----


def package_of(module):
    """The package of nerf that a module such as ``render/plain`` is in; a module at the top stands for itself."""
    return module.split("/")[0] if "/" in module else module


def test_a_package_of_nerf_imports_only_the_packages_before_it():
    def later(path):
        own = package_of(name(path)[len("nerf/") :])
        allowed = {*PACKAGES[: PACKAGES.index(own) + 1]}
        # The classes that users of stable-dreamfusion look for at the top level, and the packages that may use them.
        allowed |= {module for module, users in TOP_LEVEL.items() if own in users}
        return {package_of(module) for module in nerf_modules(path)} - allowed

    assert faults([path for path in files_of("nerf") if path.parent.name != "nerf"], later) == {}


def test_every_package_of_nerf_has_its_place_in_the_order():
    assert sorted(PACKAGES) == sorted(path.parent.name for path in ROOT.glob("nerf/*/__init__.py"))


def test_the_page_on_the_packages_names_every_one_in_order():
    listed = re.findall(r"^\d+\. `nerf/(\w+)/`", (ROOT / "docs" / "reading.md").read_text(), re.MULTILINE)
    assert tuple(listed) == PACKAGES


def test_a_kernel_folder_imports_the_loader_and_nothing_else_of_the_project():
    assert faults(files_of(*KERNELS), lambda path: ours(path) - {"extension", path.relative_to(ROOT).parts[0]}) == {}


def test_the_loader_knows_every_kernel_folder():
    assert sorted(KERNEL_FOLDERS) == sorted(["extension", *NATIVE_KERNELS])


def test_the_loader_imports_nothing_of_the_project():
    assert faults(files_of("extension"), lambda path: ours(path) - {"extension"}) == {}


def test_guidance_imports_the_core_of_nerf_and_nothing_else_of_it():
    assert faults(files_of("guidance"), lambda path: {package_of(module) for module in nerf_modules(path)} - {"core"}) == {}
    assert faults(files_of("guidance"), lambda path: ours(path) - {"guidance", "nerf"}) == {}


def test_native_sources_include_no_torch_header():
    def of_torch(path):
        included = re.findall(r'#\s*include\s*[<"]([^>"]+)', path.read_text())
        return [header for header in included if re.match(r"(torch|ATen|c10|pybind11)/", header)]

    sources = sorted(ROOT.glob("*/src/*"))
    assert len(sources) > 20 and faults(sources, of_torch) == {}


def test_one_module_alone_imports_taichi():
    own = {"taichi_modules/runtime.py", "benchmarks/gridencoder.py"}  # and a benchmark of a plain version in Taichi
    assert set(faults(EVERY, lambda path: {dotted.split(".")[0] for dotted in imports(path)} & {"taichi"})) <= own


def test_packages_that_are_never_needed_are_not_imported():
    never = {"torchvision", "nerfacc", "pymeshlab", "lpips", "kornia", "rembg", "xformers"}
    assert faults(PRODUCT, lambda path: {dotted.split(".")[0] for dotted in imports(path)} & never) == {}


# ---- what a reader trips over ----


def test_nothing_is_imported_with_a_star_and_no_exception_is_caught_without_a_type():
    def lines(path):
        stars = [n for n in nodes(path) if isinstance(n, ast.ImportFrom) and any(a.name == "*" for a in n.names)]
        return [n.lineno for n in stars + [n for n in nodes(path) if isinstance(n, ast.ExceptHandler) and n.type is None]]

    assert faults(EVERY, lines) == {}


def test_no_file_and_no_function_is_too_long():
    def long(path):
        functions = [n for n in nodes(path) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        found = {f"{f.name}:{f.lineno}": n for f in functions if (n := lines_of_code(f)) > LONGEST_FUNCTION}
        lines = path.read_text(encoding="utf-8").count("\n")
        return found | ({"the file": lines} if lines > LONGEST_FILE else {})

    assert faults(EVERY, long) == {}


def test_every_file_and_every_public_name_says_what_it_is():
    def silent(path):
        tree = parsed(path)
        scopes = [tree, *(n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_"))]
        public = [
            node
            for scope in scopes
            for node in scope.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        ]
        found = [f"{node.name}:{node.lineno}" for node in public if not ast.get_docstring(node)]
        return found + ([] if ast.get_docstring(tree) else ["the file does not open with a sentence"])

    assert faults(PRODUCT + SIDE, silent) == {}


def test_no_marks_of_unfinished_work():
    marks = re.compile(rf"\b({'|'.join(('TO' + 'DO', 'FIX' + 'ME', 'X' * 3, 'HA' + 'CK'))})\b")
    assert faults(EVERY, lambda path: marks.findall(path.read_text(encoding="utf-8"))) == {}


def test_no_text_names_a_folder_of_one_machine():
    kinds = (".py", ".md", ".txt", ".toml", ".h", ".cpp", ".cu", ".json", ".cfg")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split("\n")
    paths = [ROOT / line for line in listed if line.endswith(kinds)] or PRODUCT + TESTS
    pattern = re.compile(r"(?<![\w.~/])/(home|root|work|Users|mnt|opt)/\w+")
    found = {name(p): match[0] for p in paths if p.is_file() and (match := pattern.search(p.read_text(encoding="utf-8")))}
    assert found == {}


# ---- options ----


def attributes(path):
    """(group, name) of every ``config.group.name`` in a file."""
    for node in nodes(path):
        inner = node.value if isinstance(node, ast.Attribute) else None
        if isinstance(inner, ast.Attribute) and inner.attr in GROUPS and ast.unparse(inner.value).endswith("config"):
            yield inner.attr, node.attr


def test_every_option_that_is_read_exists():
    options = {(group, field.name) for group, field in iterate(GROUPS)}
    options |= {(name, attribute) for name, group in GROUPS.items() for attribute in vars(group)}  # their methods
    modules = {("optim", "Adam"), ("optim", "Optimizer")}
    assert faults(PRODUCT, lambda path: set(attributes(path)) - options - modules) == {}


def test_every_option_that_is_built_is_read_somewhere():
    read = {node.attr for path in PRODUCT for node in nodes(path) if isinstance(node, ast.Attribute)}
    dead = [f.name for _, f in iterate(GROUPS) if f.name not in read]
    assert dead == []


# ---- the command line ----


def test_help_is_the_committed_text():
    """``make help-text`` writes it again."""
    said = subprocess.run([sys.executable, "main.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout == (ROOT / "docs" / "help.txt").read_text()


def test_help_is_answered_in_less_than_a_second_of_processor_time():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "main.py", "--help"], cwd=ROOT, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_reading_the_flags_imports_nothing_heavy():
    script = "import sys, main; main.options.parse(['--text', 'a']); print(*{m.split('.')[0] for m in sys.modules})"
    said = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "diffusers", "transformers", "trimesh", "PIL", "imageio", "tensorboard", "scipy"}
    assert set(said.stdout.split()) & heavy == set()
