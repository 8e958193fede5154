"""Trainings in several processes, started as a user starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def launch(*arguments: object, processes: int = 2) -> subprocess.Popen[str]:
    """`accelerate launch … -m recycle_onnx ARGUMENTS` on the CPU."""
    # --multi_gpu stands for torch's own launcher; `--cpu` would need mpirun
    options = ["--multi_gpu", "--num_processes", processes, "--num_machines", 1, "--mixed_precision", "no"]
    options += ["--dynamo_backend", "no", "--main_process_port", free_port()]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", "recycle_onnx", *arguments]
    return subprocess.Popen(
        list(map(str, command)),
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def own_processes(mark: object) -> list[int]:
    """Running processes whose command line holds `mark`."""
    import psutil

    processes = psutil.process_iter(["pid", "cmdline"])
    return [p.info["pid"] for p in processes if any(str(mark) in part for part in p.info["cmdline"] or [])]
