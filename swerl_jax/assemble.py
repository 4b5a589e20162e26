"""From a config to the parts of a run: one small builder a part, called by main's wiring functions."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import shutil
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from swerl_jax import engines, parameters, preflight, row_sizes, run_directory
from swerl_jax.data import remote
from swerl_jax.data.loader import Loader, Source, readable
from swerl_jax.data.records import Example
from swerl_jax.data.shards import open_examples
from swerl_jax.data.tasks import TaskPaths, make_tasks, task_paths
from swerl_jax.env.chat import Chat
from swerl_jax.env.collector import Collector
from swerl_jax.env.episode import SingleTurn
from swerl_jax.env.progress import Progress
from swerl_jax.env.prompts import messages, taught_answer
from swerl_jax.env.reward import RewardSpec
from swerl_jax.env.scorer import ScoringPool, default_deadline_s
from swerl_jax.env.tokenizer import load_tokenizer, train_sentencepiece
from swerl_jax.env.vocabulary import Tokenizer
from swerl_jax.learn.checkpoint import Checkpoints
from swerl_jax.learn.evaluate import Evaluator
from swerl_jax.learn.learner import Learner, OptimizerSettings, State, to_arrays
from swerl_jax.learn.loss import LossSettings
from swerl_jax.learn.plan_programs import Parts, StepShape
from swerl_jax.learn.processes import ALONE, Processes
from swerl_jax.learn.rl import RlPhase, RlSettings
from swerl_jax.learn.sft import SftPhase, SftSettings
from swerl_jax.mirror import TASKS_NAME, TOKENIZER_PATH
from swerl_jax.models import shipped
from swerl_jax.policy import gpu_attention, hf, mesh as mesh_lib
from swerl_jax.policy.arch import Arch
from swerl_jax.policy.llama import Lora

CHARS_A_TOKEN = 16  # longest text a token may stand for, for the scoring deadline
REFERENCE_NAME = "reference"


@dataclasses.dataclass(frozen=True)
class Text:
    """Everything between examples and ids.

    Attributes:
      tokenizer, chat: as configured. style: of prompts. thought, lines_around: of taught answers.
      max_prompt_tokens, max_answer_tokens: budgets; examples above them are dropped, never cut.
    """

    tokenizer: Tokenizer
    chat: Chat
    style: str
    thought: str
    lines_around: int
    max_prompt_tokens: int
    max_answer_tokens: int

    def prompt_ids(self, example: Example) -> np.ndarray:
        """int32 [S]."""
        return np.asarray(self.chat.prompt(messages(example, self.style)), np.int32)

    def question_ids(self, example: Example) -> np.ndarray:
        """As prompt_ids, for an example that was not chosen by its length.

        Raises:
          ValueError: it exceeds the budget.
        """
        ids = self.prompt_ids(example)
        if len(ids) > self.max_prompt_tokens:
            raise ValueError(f"issue and files are a prompt of {len(ids)} tokens and prompt.max_tokens is {self.max_prompt_tokens}; "
                             "show fewer or shorter files, or add --config.engine.prefix_buckets=\"()\" "
                             f"--config.prompt.max_tokens={len(ids)}, if the model has learnt such lengths")
        return ids

    def answer_ids(self, example: Example) -> np.ndarray:
        """int32 [T]: the oracle's answer with its stop id."""
        return np.asarray(self.chat.answer(taught_answer(example, self.thought, self.lines_around)), np.int32)

    def refuses_prompt(self, example: Example) -> str | None:
        """Why an example cannot be asked, or None."""
        return "over_budget" if len(self.prompt_ids(example)) > self.max_prompt_tokens else None

    def refuses_answer(self, example: Example) -> str | None:
        """Why an example cannot be taught, or None."""
        try:
            is_long = len(self.answer_ids(example)) > self.max_answer_tokens
        except ValueError:
            return "not_expressible"
        return "over_budget" if is_long else self.refuses_prompt(example)


def data_paths(config: ml_collections.ConfigDict, directory: pathlib.Path, *, is_resumed: bool, is_made: bool = False,
               poll: Callable[[], None] = lambda: None) -> tuple[tuple[str, ...], str]:
    """(training paths, held-out path); without configured ones, tasks are made from the standard library.

    A resumed run, or where `is_made`, goes on with the tasks that it has, whatever would be made now. `poll` is called after each
    task that is made; what it raises ends the making.

    Raises:
      ValueError: the files are not those that the run began with.
    """
    train, held_out = tuple(config.data.train), config.data.held_out
    if not train:
        made = task_paths(directory / TASKS_NAME) if is_resumed or is_made else _make_tasks(config, directory / TASKS_NAME, poll)
        train, held_out = (str(made.train),), held_out or str(made.held_out)
    if is_resumed:
        run_directory.check_data(directory, file_sizes((*train, held_out)))
    return train, held_out


def file_sizes(paths: Sequence[str]) -> list[run_directory.FileSize]:
    """Of all files of examples at `paths`, in order."""
    return [size for path in paths for size in open_examples(path).sizes()]


def _make_tasks(config: ml_collections.ConfigDict, directory: pathlib.Path, poll: Callable[[], None]) -> TaskPaths:
    spec = preflight.task_spec(config)
    with Progress(spec.drill_count + spec.train_count + spec.held_out_count, "making tasks") as bar:
        made = 0

        def show(done: int, total: int) -> None:
            nonlocal made
            bar.advance(done - made)
            made = done
            poll()

        return make_tasks(spec, directory, show)


def held_out_path(config: ml_collections.ConfigDict, run: pathlib.Path) -> str:
    """The evaluation examples of a run that is there already; its own tasks are read, never made anew.

    Raises:
      ValueError: it has none, and none are configured.
    """
    made = task_paths(run / TASKS_NAME).held_out
    if not config.data.held_out and not made.exists():
        raise ValueError(f"{made} does not exist; name the evaluation examples with --config.data.held_out=FILE")
    return config.data.held_out or str(made)


def text(config: ml_collections.ConfigDict, directory: pathlib.Path, train: tuple[str, ...]) -> Text:
    """The tokenizer with chat template and budgets; one trained here, or by the run of `init`, is kept in the run's directory.

    Args:
      train: paths of what one is trained on; empty: it is there already.

    Raises:
      ValueError: the tokenizer cannot be had, is not that of the model which `init` names, or lacks the template's special ids.
    """
    kind, _, size = config.tokenizer.partition(":")
    model = shipped.find(config.init)
    if kind in ("byte", "train") and model is not None and shipped.has_tokenizer(model):
        raise ValueError(f"init is {config.init}, which has a tokenizer, and tokenizer is {config.tokenizer}; set "
                         f"--config.tokenizer={config.init}")
    if kind == "train":
        path = directory / TOKENIZER_PATH
        origin = pathlib.Path(run_directory.find(config.init) if remote.is_remote(config.init) else config.init, TOKENIZER_PATH)
        if train:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(origin, path) if origin.exists() else train_sentencepiece(_texts(config, train), int(size), path)
        elif not path.exists():
            raise ValueError(f"{path} does not exist; give the directory of the run that trained it, or set --config.tokenizer")
        tokenizer = load_tokenizer(f"sentencepiece:{path}")
    else:
        tokenizer = load_tokenizer(config.tokenizer)
    return Text(tokenizer, Chat(tokenizer, config.chat), config.prompt.style, config.sft.thought, config.sft.lines_around,
                config.prompt.max_tokens, config.answer.max_tokens)


def _texts(config: ml_collections.ConfigDict, train: tuple[str, ...], limit: int = 2000):
    for path in train:
        rows = open_examples(path)
        numbers = range(0, len(rows), max(1, len(rows) // limit))  # all over the file: it may be in an order
        for example in readable(rows, numbers, config.data.on_malformed):
            yield "\n".join(message.text for message in messages(example, config.prompt.style))
            try:
                answer = taught_answer(example, config.sft.thought, config.sft.lines_around)
            except ValueError:  # no edits say its fix: the supervised phase counts it
                continue
            yield answer


def arch(config: ml_collections.ConfigDict, tokenizer: Tokenizer) -> Arch:
    """The configured sizes; a tokenizer trained here, or of bytes, sets the vocabulary, a model's own enlarges it.

    Raises:
      ValueError: unknown name, or the tokenizer has more ids than the model.
    """
    known = hf.find_arch(config.model.arch, lambda: run_directory.model_directory(config.init))
    kind = config.tokenizer.partition(":")[0]
    if config.model.arch != "init" and kind in ("byte", "train", "embedded", "hf"):
        return dataclasses.replace(known, V=max(known.V, tokenizer.vocab_size) if kind == "hf" else tokenizer.vocab_size)
    if tokenizer.vocab_size > known.V:
        raise ValueError(f"the tokenizer has {tokenizer.vocab_size} ids and {config.model.arch} only {known.V}; "
                         "use the model's own tokenizer")
    return known


def mesh(config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices`, all of this run's by default; where they are slices of TPUs, each is one of mesh.slice.

    Raises:
      ValueError: as mesh_lib.make_mesh, or mesh.slice would cut through a slice of TPUs unevenly.
    """
    devices = mesh_lib.run_devices() if devices is None else devices
    sizes, found = {axis: config.mesh[axis] for axis in mesh_lib.AXES}, mesh_lib.slices(devices)
    if sizes["slice"] == 1:
        sizes["slice"] = found
    if sizes["slice"] % found:
        raise ValueError(f"mesh.slice is {sizes['slice']} and the devices are {found} slices; needed is a multiple of them, or 1")
    return mesh_lib.make_mesh(sizes, devices)


def loader(config: ml_collections.ConfigDict, train: tuple[str, ...], seed: int, accept: Callable[[Example], str | None],
           processes: Processes) -> Loader:
    """The stream of training examples, of which every process reads its shard."""
    weights = config.data.weights or (1.0,) * len(train)
    return Loader([Source(path, weight) for path, weight in zip(train, weights, strict=True)], seed,
                  shuffle=config.data.shuffle, accept=accept, on_malformed=config.data.on_malformed, readers=processes)


def scoring(config: ml_collections.ConfigDict) -> ScoringPool:
    """The scoring processes."""
    r = config.reward
    chars = CHARS_A_TOKEN * (config.answer.max_tokens + config.prompt.max_tokens)
    return ScoringPool(RewardSpec.of(r), r.workers, r.deadline_s or default_deadline_s(chars, chars))


def collector(config: ml_collections.ConfigDict, text: Text, pool: ScoringPool, poll: Callable[[], None]) -> Collector:
    """Single-turn episodes against the scoring pool."""
    truncated = None if config.reward.truncated == "score" else float(config.reward.truncated)
    episode = SingleTurn(text.tokenizer, text.chat.stop_ids, text.max_answer_tokens,
                         lambda output, example: pool.submit(output, example.files, example.oracle), truncated)
    return Collector(episode, text.max_answer_tokens, poll=poll)


def evaluator(config: ml_collections.ConfigDict, arch: Arch, mesh: Mesh, text: Text, collector: Collector, path: str,
              processes: Processes = ALONE) -> Evaluator:
    """Held-out evaluation: in the memory that training's caches take, dealt over more prompts."""
    examples, left_out = _within_budget(path, config.eval.examples, text, config.data.on_malformed)
    if left_out:
        print(f"held-out: {left_out} examples exceed prompt.max_tokens={config.prompt.max_tokens} and are passed over")
    if len(examples) < config.eval.examples:
        print(f"held-out: eval.examples is {config.eval.examples} and {path} has {len(examples)}: they are all taken")
    one = engines.engine(config, arch, mesh, text.chat.stop_ids, prompts=len(examples), samples=config.eval.samples,
                         groups=engines.evaluation_groups(config, len(examples)), temperature=config.eval.temperature,
                         purpose="eval", processes=processes)
    return Evaluator(examples, config.eval.samples, text.prompt_ids, one, collector, processes)


def _within_budget(path: str, count: int, text: Text, on_malformed: str) -> tuple[list[Example], int]:
    """(the first `count` examples that may be asked, or all there are; how many were passed over).

    Raises:
      ValueError: there is none, or two of them share an id.
    """
    rows, chosen, left_out = open_examples(path), {}, 0
    for example in readable(rows, range(len(rows)), on_malformed):
        if text.refuses_prompt(example) is not None:
            left_out += 1
        elif example.id in chosen:
            raise ValueError(f"{path} has two examples with the id {example.id!r}; held-out ones are told apart by it: make "
                             "every id another")
        else:
            chosen[example.id] = example
        if len(chosen) == count:
            break
    if not chosen:
        raise ValueError(f"none of the {len(rows)} examples of {path} is within prompt.max_tokens={text.max_prompt_tokens}; "
                         "raise it, or give other examples")
    return list(chosen.values()), left_out


def learner(config: ml_collections.ConfigDict, arch: Arch, mesh: Mesh, phase: str) -> Learner:
    """The learner of one phase: "rl" or "sft"."""
    p, o = config[phase], config.optimizer
    steps = p.steps * (p.minibatches * p.epochs if phase == "rl" else 1)
    moments = None if o.moments_dtype == "auto" else jnp.dtype(o.moments_dtype)
    optimizer = OptimizerSettings(p.learning_rate, p.schedule, p.warmup_steps, steps, o.beta1, o.beta2, o.epsilon,
                                  o.weight_decay, o.max_grad_norm, p.muon_learning_rate, moments)
    loss = LossSettings("nll") if phase == "sft" else LossSettings(
        p.loss, p.clip_low, p.clip_high, p.kl_coefficient, config.engine.temperature,
        importance_cap=0.0 if _asks_before(config) else p.importance_cap)
    return Learner(arch, mesh, optimizer, loss, dtype=jnp.dtype(config.model.dtype),
                   param_dtype=jnp.dtype(config.model.param_dtype), remat=config.learner.remat,
                   vocabulary_chunk=config.learner.vocabulary_chunk, attention=config.learner.attention,
                   lora=Lora(config.lora.rank, config.lora.alpha, config.lora.targets) if config.lora.rank else None)


def _asks_before(config: ml_collections.ConfigDict) -> bool:
    """Whether importance weights need a pass of their own: for a single update the gradient's pass has what they need."""
    return bool(config.rl.importance_cap) and config.rl.minibatches * config.rl.epochs > 1


def sft_phase(config: ml_collections.ConfigDict, arch: Arch, mesh: Mesh, text: Text, train: tuple[str, ...],
              processes: Processes = ALONE) -> SftPhase:
    """The supervised phase."""
    settings = SftSettings(config.sft.steps, config.sft.examples, config.sft.prompt_weight)
    return SftPhase(settings, loader(config, train, config.seed, text.refuses_answer, processes), text.prompt_ids,
                    text.answer_ids, learner(config, arch, mesh, "sft"), row_sizes.packing(config, mesh, "sft"))


def rl_phase(config: ml_collections.ConfigDict, arch: Arch, mesh: Mesh, text: Text, train: tuple[str, ...],
             collector: Collector, pool: ScoringPool, processes: Processes = ALONE) -> RlPhase:
    """The reinforcement-learning phase; its stream is shuffled apart from the supervised one."""
    r = config.rl
    settings = RlSettings(
        steps=r.steps, prompts=r.prompts, samples=r.samples, minibatches=r.minibatches, epochs=r.epochs,
        advantage=r.advantage, aggregation=r.aggregation, constant_length=config.answer.max_tokens,
        learn_truncated=r.learn_truncated, drop_constant_groups=r.drop_constant_groups, max_draws=r.max_draws,
        max_logp_diff=r.max_logp_diff, importance_cap=r.importance_cap, max_fault_frac=config.reward.max_fault_frac)
    one = engines.engine(config, arch, mesh, text.chat.stop_ids, prompts=r.prompts, samples=r.samples,
                         groups=config.engine.groups, temperature=config.engine.temperature, purpose="train", processes=processes)
    return RlPhase(settings, loader(config, train, config.seed + 1, text.refuses_prompt, processes), text.prompt_ids, one,
                   collector, learner(config, arch, mesh, "rl"), row_sizes.packing(config, mesh, "rl"),
                   scorer_retries=lambda: pool.counts.retries, processes=processes)


def plan_parts(config: ml_collections.ConfigDict, arch: Arch, mesh: Mesh) -> Parts:
    """What a planner compiles for the last phase of a run: its learner and, for RL, its engines; nothing is allocated."""
    phase, r = config.phases[-1], config.rl
    tokens = config.prompt.max_tokens, config.answer.max_tokens
    built = learner(config, arch, mesh, phase), row_sizes.packing(config, mesh, phase)
    if phase == "sft":
        whole = (1, sum(tokens) - 1)  # documents, behind their first id
        return Parts(*built, StepShape(config.sft.examples, 1, *(whole if config.sft.prompt_weight else tokens)), None)
    shape = StepShape(r.prompts, r.samples, *tokens, r.minibatches, r.epochs, is_weighted=_asks_before(config),
                      has_reference=bool(r.kl_coefficient))
    steps = engines.planned(config, arch, mesh, r.prompts, r.samples, config.engine.groups)
    held_out = config.eval.examples
    return Parts(*built, shape, steps, engines.planned(
        config, arch, mesh, held_out, config.eval.samples, engines.evaluation_groups(config, held_out)))


def keep_reference(config: ml_collections.ConfigDict, place: str, phases: Sequence[SftPhase | RlPhase],
                   state: State, step: int, processes: Processes = ALONE) -> None:
    """Gives the RL phase the frozen policy of its k3 penalty: the parameters that RL begins with, kept at `place`.

    Raises:
      ValueError: the run has lost it.
    """
    rl = [phase for phase in phases if phase.name == "rl"]
    if not rl or not config.rl.kl_coefficient:
        return
    kept = Checkpoints(place, keep=1, asynchronous=False, processes=processes)
    if kept.latest_good() is None:
        if step:
            raise ValueError(f"{kept.directory} is missing or damaged, so the k3 penalty cannot be continued exactly")
        kept.save(0, to_arrays(state), {})
    kept.close()
    rl[0].reference = parameters.load(place, rl[0].learner, processes)


def banner(config: ml_collections.ConfigDict, arch: Arch, mesh: Mesh, place: str, abstract: State,
           steps: int) -> str:
    """What a person wants to know before the first step; `abstract` is the state's shapes and shardings."""
    held = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(abstract))
    axes = " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "1 device"
    kind = mesh.devices.flat[0].device_kind
    r = config.rl
    return (f"run      {place}\nmodel    {config.model.arch}, {arch.parameters:,} parameters, {config.model.dtype} compute, "
            f"{config.model.param_dtype} parameters\nmesh     {axes} ({kind}), {held / 2**20:,.1f} MiB of parameters and moments on each device\n"
            f"{_attention(config, arch, mesh)}steps    {steps}: "
            + ", ".join(f"{name} {config[name].steps}" for name in config.phases)
            + f"\nrl step  {r.prompts} prompts × {r.samples} answers = {r.prompts * r.samples} rollouts, "
            f"{r.minibatches * r.epochs} update(s)")


def _attention(config: ml_collections.ConfigDict, arch: Arch, mesh: Mesh) -> str:
    """The banner's line on what a GPU's learner attends with; none elsewhere, or where the config says it."""
    if mesh.devices.flat[0].platform != "gpu" or config.learner.attention != "auto":
        return ""
    obstacle = gpu_attention.obstacle(mesh, config.model.dtype, arch.H)
    return f"learner  plain attention, not cuDNN's: {obstacle}\n" if obstacle else "learner  cuDNN's attention on prompts, plain on answers\n"
