"""Child processes that start in milliseconds: forked from a server that has the library imported."""

import faulthandler
import multiprocessing
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

_HERE = Path(__file__).parent
_PATIENCE = 180


def _context() -> Any:
    """A fork server of which torch's threads know nothing, unlike this process."""
    paths = [str(_HERE.parent), str(_HERE)]
    known = os.environ.get("PYTHONPATH", "")
    if not known.startswith(paths[0]):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*paths, known]))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["toy", "pretrain.main"])
    return context


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What torchrun tells its processes."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _run_rank(
    function: Callable[..., Any], arguments: Sequence[Any], environment: dict[str, str], pipe: Any
) -> None:
    from codemae.distributed import process_group

    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        with process_group(torch.device("cpu")):
            pipe.send_bytes(pickle.dumps((True, function(*arguments))))
    except BaseException:
        pipe.send_bytes(pickle.dumps((False, traceback.format_exc())))


def run_on_ranks(function: Callable[..., Any], *arguments: Any, world_size: int = 2) -> list[Any]:
    """Runs a module-level function on gloo processes; returns its results in rank order."""
    context = _context()
    port = free_port()
    started: list[tuple[BaseProcess, Any]] = []
    for rank in range(world_size):
        receive, send = context.Pipe(duplex=False)
        environment = rank_environment(rank, world_size, port)
        process = context.Process(
            target=_run_rank, args=(function, arguments, environment, send), daemon=True
        )
        process.start()
        send.close()
        started.append((process, receive))
    results = []
    try:
        for rank, (_, receive) in enumerate(started):
            assert receive.poll(_PATIENCE), f"rank {rank} gave no answer in {_PATIENCE} s"
            worked, value = pickle.loads(receive.recv_bytes())
            assert worked, f"rank {rank}:\n{value}"
            results.append(value)
    finally:
        for process, _ in started:
            process.join(5)
            process.kill()
    return results


class Launched:
    """One process of ``pretrain/main.py``, with the toy method known."""

    def __init__(self, process: BaseProcess, log: Path) -> None:
        self.process = process
        self.log = log

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def wait(self, timeout: float = _PATIENCE) -> int:
        """Its exit code; negative for a signal that killed it."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            pytest.fail(f"still running after {timeout} s:\n{self.output}")
        return self.process.exitcode

    @property
    def output(self) -> str:
        return self.log.read_text()


def _run_main(
    arguments: list[str], log: str, environment: dict[str, str], file_size_limit: int | None
) -> None:
    import resource

    import toy

    from pretrain.main import main

    os.setsid()
    # loader workers start as they do in a process of its own
    multiprocessing.set_start_method("fork", force=True)
    toy.register()

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = open(1, "w", buffering=1)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1)  # noqa: SIM115
    os.environ.update(environment)
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(_PATIENCE - 20, file=sys.stderr)
    if file_size_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size_limit, resource.RLIM_INFINITY))
    code = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def launch(
    arguments: Sequence[str],
    log: Path,
    *,
    environment: dict[str, str] | None = None,
    file_size_limit: int | None = None,
) -> Launched:
    """Starts ``pretrain/main.py`` in a process of its own; output goes to a file."""
    process = _context().Process(
        target=_run_main, args=(list(arguments), str(log), environment or {}, file_size_limit)
    )
    process.start()
    return Launched(process, log)


def launch_ranks(arguments: Sequence[str], folder: Path, world_size: int = 2) -> list[Launched]:
    """Starts ``pretrain/main.py`` on several gloo processes, as torchrun would."""
    port = free_port()
    return [
        launch(arguments, folder / f"rank{rank}.log", environment=rank_environment(rank, world_size, port))
        for rank in range(world_size)
    ]
