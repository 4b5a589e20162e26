"""The one entry point: `python -m swerl_jax.main --config=configs/NAME.py[:quick] [--config.KEY=VALUE …]`.

One short wiring function per task. jax is imported inside them only: scoring processes import this module again, and
`--dry_run` touches no device.
"""

from __future__ import annotations

import json
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import ml_collections
from absl import app, flags, logging

from swerl_jax import __version__, command_line, config as config_lib, dry_run, mirror, run_directory
from swerl_jax.command_line import CONFIG, DRY_RUN, PLAN, PLAN_JSON, RESUME, WORKDIR
from swerl_jax.command_line import fail, is_given, parse_flags, readable_errors, resume_command, tell
from swerl_jax.data.atomic_file import write_atomically
from swerl_jax.env.reward import RewardSpec, make_reward
from swerl_jax.models import shipped

flags.adopt_module_key_flags(command_line)  # --help tells them
MODEL_SETTINGS = ("tokenizer", "chat", "prompt.", "answer.", "model.", "engine.prefix_buckets", "sft.thought", "sft.lines_around",
                  "tasks.")


def main(argv: list[str]) -> None:
    """Checks the config, then runs its task; a set-up error is one readable message and exit code 2."""
    if len(argv) > 1:
        fail(f"unexpected arguments {argv[1:]}; settings look like --config.rl.steps=10")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax tells every file it writes
    if CONFIG.value is None:
        fail("no config; needed is --config=configs/NAME.py, for example configs/tiny.py")
    config = CONFIG.value
    with readable_errors():
        config = _with_shards(config)
        config_lib.check(config)
        make_reward(RewardSpec.of(config.reward))  # a wrong name shows now
    place = WORKDIR.value or f"runs/{config.name}"
    with readable_errors():
        mirror.check(place)
    if DRY_RUN.value:
        with readable_errors():
            print(dry_run.describe(config, place))
        return
    if PLAN.value is not None:
        with readable_errors():
            plan(config, PLAN.value, PLAN_JSON.value)
        return
    {"train": train, "score": score, "eval": evaluate, "sample": sample, "export": export,
     "curate": curate, "inspect": inspect}[config.task](config, place)


def train(config: ml_collections.ConfigDict, place: str) -> None:
    """Phases in order, from random parameters, a checkpoint, or where a run stopped."""
    with readable_errors():
        run = mirror.Mirror(place)
    directory = run.local
    with readable_errors(run.named):
        from swerl_jax import assemble, origin, preflight, together
        from swerl_jax.learn import summary
        from swerl_jax.learn.checkpoint import DIRECTORY_NAME, Checkpoints
        from swerl_jax.learn.loop import Loop, LoopSettings, StopSignal
        from swerl_jax.learn.metrics import EVALUATIONS_NAME, METRICS_NAME
        from swerl_jax.learn.processes import StopRequested

        processes = together.join(config)
        is_first = processes.index == 0
        stop = StopSignal(config.checkpoints.grace_s, processes)
        stop.install()
        processes.exchange("fetching the run's directory", lambda: run.pull_run(
            (METRICS_NAME, EVALUATIONS_NAME) if is_first else ()))
        kept = origin.kept(directory, config.tokenizer) if RESUME.value else {}
        own = config_lib.update(config.copy_and_resolve_references(), kept)
        processes.exchange("looking for what the settings name", lambda: preflight.require(own, is_resumed=RESUME.value))
        together.meet(config, run, processes, is_resumed=RESUME.value)
        try:
            train_paths, held_out = processes.after_first("making tasks", lambda: run.hand_over(
                lambda: assemble.data_paths(config, directory, is_resumed=RESUME.value, is_made=not is_first, poll=stop.poll),
                is_first=is_first))
        except StopRequested:
            stop.saved()
            tell("stopped while tasks were made, before anything was learnt; the same command begins again")
            return
        taught = train_paths if is_first and not RESUME.value else ()
        text = processes.after_first("making the tokenizer", lambda: run.hand_over(
            lambda: assemble.text(own, directory, taught), is_first=is_first))
        arch, mesh = assemble.arch(own, text.tokenizer), assemble.mesh(config)
        if is_first:
            _warn(preflight.beyond_context(own, arch))
    with assemble.scoring(config) as pool, assemble.collector(config, text, pool, stop.poll) as collector:
        with readable_errors(run.named):
            phases = [assemble.sft_phase(config, arch, mesh, text, train_paths, processes) if name == "sft" else
                      assemble.rl_phase(config, arch, mesh, text, train_paths, collector, pool, processes)
                      for name in config.phases if config[name].steps]
            evaluator = assemble.evaluator(config, arch, mesh, text, collector, held_out, processes)
            checkpoints = Checkpoints(run.at(DIRECTORY_NAME), config.checkpoints.keep, processes=processes, before_good=run.push)
            is_trained = config.init != "random" or phases[0].name == "rl"
            loop = Loop(directory, phases, evaluator, checkpoints, LoopSettings(
                config.eval.every_steps, config.checkpoints.every_steps, config.optimizer.max_skipped, is_trained), stop,
                tensorboard=config.log.tensorboard, log_rollouts=config.log.rollouts, processes=processes)
            if is_first:
                print(assemble.banner(config, arch, mesh, place, phases[0].learner.abstract, loop.total))
            state, step = _start(config, loop, phases, processes)
            if not RESUME.value:
                processes.first("keeping the model's description", lambda: origin.keep(directory, config.init, config.tokenizer))
            processes.first("beginning", lambda: (run.pull((mirror.CONFIG_NAME,)), run_directory.begin(
                config, directory, assemble.file_sizes((*train_paths, held_out)), is_resumed=RESUME.value), run.push()))
            assemble.keep_reference(config, run.at(assemble.REFERENCE_NAME), phases, state, step, processes)
        try:
            loop.run(state, step)
        except StopRequested:
            print(f"saved. To go on:\n  {resume_command(place)}")
            return
        finally:
            try:
                checkpoints.close()
            finally:
                if is_first:
                    run.push()
    table = processes.first("writing the table", lambda: run.hand_over(lambda: summary.write(
        directory, [(phase.name, phase.steps) for phase in phases], RewardSpec.of(config.reward), colour=report_colour()),
        is_first=True))
    if is_first:
        print(run.named(table))


def plan(config: ml_collections.ConfigDict, name: str, path: str | None) -> None:
    """Bytes and seconds of one training step on TPUs that are not there; no device is touched."""
    if config.task != "train":
        raise ValueError(f"--plan is of training; the config's task is {config.task}")
    from swerl_jax import assemble
    from swerl_jax.learn import plan as planning, plan_search, plan_table
    from swerl_jax.policy import chips, hf

    topology = chips.parse_topology(name)
    known = hf.find_arch(config.model.arch, lambda: run_directory.model_directory(config.init))
    devices = planning.devices(topology)
    if config.mesh.slice == 1 and topology.slices > 1:
        config = config_lib.update(config.copy_and_resolve_references(), {"mesh.slice": topology.slices})

    def make(changes: dict[str, Any], sides: Sequence[str] = tuple(planning.SIDES)) -> planning.Plan:
        changed = config_lib.update(config.copy_and_resolve_references(), changes)
        return planning.make(assemble.plan_parts(changed, known, assemble.mesh(changed, devices)), topology, tell, sides)

    found = make({})
    *earlier, last = config.phases
    print("\n".join([f"phase    {last}", *(f"         {phase} is planned with --config.phases=\"('{phase}',)\"" for phase in earlier)]))
    print(plan_table.table(found))
    record = {"phase": last} | plan_table.as_json(found)
    if not found.fits:
        better = plan_search.nearest(config, known.K, found, make, tell)
        changes = None if better is None else better[0]
        record["nearest"] = better and {"changes": changes, "plan": plan_table.as_json(better[1])}
        arguments = " ".join(shlex.quote(f"--config.{key}={value}") for key, value in (changes or {}).items())
        print(f"\nthe nearest settings that fit: {arguments}\n\n{plan_table.table(better[1])}" if better else
              f"\nno change that was tried makes {' and '.join(found.short)} fit; take more chips")
    if path:
        write_atomically(pathlib.Path(path), json.dumps(record, indent=1) + "\n")


def score(config: ml_collections.ConfigDict, place: str) -> None:
    """(Re-)scores a file of answers."""
    del place
    with readable_errors():
        from swerl_jax.env.score_file import score_file
        from swerl_jax.env.scorer import default_deadline_s

        deadline_s = config.reward.deadline_s or default_deadline_s(10**6, 10**6)
        print(score_file(config.input, config.output, RewardSpec.of(config.reward), config.reward.workers, deadline_s,
                         on_malformed=config.on_malformed))


def evaluate(config: ml_collections.ConfigDict, place: str) -> None:
    """A checkpoint on an example file: the table with intervals."""
    with readable_errors():
        config = _with_run(config)
        make_reward(RewardSpec.of(config.reward))
        from swerl_jax import assemble, parameters, preflight
        from swerl_jax.learn import evaluate as evaluation, report
        from swerl_jax.learn.rl import rollout_rows

        run = _run_directory(config)
        held_out = assemble.held_out_path(config, run)
        preflight.require(config)
        text = assemble.text(config, run, ())
        arch, mesh = assemble.arch(config, text.tokenizer), assemble.mesh(config)
        _warn(preflight.beyond_context(config, arch))
        params = parameters.load(config.checkpoint, assemble.learner(config, arch, mesh, "rl"))
    with assemble.scoring(config) as pool, assemble.collector(config, text, pool, lambda: None) as collector:
        groups = assemble.evaluator(config, arch, mesh, text, collector, held_out).run(params, 0)
    if config.eval.output:
        rows = (json.dumps(row) for group in groups for row in rollout_rows(group))
        pathlib.Path(config.eval.output).write_text("\n".join(rows) + "\n", encoding="utf-8")
    with readable_errors():
        results = evaluation.results(groups)
    print(report.evaluation_table({str(config.checkpoint): results}, pass_ks=config.eval.pass_k))


def sample(config: ml_collections.ConfigDict, place: str) -> None:
    """Answers one issue about given files and shows the diff."""
    with readable_errors():
        config = _with_run(config)
        from swerl_jax import assemble, engines, parameters, preflight
        from swerl_jax.learn import answer

        example = answer.read_example(config.sample.issue, config.sample.files)
        run = _run_directory(config)
        text = assemble.text(config, run, ())
        prompt = text.question_ids(example)
        arch, mesh = assemble.arch(config, text.tokenizer), assemble.mesh(config)
        _warn(preflight.beyond_context(config, arch))
        params = parameters.load(config.checkpoint, assemble.learner(config, arch, mesh, "rl"))
        engine = engines.engine(config, arch, mesh, text.chat.stop_ids, prompts=1, samples=1, groups=1,
                                temperature=config.sample.temperature, purpose="sample")
        engine.load(params, 0)
        print(answer.show(example, answer.ask(engine, prompt, text.max_answer_tokens), text.tokenizer, text.chat.stop_ids,
                          colour=report_colour()))


def export(config: ml_collections.ConfigDict, place: str) -> None:
    """A checkpoint's parameters and tokenizer as a directory that `init=hf:DIR` and other tools read."""
    del place
    with readable_errors():
        out = pathlib.Path(config.out)
        if out.exists():
            raise ValueError(f"{out} exists already; name a new directory with --config.out, or delete it yourself")
        config = _with_run(config)
        kept = {name: value for name, value in config_lib.flat(config) if name.startswith(MODEL_SETTINGS)}
        from swerl_jax import assemble, origin, parameters
        from swerl_jax.learn import export as exporting

        text = assemble.text(config, _run_directory(config), ())
        arch, mesh = assemble.arch(config, text.tokenizer), assemble.mesh(config)
        model = parameters.load(config.checkpoint, assemble.learner(config, arch, mesh, "rl"))

        def add_files(place: pathlib.Path) -> None:
            kind, _, file = text.tokenizer.save(place).partition(":")
            kept["tokenizer"] = f"{kind}:{pathlib.Path(file).name}" if file else kind  # the directory may move
            write_atomically(place / shipped.SETTINGS_NAME, json.dumps({"version": __version__, "config": kept}, indent=1) + "\n")

        ids, generation = origin.token_ids(config.init, text.tokenizer, text.chat.stop_ids)
        exporting.export(out, arch, model, config.format, config.export.dtype, ids, generation,
                         int(config.export.max_file_gb * 1e9), add_files)
        print(f"{out}: {arch.parameters:,} parameters in {config.export.dtype}")


def curate(config: ml_collections.ConfigDict, place: str) -> None:
    """Training shards from clones, an archive or rows."""
    del place
    with readable_errors():
        from swerl_jax.curate import tasks
        from swerl_jax.curate.work import AllFailed

        if config.beam:
            from swerl_jax.curate.beam_engine import BeamEngine
        try:
            print(tasks.curate(config, BeamEngine(config.beam) if config.beam else tasks.local_engine(config)))
        except AllFailed as error:
            raise ValueError(str(error)) from error


def inspect(config: ml_collections.ConfigDict, place: str) -> None:
    """One example as a page, and numbers of all."""
    del place
    with readable_errors():
        from swerl_jax.curate import tasks

        print(tasks.inspect(config, is_given, colour=report_colour()))


def report_colour() -> bool:
    """Whether standard output shows colours."""
    from swerl_jax.learn.report import wants_colour

    return wants_colour(sys.stdout)


def _start(config: ml_collections.ConfigDict, loop: Any, phases: list[Any], processes: Any) -> tuple[Any, int]:
    """(state, step) to begin with: a fresh one, one from `config.init`, or the run's own newest checkpoint."""
    from swerl_jax import parameters

    restored = loop.restore() if RESUME.value else None
    if restored is not None:
        print(f"resuming after step {restored[1]}")
        return restored
    learner = phases[0].learner
    if config.init == "random":
        return learner.init(config.seed), 0
    return learner.begin(parameters.load(config.init, learner, processes)), 0


def _with_run(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The settings that the model of `checkpoint` was trained with, changed where the command line or the config does.

    Raises:
      ValueError: there is no such directory, or together they cannot work.
    """
    model = shipped.find(config.checkpoint)
    if model is not None:
        path = pathlib.Path(model, shipped.SETTINGS_NAME)
        saved = json.loads(path.read_text(encoding="utf-8"))["config"] if path.exists() else {}
        saved |= {"model.arch": "init", "init": config.checkpoint}
        if shipped.has_tokenizer(model):
            saved["tokenizer"] = config.checkpoint
    elif run_directory.is_there(config.checkpoint):
        from swerl_jax import origin

        run = run_directory.find(config.checkpoint)
        saved = run_directory.read_settings(run)
        if not saved:
            raise ValueError(f"checkpoint: {config.checkpoint} is no directory of a run ({run_directory.CONFIG_NAME} is missing)")
        saved |= origin.kept(run, saved.get("tokenizer", ""))
    else:
        raise ValueError(f"checkpoint: there is no directory {config.checkpoint}; give that of a run")
    plain = dict(config_lib.flat(config_lib.default()))
    given = {name: value for name, value in config_lib.flat(config)
             if value != plain[name] or is_given(name)}  # a default may be asked for, too
    merged = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()
              if name in config_lib.KEYS} | given
    if model is not None and "tokenizer" not in merged:
        raise ValueError(f"{config.checkpoint} holds no tokenizer that is on this machine; set --config.tokenizer (hf:DIR or json:FILE)")
    config = config_lib.update(config_lib.default(), merged)
    config_lib.check(config)
    return config


def _with_shards(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The settings with the paths that `data.shards` stands for."""
    if not config.data.shards:
        return config
    from swerl_jax.curate import tasks
    from swerl_jax.policy import hf

    def context() -> int:
        return hf.find_arch(config.model.arch, lambda: run_directory.model_directory(config.init)).context

    return tasks.with_shards(config, is_given, context)


def _warn(text: str) -> None:
    if text:
        tell(f"warning: {text}")


def _run_directory(config: ml_collections.ConfigDict) -> pathlib.Path:
    return run_directory.find(shipped.find(config.checkpoint) or config.checkpoint)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
