"""The process of rank 1 or above of a parallel learner; `learner/ranks.py` starts it.

python -m learner.rank_process DESCRIPTOR   of the pipe to rank 0
"""

from __future__ import annotations

import os
import sys
import threading
import time
from multiprocessing.connection import Connection

import torch
from torch import distributed

from learner.gradients import LocalGradients
from learner.ranks import (
    Order,
    RankSettings,
    join_group,
    receive,
    send,
    share_weights,
    sum_gradients,
)
from learner.world_model import WorldModel

LOOK_S = 1.0


def main(pipe: Connection) -> None:
    """Works on orders until rank 0 is gone."""
    parent = os.getppid()
    threading.Thread(target=_end_with, args=(parent,), name="parent-watch", daemon=True).start()
    torch.set_num_threads(1)
    settings = receive(pipe)
    assert isinstance(settings, RankSettings)
    device = settings.torch_device
    model, target_model = (WorldModel(settings.model, settings.spec).to(device) for _ in range(2))
    target_model.requires_grad_(False)
    model.train()
    gradients = LocalGradients(settings.config, settings.targets, model, target_model, device)
    send(pipe, None)
    join_group(settings)
    while True:
        try:
            order = receive(pipe)
        except EOFError:
            break
        assert isinstance(order, Order)
        model.zero_grad(set_to_none=True)
        share_weights((model, target_model))
        try:
            part = order.part.to(device)
            measured = gradients.add(part, order.n_samples, order.n_real, order.entropy_scale)
        except Exception as error:  # of whatever kind, rank 0 decides what follows
            send(pipe, repr(error))
            raise
        sum_gradients(model)
        send(pipe, measured.to("cpu"))
    distributed.destroy_process_group()


def _end_with(parent: int) -> None:
    """A rank that waits for a dead one on a GPU would hold its memory for as long as it may wait,
    and another learner is about to need that.
    """
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os._exit(1)


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
