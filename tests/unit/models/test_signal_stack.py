"""Ctrl-C after OpenVINO has freed networks must be a KeyboardInterrupt, not a segmentation fault."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="alternate stacks are Linux's here"
)

SCRIPT = """
import contextlib, gc, signal, sys, threading
import numpy as np
import openvino as ov
from openvino import opset13 as ops
from fewstep.models import signal_stack

signal.signal(signal.SIGINT, signal.default_int_handler)

def network(core):
    x = ops.parameter([1, 8], np.float32)
    return core.compile_model(ov.Model([ops.relu(x)], [x]), "CPU")

with signal_stack.kept() if sys.argv[1] == "kept" else contextlib.nullcontext():
    core = ov.Core()
    held = [core, network(core)]
    del core
    thread = threading.Thread(target=lambda: (held.clear(), gc.collect()))
    thread.start()
    thread.join()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_interrupt_after_networks_were_freed():
    command = [sys.executable, "-X", "faulthandler", "-c", SCRIPT, "kept"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
