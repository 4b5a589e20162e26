"""The import law: who may import whom, what stays free of jax, and how long files and functions may be."""

import ast
import fnmatch
import graphlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = "swerl_jax"

# Module → the modules of this package that it may import, as patterns. A new module adds its row.
MAY_IMPORT = {
    "config_rules": "",
    "config": "config_rules",
    "command_line": "config data.remote",
    "mirror": "data.atomic_file data.files data.remote",
    "preflight": "data.remote data.shards data.tasks env.chat env.tokenizer models.shipped policy.arch",
    "dry_run": "config preflight run_directory policy.arch policy.hf",
    "models.shipped": "",
    "run_directory": "config data.atomic_file data.remote mirror models.shipped",
    "together": "mirror run_directory learn.processes",
    "origin": "run_directory env.tokenizer env.vocabulary models.shipped policy.hf policy.stored",
    "parameters": "models.shipped run_directory learn.checkpoint learn.learner learn.processes policy.*",
    "engines": "learn.deal learn.processes policy.*",
    "row_sizes": "config_rules engines learn.batch policy.context policy.splash",
    "main": "*",
    "assemble": "*",
    # data/: the nouns, and where examples come from
    "data.records": "",
    "data.atomic_file": "",
    "data.swebench": "data.records",
    "data.remote": "",
    "data.files": "data.atomic_file",
    "data.shards": "data.records data.remote data.swebench data.atomic_file",
    "data.loader": "data.records data.shards",
    "data.syntax": "",
    "data.operators": "data.syntax",
    "data.symptoms": "data.syntax",
    "data.rename": "data.syntax",
    "data.drills": "data.records data.rename data.symptoms",
    "data.mutate": "data.syntax data.operators data.symptoms",
    "data.pieces": "data.syntax",
    "data.reword": "",
    "data.stdlib": "data.syntax data.mutate data.pieces data.reword",
    "data.tasks": "data.*",
    # env/: text; it knows the nouns and itself
    "env.matching": "",
    "env.patch": "env.matching",
    "env.reward": "data.records env.matching env.patch",
    "env.scorer": "data.records env.reward",
    "env.progress": "",
    "env.score_file": "data.records data.atomic_file env.progress env.reward env.scorer",
    "env.edits": "data.records env.patch",
    "env.prompts": "data.records env.edits env.patch",
    "env.vocabulary": "",
    "env.byte_pairs": "models.shipped env.vocabulary",
    "env.tokenizer": "models.shipped env.byte_pairs env.vocabulary",
    "env.chat": "env.prompts env.vocabulary",
    "env.episode": "data.records env.chat env.prompts env.reward env.scorer env.vocabulary",
    "env.collector": "data.records env.chat env.episode env.prompts env.reward env.scorer env.vocabulary",
    # curate/: history → examples; it knows text, and nothing of what learns from them
    "curate.change": "",
    # … what a clone holds
    "curate.ancestry": "",
    "curate.lru": "",
    "curate.git_message": "",
    "curate.git_names": "",
    "curate.git_process": "",
    "curate.git_objects": "curate.git_process",
    "curate.file_changes": "curate.change",
    "curate.attempts": "curate.change curate.git_process curate.repository",
    "curate.repository": "curate.ancestry curate.change curate.file_changes curate.git_* curate.lru",
    "curate.links": "",
    "curate.issue_file": "curate.change curate.facts curate.links",
    "curate.git_source": "curate.attempts curate.change curate.git_message curate.git_objects curate.issue_file curate.repository",
    "curate.candidates": "curate.change curate.file_changes curate.git_objects curate.licences curate.repository",
    "curate.code_terms": "",
    "curate.term_index": "curate.code_terms curate.lru curate.paths",
    "curate.ranking": "curate.code_terms curate.term_index",
    "curate.context": "curate.repository curate.term_index",
    # … what an archive tells
    "curate.facts": "",
    "curate.runs": "data.files",
    "curate.events": "curate.facts",
    "curate.pull_requests": "curate.change curate.facts curate.links",
    "curate.archive": "curate.attempts curate.change curate.events curate.facts curate.pull_requests curate.runs",
    # … what rows tell
    "curate.swebench_source": "curate.candidates curate.change curate.git_source curate.repository data.swebench",
    # … what is worth learning from
    "curate.paths": "",
    "curate.scrub": "",
    "curate.licences": "",
    "curate.issue_text": "curate.change",
    "curate.bots": "curate.change",
    "curate.bug_fix": "curate.change",
    "curate.shingles": "data.records",
    "curate.near_duplicates": "curate.shingles data.records",
    "curate.contamination": "curate.change curate.paths curate.shingles curate.swebench_source data.records",
    "curate.filters": "curate.bots curate.bug_fix curate.change curate.issue_text curate.licences curate.paths curate.scrub "
                      "curate.shingles",
    "curate.examples": "curate.change curate.filters curate.issue_text curate.lru curate.paths curate.scrub data.records "
                       "data.shards env.chat env.prompts env.reward",
    "curate.judge": "curate.* data.records env.chat env.tokenizer",
    "curate.funnel": "curate.change",
    "curate.funnel_plot": "curate.funnel",
    "curate.look": "curate.examples curate.paths data.records env.reward learn.report",
    # … and how it is done for millions
    "curate.engine": "",
    "curate.beam_engine": "",
    "curate.work": "curate.engine data.files env.progress",
    "curate.clones": "curate.contamination curate.git_names curate.repository",
    "curate.outcomes": "curate.* data.files data.records data.shards",
    "curate.git_stage": "curate.* data.files",
    "curate.archive_stage": "curate.* data.records",
    "curate.swebench_stage": "curate.* data.files data.records",
    "curate.shard_stage": "curate.* data.files data.records data.shards",
    "curate.pipeline": "curate.* data.files",
    "curate.tasks": "config curate.* data.files data.records data.shards env.chat env.reward env.tokenizer",
    # policy/: ids and arrays; of the rest it knows the nouns alone
    "policy.arch": "",
    "policy.chips": "",
    "policy.stored": "",
    "policy.hf": "policy.arch policy.stored",
    "policy.host_arrays": "",
    "policy.hf_weights": "policy.arch policy.host_arrays policy.llama policy.stored",
    "policy.mesh": "",
    "policy.attention": "policy.arch",
    "policy.int8": "",
    "policy.llama": "policy.arch policy.attention policy.int8 policy.mesh",
    "policy.context": "policy.attention policy.mesh",
    "policy.splash": "policy.attention policy.context policy.mesh",
    "policy.gpu_attention": "policy.mesh",
    "policy.rows": "policy.arch policy.attention policy.context policy.gpu_attention policy.llama policy.mesh policy.splash",
    "policy.decode_kernel": "policy.attention policy.mesh",
    "policy.sampler": "policy.arch policy.attention policy.int8 policy.llama policy.mesh",
    "policy.engine_weights": "policy.arch policy.int8 policy.llama policy.mesh",
    "policy.engine_steps": "policy.arch policy.attention policy.decode_kernel policy.engine_weights policy.gpu_attention "
                           "policy.llama policy.mesh policy.sampler policy.splash",
    "policy.engine": "data.records policy.*",
    "policy.team_engine": "policy.*",
    # learn/: what learns
    "learn.export": "models.shipped learn.checkpoint learn.learner policy.arch policy.hf policy.hf_weights policy.llama",
    "learn.plan_programs": "learn.batch learn.flop_count learn.learner policy.*",
    "learn.plan": "learn.flop_count learn.hlo_count learn.plan_programs policy.chips",
    "learn.calibration": "learn.batch learn.learner learn.loss learn.plan_programs policy.*",
    "learn.plan_table": "learn.calibration learn.plan policy.chips",
    "learn.plan_search": "learn.plan",
    "learn.flop_count": "",
    "learn.hlo_count": "",
    "learn.advantage": "data.records",
    "learn.batch": "policy.attention policy.context",
    "learn.loss": "",
    "learn.importance": "learn.batch",
    "learn.learner": "learn.importance learn.batch learn.loss policy.*",
    "learn.processes": "data.remote",
    "learn.deal": "data.records env.collector env.episode learn.processes policy.engine",
    "learn.manifest": "data.files data.remote",
    "learn.checkpoint": "data.files learn.manifest learn.processes",
    "learn.metrics": "data.atomic_file data.records",
    "learn.report": "data.records",
    "learn.curves": "learn.metrics",
    "learn.baselines": "data.records env.* learn.report",
    "learn.evaluate": "data.records env.* policy.* learn.deal learn.processes learn.report",
    "learn.loop": "data.* env.progress learn.*",
    "learn.summary": "data.* env.* learn.*",
    "learn.answer": "data.records env.* policy.* learn.report",
    "learn.rl": "data.* env.* policy.* learn.*",
    "learn.sft": "data.* env.* policy.* learn.*",
}

# These handle text: importing them must stay quick and must not start an accelerator.
JAX_FREE = ("config", "config_rules", "command_line", "preflight", "dry_run", "mirror", "run_directory", "data.records", "data.atomic_file",
            "data.swebench", "env.*", "learn.advantage", "curate.pipeline", "curate.look")
HEAVY = ("jax", "jaxlib", "flax", "optax", "orbax", "grain", "matplotlib")

OPTIONAL_EXTRAS = frozenset({"pyarrow"})  # packages that a function may import for itself
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
IMPORTS = (ast.Import, ast.ImportFrom)


def read_modules():
    """Name within the package → syntax tree, packages' own files included under the package's name."""
    trees = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        trees[".".join(parts).removesuffix("__init__").removesuffix(".")] = ast.parse(path.read_text("utf-8"))
    return trees


TREES = read_modules()
MODULES = sorted(name for name in TREES if not (ROOT / PACKAGE / name.replace(".", "/")).is_dir())
PACKAGES = sorted(set(TREES) - set(MODULES))


def imported_names(node):
    """Full dotted names that an import statement may load."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert node.level == 0, f"relative import in line {node.lineno}"
    return [f"{node.module}.{alias.name}" for alias in node.names]


def project_imports(module):
    """Modules of the package that `module` imports anywhere, those for type checkers included."""
    found = set()
    for node in ast.walk(TREES[module]):
        for name in imported_names(node) if isinstance(node, IMPORTS) else []:
            if name.split(".")[0] == PACKAGE:
                inner = name.removeprefix(PACKAGE).removeprefix(".")
                # "data.records.Example" is something inside "data.records"
                found.add(inner if inner in TREES else inner.rpartition(".")[0])
    return found - {""}  # the package itself holds the version alone


def matches(name, patterns):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_what_its_row_allows(module):
    assert module in MAY_IMPORT, f"{module} has no row in MAY_IMPORT: say what it may import"
    broken = {name for name in project_imports(module) if not matches(name, MAY_IMPORT[module].split())}
    assert not broken, f"{module} may import [{MAY_IMPORT[module]}], but imports {sorted(broken)}"


def test_the_table_keeps_the_halves_apart():
    for module, allowed in MAY_IMPORT.items():
        half = module.split(".")[0]
        for other in ("env.x", "policy.x", "learn.x", "data.tasks", "main"):
            is_forbidden = {
                "data": not other.startswith("data."),
                "env": not other.startswith("env."),
                "policy": not other.startswith("policy."),
                "curate": not other.startswith("env."),
            }.get(half, False)
            assert not (is_forbidden and matches(other, allowed.split())), f"{module}: {allowed}"


def test_there_is_no_cycle():
    graph = {module: project_imports(module) & set(MODULES) for module in MODULES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the cycle in it


def test_packages_import_nothing():
    assert not [name for name in PACKAGES if any(isinstance(node, IMPORTS) for node in ast.walk(TREES[name]))]


def test_text_modules_load_no_jax():
    names = [f"{PACKAGE}.{name}" for name in MODULES if matches(name, JAX_FREE)]
    program = f"import sys, {', '.join(names)}; print(*[name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (result.returncode, result.stdout.split()) == (0, []), result.stderr


@pytest.mark.parametrize("module", [name for name in MODULES if name != "main"])
def test_no_function_imports(module):
    functions = [node for node in ast.walk(TREES[module]) if isinstance(node, FUNCTIONS)]
    inside = {node for function in functions for node in ast.walk(function) if isinstance(node, IMPORTS)}
    names = {name for node in inside for name in imported_names(node)}
    assert {name for name in names if name.split(".")[0] not in OPTIONAL_EXTRAS} == set()


def source_files():
    folders = (PACKAGE, "tests", "configs", "launch")
    return [ROOT / "setup.py", *(path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))]


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_fit_their_limits(path):
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, FUNCTIONS):
            assert node.end_lineno - node.lineno + 1 <= MAX_FUNCTION_LINES, node.name
