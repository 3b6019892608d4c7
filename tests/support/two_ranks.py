"""Processes that train together over gloo, as torchrun starts them, and their scenes.

Ranks are forks of one process that has torch loaded, because every import of it takes seconds.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

LONGEST = 60.0  # seconds until a hanging rank is killed
COMMAND = [
    "--channel-mult",
    "1",
    "--attention=",
    "--batch-size",
    "7",
    "--device",
    "cpu",
    "--steps",
    "6",
    "--head-steps",
    "4",
]
QUIET = {"warmup": 4, "progress": False, "lr": 1e-2}


def played(scenes, folder, count=2):
    """Run scenes of this file on all ranks; return [(status, stdout, stderr) of each rank]."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(folder), str(count), *scenes]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _play(scene, folder, count):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(count))
    ranks = [_forked(rank, scene, folder) for rank in range(count)]
    end, found = time.monotonic() + LONGEST, []
    for rank, child in enumerate(ranks):
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.01)
        said = [Path(folder, f"{scene} {rank}.{stream}").read_text() for stream in ("out", "err")]
        found.append((os.waitstatus_to_exitcode(ended[1]), *said))
    return found


def _forked(rank, scene, folder):
    child = os.fork()
    if child:
        return child
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    for number, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(folder, f"{scene} {rank}.{stream}"), os.O_WRONLY | os.O_CREAT), number)
    try:
        globals()[scene](Path(folder))
        sys.stdout.flush()
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)


# --- scenes ---


def together(out):
    from torch import distributed

    from gms_fast.training.ranks import Ranks

    made = {
        "even": train(out / "even"),
        "odd": train(out / "odd", batch_size=7),
        "loader": train(out / "loader", data=loader()),
        "complex": train(out / "complex", head="complex", flips=True),
        "continued": train(out / "one first"),
        "parts": train(out / "parts", batch_size=7, micro_batch=2),
        "noise": {"e1": noise_network(out / "noise", micro_batch=3)},
    }
    torch.save(made, out / f"weights {rank()}.pt")
    assert Ranks().count == 2
    for name, options, kind in (
        ("even", {"lr": 0.5}, ValueError),
        ("even", {"resume": False}, FileExistsError),
        ("small", {"batch_size": 1}, ValueError),
    ):
        refused(out / name, kind, options)
    print("still a group of", distributed.get_world_size())


def refused(out, kind, options):
    try:
        train(out, **options)
    except kind as error:
        print(error)


def counted(out):
    """Print how many times gradients are exchanged in 5 steps of two parts for each rank."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    from gms_fast.training import ranks

    calls = []

    class Counting(ranks.DistributedDataParallel):
        def __init__(self, module):
            super().__init__(module)
            self.register_comm_hook(None, lambda _, bucket: calls.append(0) or allreduce_hook(None, bucket))

    ranks.DistributedDataParallel = Counting
    train(out / "counted", batch_size=7, micro_batch=2, steps=5)
    print(len(calls) - 1)  # one call belongs to the start


def uninterrupted(out):
    torch.save(train(out / "uninterrupted"), out / f"uninterrupted {rank()}.pt")


def killed_and_gone_on(out):
    torch.save(train(out / "killed 1"), out / f"gone on {rank()}.pt")


def first_killed(out):
    _killed(out, 0)


def second_killed(out):
    _killed(out, 1)


def _killed(out, which):
    if rank() == which:
        at_step(20, lambda: os.kill(os.getpid(), signal.SIGKILL))
    train(out / f"killed {which}", checkpoint_every=8)


def signalled(out):
    from torch import distributed

    from gms_fast import interrupts

    distributed.init_process_group("gloo")  # made by the user; training uses it
    for which in (0, 1):
        at_step(20, lambda which=which: rank() != which or os.kill(os.getpid(), signal.SIGTERM))
        with interrupts.raised():
            try:
                train(out / f"signalled {which}", checkpoint_every=8)
            except KeyboardInterrupt as error:
                print(type(error).__name__)


def trained(out):
    command(out / "x.npy", out / "run")


trained_again = trained


def trained_where_somebody_is(out):
    command(out / "x.npy", out / "held")


def trained_until_a_signal(out):
    at_step(3, lambda: rank() != 1 or os.kill(os.getpid(), signal.SIGTERM))
    command(out / "x.npy", out / "cut")


def command(data, out):
    """Run the command `train` and end this rank with its status."""
    from gms_fast import cli

    status = cli.main(["train", "--data", str(data), "--out", str(out), *COMMAND])
    sys.stdout.flush()
    os._exit(status)


def train(out, steps=50, batch_size=6, **options):
    """Train heads and return their weights; a rank keeps them in `out`/weights.pt if told to."""
    from small_heads import heads, pictures

    from gms_fast.training import train_moment_heads

    data = options.pop("data", None)
    batches = {"batch_size": batch_size} if data is None else {}
    model = heads(head=options.pop("head", "simple"))
    given = pictures() if data is None else data
    train_moment_heads(model, given, steps=steps, out=out, **{**QUIET, "checkpoint_every": 1000, **batches, **options})
    return weights(model.heads)


def noise_network(out, **options):
    """Return outputs of a noise network after 40 steps on `out`.

    Some of its weights have no effect and follow the rounding, so the weights are not compared.
    """
    from small_heads import pictures
    from tiny_networks import outputs, tiny

    from gms_fast.training import train_noise_network

    model = tiny(image_size=4, attention_resolutions=(), head=None)
    steps = {"steps": 40, "batch_size": 7, "checkpoint_every": 1000}
    return outputs(train_noise_network(model, pictures(), out=out, **{**QUIET, "lr": 2e-3, **steps, **options}))


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def loader():
    """Return batches of 7, 7, 7 and 3."""
    from small_heads import pictures

    return torch.utils.data.DataLoader(pictures(), batch_size=7, shuffle=True)


def at_step(number, act):
    """Call `act` as the step of that number begins, in place of any earlier `act`."""
    from gms_fast.training import loop

    def called(self, state, signals):
        if state.step == number:
            act()
        return step(self, state, signals)

    step = getattr(loop._Step.__call__, "before", loop._Step.__call__)
    called.before = step
    loop._Step.__call__ = called


def rank():
    return int(os.environ["RANK"])


if __name__ == "__main__":
    import torch._dynamo  # DistributedDataParallel would import it

    import gms_fast.training  # noqa: F401 - likewise

    torch.set_num_threads(1)  # threads do not outlive a fork
    where, ranks, *names = sys.argv[1:]
    print(json.dumps({name: _play(name, where, int(ranks)) for name in names}))
