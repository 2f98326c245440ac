"""The processes of a run on several hosts: start-up, and meetings that say who is absent or failed.

JAX's coordination service carries all of it (``jax.distributed``): here its calls get names, time
limits and errors that name a host. A host that dies is found by the service itself, which ends the
other processes after ``heartbeat_timeout_s``; the run then goes on from its newest checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")
# Of meetings after work that only the first process does (tokenising a corpus); that it lives is
# watched by heartbeats. (assumed)
LONG_TIMEOUT_S = 24 * 3600
_MARGIN_S = 10  # by which the others outwait the first process, which says who is absent


class HostError(ConnectionError):
    """A process of the run is absent or has failed; the text names it and its host."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Where the processes of a run find each other.

    Attributes:
        coordinator: host:port of process 0; None lets JAX ask SLURM, the TPU's metadata, GKE, MPI.
        num_processes, process_id: None lets JAX ask as well.
        initialization_timeout_s: until all processes have started.
        heartbeat_timeout_s: of silence, after which a process counts as dead.
        meeting_timeout_s: until all processes have come to a point where they wait for each other.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    initialization_timeout_s: int = 300
    heartbeat_timeout_s: int = 100
    meeting_timeout_s: int = 600


def start(options: ClusterOptions) -> Hosts:
    """Joins this process to the run's; before anything asks JAX for devices.

    Where some do not come within ``initialization_timeout_s``, JAX ends the others with a message
    that lists them ("timed out task names").

    Raises:
        HostError: nothing says who the processes are, or the coordinator cannot be used.
    """
    limit_s = options.initialization_timeout_s
    try:
        with _registration_limit(limit_s):
            jax.distributed.initialize(
                options.coordinator,
                options.num_processes,
                options.process_id,
                initialization_timeout=limit_s + _MARGIN_S,
                heartbeat_timeout_seconds=options.heartbeat_timeout_s,
            )
    except (RuntimeError, ValueError) as error:
        raise HostError(
            f"process {_or_unknown(options.process_id)} of {_or_unknown(options.num_processes)} "
            f"on {socket.gethostname()} could not join the run at "
            f"{options.coordinator or 'a coordinator that JAX detects'} within "
            f"{limit_s} s: {error}; start all processes, each with its own --process-id, or see "
            "docs/clusters.md"
        ) from error
    hosts = Hosts(options.meeting_timeout_s)
    hosts.meet("start")
    return hosts


class Hosts:
    """The processes of a run; one alone meets nobody and never waits."""

    def __init__(self, timeout_s: float = 600.0) -> None:
        """Takes the processes that ``jax.distributed`` knows; once in each, for meetings count.

        Args:
            timeout_s: to wait for the others at each meeting.
        """
        self.index, self.count = jax.process_index(), jax.process_count()
        self._timeout_s = timeout_s
        self._rounds: Counter[str] = Counter()
        self._client: Any = None
        if self.count > 1:
            from jax._src import distributed  # the store has no public name (jax 0.10 and 0.11)

            self._client = distributed.global_state.client
            host = socket.gethostname()
            self._client.key_value_set(f"cwm_jax/host/{self.index}", host, allow_overwrite=True)

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's files and its log."""
        return self.index == 0

    def name(self, index: int | None = None) -> str:
        """``process 3 (host name)``, of this process by default."""
        index = self.index if index is None else index
        host = socket.gethostname()
        if index != self.index:
            known = dict(self._client.key_value_dir_get("cwm_jax/host/"))
            host = known.get(f"cwm_jax/host/{index}", "never started")
        return f"process {index} ({host})"

    def meet(
        self, what: str, *, value: str = "", problem: str = "", timeout_s: float | None = None
    ) -> list[str]:
        """Waits for all processes at ``what``; fails on all of them if it fails on one.

        One with a problem tells it and does not wait.

        Args:
            what: name of the meeting; all processes come to the same ones in the same order.
            value: what this process tells.
            problem: why this process cannot go on; empty: it can.
            timeout_s: seconds to wait for the others; None: those of the run.

        Returns:
            The values of all processes on the first process; on the others, the first one's alone.

        Raises:
            HostError: a process did not come in time, or had a problem.
        """
        if self.count == 1:
            if problem:
                raise HostError(problem)
            return [value]
        self._rounds[what] += 1
        key = f"cwm_jax/{what}/{self._rounds[what]}"
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        if self.is_first:
            return self._collect(key, what, value, problem, timeout_s)
        self._set(f"{key}/{self.index}", json.dumps([value, problem]))
        if problem:
            raise HostError(f"{what}: {self.name()}: {problem}")
        try:
            text = self._get(f"{key}/all", timeout_s + _MARGIN_S)
        except jax.errors.JaxRuntimeError as error:
            raise HostError(self._absent([0], what, timeout_s)) from error
        first_value, failure = json.loads(text)
        if failure:
            raise HostError(failure)
        return [first_value]

    def tell(self, what: str, error: BaseException) -> None:
        """Lets a meeting fail on all other processes, for what is raised here anyway."""
        with contextlib.suppress(HostError):
            self.meet(what, problem=f"{type(error).__name__}: {error}")

    def decide(
        self, what: str, make: Callable[[], str | None], *, timeout_s: float = LONG_TIMEOUT_S
    ) -> str:
        """What ``make`` returns on the first process, which alone calls it; "" for None.

        Raises:
            HostError: it failed on the first process; there, its own error.
        """
        if not self.is_first:
            return self.meet(what, timeout_s=timeout_s)[0]
        try:
            value = make() or ""
        except BaseException as error:
            self.tell(what, error)
            raise
        self.meet(what, value=value, timeout_s=timeout_s)
        return value

    def first(self, what: str, make: Callable[[], T], *, timeout_s: float = LONG_TIMEOUT_S) -> T:
        """Calls ``make`` on the first process, and then on the others, who find its files there.

        Raises:
            HostError: it failed on the first process; there, its own error.
        """
        made: list[T] = []
        self.decide(what, lambda: made.append(make()), timeout_s=timeout_s)
        return made[0] if made else make()

    def gather(
        self, what: str, make: Callable[[], bytes], *, timeout_s: float = LONG_TIMEOUT_S
    ) -> list[bytes]:
        """What ``make`` returns on each process, in their order; all processes get all of it.

        It goes over the devices' network: the coordinator is not made for megabytes.

        Raises:
            HostError: it failed on another process; where it failed, its own error.
        """
        try:
            value = make()
        except BaseException as error:
            self.tell(what, error)
            raise
        if self.count == 1:
            return [value]
        self.meet(what, timeout_s=timeout_s)
        sizes = multihost_utils.process_allgather(np.array([len(value)], np.int32))[:, 0]
        room = 1 << (int(sizes.max()) - 1).bit_length()  # powers of two: few programs
        padded = np.zeros(room, np.uint8)
        padded[: len(value)] = np.frombuffer(value, np.uint8)
        rows = multihost_utils.process_allgather(padded)
        return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]

    def check_same(self, what: str, values: dict[str, Any]) -> None:
        """Refuses processes that were started with other values than the first.

        Raises:
            HostError: what differs, and on which.
        """
        told = self.meet(f"{what}, values", value=json.dumps(values))
        problems = []
        for index, text in enumerate(told[1:], 1):
            theirs = json.loads(text)
            different = [
                f"{key} {theirs.get(key)!r} (process 0: {values.get(key)!r})"
                for key in sorted({*values, *theirs})
                if theirs.get(key) != values.get(key)
            ]
            if different:
                problems.append(f"{self.name(index)} has another {what}: {', '.join(different)}")
        if problems:
            problems.append("start every process with the same code, --config and --set")
        self.meet(f"{what}, verdict", problem="; ".join(problems))

    def _collect(
        self, key: str, what: str, value: str, problem: str, timeout_s: float
    ) -> list[str]:
        """The first process' part: hears the others out and tells them the outcome."""
        values, absent = [value], []
        problems = [f"{self.name()}: {problem}"] if problem else []
        deadline = time.monotonic() + timeout_s
        for index in range(1, 1 if problem else self.count):
            try:
                text = self._get(f"{key}/{index}", max(0.001, deadline - time.monotonic()))
            except jax.errors.JaxRuntimeError:
                absent.append(index)
                continue
            theirs, their_problem = json.loads(text)
            values.append(theirs)
            if their_problem:
                problems.append(f"{self.name(index)}: {their_problem}")
        if absent:
            problems.append(self._absent(absent, what, timeout_s))
        failure = f"{what}: {'; '.join(problems)}" if problems else ""
        self._set(f"{key}/all", json.dumps([value, failure]))
        if failure:
            raise HostError(failure)
        for index in range(1, self.count):
            self._client.key_value_delete(f"{key}/{index}")
        return values

    def _absent(self, indices: list[int], what: str, timeout_s: float) -> str:
        names = ", ".join(self.name(index) for index in indices)
        return f"waited {timeout_s:.0f} s at {what!r} for {names}: look at the log there"

    def _set(self, key: str, value: str) -> None:
        self._client.key_value_set(key, value)

    def _get(self, key: str, timeout_s: float) -> str:
        return self._client.blocking_key_value_get(key, max(1, int(timeout_s * 1000)))


@contextlib.contextmanager
def _registration_limit(seconds: int) -> Iterator[None]:
    """Lets JAX's service give up after so long: unlike the clients' limit, it says who is absent.

    ``jax.distributed.initialize`` does not pass this limit on (jax 0.10.2 and 0.11.2).
    """
    from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

    plain = _jax.get_distributed_runtime_service
    _jax.get_distributed_runtime_service = functools.partial(
        plain, cluster_register_timeout=seconds
    )
    try:
        yield
    finally:
        _jax.get_distributed_runtime_service = plain


def _or_unknown(number: int | None) -> str:
    return "(to be detected)" if number is None else str(number)
