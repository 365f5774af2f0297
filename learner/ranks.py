"""The gradient of a batch by several processes, one for each device, through torch.distributed.

Rank 0 is the learner itself. It alone has optimizer, counters and checkpoints; the others have the
two networks, get them anew with every update, and give back the gradient of their samples. So
there is nothing in them that could drift, or be saved. One update moves the weights of both
networks to every rank and one gradient back, and each part of the batch through a pipe.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import groupby
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from learner.config import LearnerConfig
from learner.gradients import LocalGradients
from learner.measurement import Measured, join, split
from learner.world_model import WorldModel, WorldModelConfig
from replay_service.segment import GameSpec
from replay_service.targets import Batch, TargetConfig

START_S = 240.0  # to import torch and build two networks, on a small machine that is busy
TIMEOUT_S = 120.0  # for its part of one update; the controller waits longer for an answer


class RankLostError(RuntimeError):
    """A process of the learner died or hangs. Another learner would do, this one can't go on."""


@dataclass(frozen=True, slots=True)
class RankSettings:
    """All that another rank is built from.

    device: cpu or cuda; of several GPUs that this process sees, rank i has the i-th
    store: path of a file through which the ranks find each other
    timeout_s: after which a rank that waits for another gives up
    """

    config: LearnerConfig
    model: WorldModelConfig
    targets: TargetConfig
    spec: GameSpec
    device: str
    rank: int = 0
    store: str = ""
    timeout_s: float = TIMEOUT_S

    @property
    def torch_device(self) -> torch.device:
        return (
            torch.device(self.device, self.rank) if self.device == "cuda" else torch.device("cpu")
        )


@dataclass(frozen=True, slots=True)
class Order:
    """The part of a batch of `n_samples` that one rank works on, with `n_real` observations."""

    part: Batch
    n_samples: int
    n_real: int
    entropy_scale: float


class ParallelGradients:
    """As LocalGradients, with equal results to rounding; starts the processes of ranks 1 and up."""

    def __init__(
        self,
        settings: RankSettings,
        own: LocalGradients,
        model: WorldModel,
        target_model: WorldModel,
    ) -> None:
        """Waits for all ranks. Raises RankLostError if one does not come up."""
        self._own = own
        self._model = model
        self._networks = (model, target_model)
        self._device = settings.torch_device
        self._timeout_s = settings.timeout_s
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-")
        settings = replace(settings, store=str(Path(self._folder.name) / "store"))
        n_ranks = settings.config.n_devices
        _stay_on_this_machine()
        self._others = [_Other(replace(settings, rank=rank)) for rank in range(1, n_ranks)]
        try:
            for other in self._others:
                other.answer(START_S)
            with self._together():
                join_group(settings)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """Of the processes that were started."""
        return [other.process.pid for other in self._others]

    def add(
        self, batch: Batch, n_samples: int, n_real: int, entropy_scale: float = 1.0
    ) -> Measured:
        """As LocalGradients; needs at least as many samples as there are ranks."""
        own, *parts = split(batch, 1 + len(self._others))
        with self._together():
            for other, part in zip(self._others, parts, strict=True):
                other.send(Order(part, n_samples, n_real, entropy_scale))
            share_weights(self._networks)
        measured = self._own.add(own, n_samples, n_real, entropy_scale)
        with self._together():
            sum_gradients(self._model)
        answers = [other.answer(self._timeout_s) for other in self._others]
        return join([measured, *(answer.to(self._device) for answer in answers)])

    def close(self) -> None:
        """Ends the processes."""
        for other in self._others:
            other.close()
        if distributed.is_initialized():
            distributed.destroy_process_group()
        self._folder.cleanup()

    @contextmanager
    def _together(self) -> Iterator[None]:
        """What fails in here does so because of another rank, which may have said why."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            for other in self._others:
                other.tell_of_failure()
            raise RankLostError(f"the ranks of the learner lost each other: {error}") from error


class _Other:
    """A rank of another process, as rank 0 sees it."""

    def __init__(self, settings: RankSettings) -> None:
        self._rank = settings.rank
        self._pipe, theirs = Pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "learner.rank_process", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        theirs.close()
        send(self._pipe, settings)

    def send(self, order: Order) -> None:
        send(self._pipe, order)

    def answer(self, timeout_s: float) -> Measured:
        """Raises RankLostError, or RuntimeError with what that rank raised."""
        try:
            if not self._pipe.poll(timeout_s):
                raise RankLostError(f"rank {self._rank} gave no answer within {timeout_s:.0f} s")
            answer = receive(self._pipe)
        except (EOFError, OSError) as error:
            raise RankLostError(f"rank {self._rank} of the learner died") from error
        if isinstance(answer, str):
            raise RuntimeError(f"rank {self._rank} of the learner failed: {answer}")
        return answer

    def tell_of_failure(self) -> None:
        """Raises RuntimeError with what that rank raised, or RankLostError if it is dead."""
        if self._pipe.poll():
            self.answer(0.0)

    def close(self) -> None:
        self._pipe.close()
        self.process.kill()
        self.process.wait()


def send(pipe: Connection, message: object) -> None:
    # Connection.send would hand tensors over as shared memory, with a server for its descriptors.
    pipe.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


def receive(pipe: Connection) -> object:
    """Of one's own parent or child only."""
    return pickle.loads(pipe.recv_bytes())


def join_group(settings: RankSettings) -> None:
    """Waits until every rank has come here."""
    on_gpu = settings.device == "cuda"
    n_ranks = settings.config.n_devices
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=distributed.FileStore(settings.store, n_ranks),
        rank=settings.rank,
        world_size=n_ranks,
        timeout=timedelta(seconds=settings.timeout_s),
        device_id=settings.torch_device if on_gpu else None,
    )


@torch.no_grad()
def share_weights(networks: Sequence[nn.Module]) -> None:
    """Every rank gets parameters and buffers of rank 0's."""
    tensors = [t for network in networks for t in (*network.parameters(), *network.buffers())]
    for _, alike in groupby(sorted(tensors, key=_type_of), key=_type_of):
        group = list(alike)
        flat = _flat(group)
        distributed.broadcast(flat, src=0)
        if distributed.get_rank():
            _unflatten(flat, group)


@torch.no_grad()
def sum_gradients(model: nn.Module) -> None:
    """Rank 0 gets the sum over all ranks; what the others have afterwards means nothing."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = _flat(gradients)
    distributed.reduce(flat, dst=0)
    if distributed.get_rank() == 0:
        _unflatten(flat, gradients)


def _type_of(tensor: Tensor) -> str:
    return str(tensor.dtype)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _unflatten(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def _stay_on_this_machine() -> None:
    """Gloo and NCCL would listen on the machine's own address; the ranks need loopback only."""
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, loopback)
