"""The loop of the reinforcement-learning phase: play, learn, push the weights, save."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from cwm_jax.config import DataConfig, RLConfig, RunConfig
from cwm_jax.distributed import Hosts
from cwm_jax.inference.engine import Engine, EngineOptions
from cwm_jax.rl.environment import Environment, Task
from cwm_jax.rl.envs.kinds import load_tasks, make_environments
from cwm_jax.rl.evaluation import Evaluator, changes
from cwm_jax.rl.learner import Learner
from cwm_jax.rl.playing.players import AllTheTime, Dealer, InTurns, Nobody, Players
from cwm_jax.rl.playing.rollout import Rollouts
from cwm_jax.rl.playing.tasks import TaskStream, drawn_tasks, split_tasks
from cwm_jax.rl.playing.together import Together
from cwm_jax.rl.report import LEAST_TASKS, describe_change, plot_rl
from cwm_jax.rl.selection import Curriculum
from cwm_jax.rl.weights import WeightCopies
from cwm_jax.sharding import make_mesh
from cwm_jax.tokenizer import Tokenizer, load_tokenizer
from cwm_jax.training import checkpoint as ckpt
from cwm_jax.training import startup
from cwm_jax.training.goodput import Goodput
from cwm_jax.training.loop import GOODPUT_FILE, RunResult
from cwm_jax.training.metrics import METRICS_FILE, print_line, read_metrics
from cwm_jax.training.plan import make_plan
from cwm_jax.training.signals import StopRequest
from cwm_jax.training.state import check_host_memory


def run(
    config: RunConfig, hosts: Hosts | None = None, *, started: float | None = None
) -> RunResult:
    """Trains by reinforcement, from the newest checkpoint of ``run_name`` if there is one.

    Args and errors as of ``cwm_jax.training.loop.run``; ValueError also where a task, a profile or
    an environment's folder is not usable.
    """
    # 1. Processes that agree, devices, tasks, environments: nothing is touched before they fit.
    hosts, rl = hosts or Hosts(), config.rl
    assert rl is not None
    hosts.check_same("start", startup.start_values(config))
    training, playing = _devices(rl)
    mesh = make_mesh(config.mesh, training)
    check_host_memory(config, mesh.local_devices)
    plan = make_plan(config, num_devices=len(training))
    tokenizer = _policy_tokenizer(config)
    train, heldout = _tasks(config)
    environments = make_environments(rl.environments, tokenizer)
    folder = Path(config.base_output_directory) / config.run_name
    goodput = Goodput(folder / GOODPUT_FILE if hosts.is_first else None, started=started)
    with startup.locked(folder, hosts), contextlib.ExitStack() as stack:
        print_line(f"run {config.run_name} in {folder}\n{plan.describe()}")
        for name in train:
            print_line(describe_split(config.data, name, len(train[name]), len(heldout[name])))
        # 2. State: restored, or an earlier phase's weights.
        newest = startup.newest_checkpoint(folder / "checkpoints", hosts)
        record = None
        if newest is not None:
            record = ckpt.read_record(newest)
            ckpt.check_same_run(newest, record, plan)
        start = None  # made before the state, so that its optimizer's arrays are gone by then
        if rl.loss.kl_weight:
            start = startup.first_state(config, mesh, tokenizer, hosts).params
        if newest is not None and record is not None:
            state = startup.restored_state(config, mesh, newest)
            print_line(f"resuming at step {record.step} from {newest}")
        else:
            state = startup.first_state(config, mesh, tokenizer, hosts)
        # 3. Who plays.
        copies = WeightCopies(config, mesh, playing, hosts)

        def make(params: Any, *, temperature: float = 1.0, ordered: bool) -> Rollouts:
            return make_rollouts(
                config,
                copies.mesh,
                params,
                tokenizer,
                environments,
                temperature=temperature,
                ordered=ordered,
            )

        weights, version = copies.of(state.params), int(state.step)
        players = _players(config, train, hosts, make, weights, version)
        stack.callback(players.close)
        evaluator = Evaluator(config, heldout, make, copies, folder, hosts)
        # 4. Logs, cut back to that state.
        log = stack.enter_context(startup.opened_log(config, folder, record, goodput, hosts))
        saver = ckpt.Checkpointer(folder / "checkpoints", config.checkpoint, tokenizer, hosts)
        stack.callback(saver.close)
        # 5. Steps.
        learner = Learner(
            config, plan, mesh, players, copies, evaluator, log, saver, goodput, folder, hosts
        )
        if record is not None:
            players.restore(record.loader_state["players"])
            evaluator.resume(record.step)
        if start is not None:
            learner.keep_close_to(start)
        with jax.set_mesh(mesh), StopRequest() as stop:
            state, finished = learner.train(state, stop)
        saver.wait()
    print_line(goodput.describe())
    metrics = read_metrics(folder / METRICS_FILE)
    if hosts.is_first:
        plot_rl(metrics, folder / "rl.png")
    return RunResult(folder, state, tokenizer, metrics, finished)


def describe_result(config: RunConfig, result: RunResult) -> str:
    """Lines for the end of a run: held-out accuracies, before and now, on the same tasks."""
    return "\n".join(
        [
            *map(describe_change, changes(result.folder)),
            f"metrics: {result.folder}/{METRICS_FILE}, curves: {result.folder}/rl.png, episodes: "
            f"python -m cwm_jax rl show {result.folder}",
        ]
    )


def describe_split(data: DataConfig, name: str, num_train: int, num_heldout: int) -> str:
    """One line on an environment's tasks."""
    line = f"environment {name}: {num_train:,} tasks, {num_heldout:,} held out"
    if num_heldout >= LEAST_TASKS:
        return line
    return f"{line}: too few, raise data.heldout_fraction ({data.heldout_fraction})"


def make_engine(config: RunConfig, mesh: Mesh, params: Any, tokenizer: Tokenizer) -> Engine:
    """The engine of a run's rollouts, on the devices of its mesh."""
    assert config.rl is not None
    episodes = config.rl.groups_at_once * config.rl.group_size
    options = EngineOptions(
        max_length=config.batch.max_target_length,
        max_rows=config.rl.max_rows,
        max_waiting=max(episodes, config.rl.eval_tasks * len(config.rl.environments)) + 1,
    )
    with jax.set_mesh(mesh):
        return Engine(params, config.model, tokenizer, options, execution=config.execution)


def make_rollouts(
    config: RunConfig,
    mesh: Mesh,
    params: Any,
    tokenizer: Tokenizer,
    environments: Callable[[str, Task], Environment],
    *,
    temperature: float = 1.0,
    ordered: bool,
) -> Rollouts:
    """A run's rollouts on an engine of their own; arguments as of ``Rollouts``."""
    assert config.rl is not None
    return Rollouts(
        make_engine(config, mesh, params, tokenizer),
        environments,
        max_tokens=config.batch.max_target_length,
        ordered=ordered,
        timeout_s=config.rl.environment_timeout_s,
        temperature=temperature,
    )


def _players(config: RunConfig, tasks, hosts: Hosts, make, weights: Any, version: int) -> Together:
    """Rollouts of each process' own, or Ray's workers, which the first process conducts."""
    rl = config.rl
    assert rl is not None
    place, of = (0, 1) if rl.rollout_workers else (hosts.index, hosts.count)
    stream = TaskStream(rl.environments, tasks, config.seed)
    dealer = Dealer(stream, Curriculum(rl.curriculum, config.seed), place=place, of=of)
    if rl.rollout_workers:
        own = _on_ray(config, dealer, weights, version) if hosts.is_first else Nobody()
        return Together(own, dealer, hosts)
    synchronous = rl.mode == "synchronous"
    rollouts = make(weights, ordered=synchronous)
    rollouts.version = version
    kind = InTurns if synchronous else AllTheTime
    return Together(kind(rollouts, dealer, rl, config.seed), dealer, hosts)


def _on_ray(config: RunConfig, dealer: Dealer, weights: Any, version: int) -> Players:
    from cwm_jax.rl.playing.on_ray import OnRay

    return OnRay(config, dealer, weights, version)


def _devices(rl: RLConfig) -> tuple[list[Any], list[Any]]:
    """(those of all processes that train, those of this one that play: its last)."""
    by_process = collections.defaultdict(list)
    for device in jax.devices():
        by_process[device.process_index].append(device)
    fewest, playing = min(map(len, by_process.values())), rl.rollout_devices
    if playing >= fewest:
        raise ValueError(
            f"rl.rollout_devices is {playing} and {fewest} here; expected fewer: some have to train"
        )
    shared = rl.mode == "asynchronous" and not (rl.rollout_devices or rl.rollout_workers)
    if shared and fewest > 1:
        raise ValueError(
            f"rl.mode is 'asynchronous' and {fewest} devices would both play and train; expected "
            "one, for two threads that launch programs on several devices can block each other: "
            "set rl.rollout_devices or rl.rollout_workers, or rl.mode='synchronous'"
        )
    training = [d for own in by_process.values() for d in own[: len(own) - playing]]
    own = by_process[jax.process_index()]
    return training, own[len(own) - playing :]


def _policy_tokenizer(config: RunConfig) -> Tokenizer:
    if config.tokenizer.path is None:
        raise ValueError(
            "rl is set and tokenizer.path is not; expected the tokenizer of the policy: name the "
            "export or checkpoint that it starts from"
        )
    return load_tokenizer(config.tokenizer.path)


def _tasks(config: RunConfig) -> tuple[dict[str, list[Task]], dict[str, list[Task]]]:
    """(to train on, held out) of each environment."""
    assert config.rl is not None
    train, heldout = {}, {}
    for environment in config.rl.environments:
        found = load_tasks(environment)
        name = environment.name
        learnt, heldout[name] = split_tasks(found, config.data.heldout_fraction)
        train[name] = drawn_tasks(learnt, environment, config.seed)
    return train, heldout
