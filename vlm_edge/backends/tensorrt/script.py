"""The same build as a shell script around trtexec, for a machine that has TensorRT and no vlm-edge."""

from __future__ import annotations

import shlex
from pathlib import Path

from vlm_edge.backends.tensorrt.provider import named_shape
from vlm_edge.backends.tensorrt.settings import BuildSettings
from vlm_edge.errors import BadInput
from vlm_edge.units import MIB

# trtexec lies outside PATH where Debian packages and JetPack put it.
_TEMPLATE = """\
#!/bin/sh
# Builds a TensorRT engine with trtexec, TensorRT 10 or newer, on the machine that will run it.
# Usage: sh SCRIPT [GRAPH.onnx [ENGINE]]; the timing cache is kept beside the engine.
set -eu

graph={graph}
if [ $# -ge 1 ]; then graph=$1; fi
engine=${{graph%.onnx}}.engine
if [ $# -ge 2 ]; then engine=$2; fi

if command -v trtexec >/dev/null 2>&1; then
    trtexec=trtexec
elif [ -x /usr/src/tensorrt/bin/trtexec ]; then
    trtexec=/usr/src/tensorrt/bin/trtexec
else
    echo 'error: trtexec was not found' >&2
    echo 'fix: install TensorRT (on a Jetson: sudo apt install nvidia-jetpack) and add its bin folder to PATH' >&2
    exit 2
fi
if [ ! -f "$graph" ]; then
    echo "error: there is no $graph" >&2
    echo 'fix: name the graph: sh SCRIPT GRAPH.onnx' >&2
    exit 2
fi

unfinished=$engine.unfinished.$$
trap 'rm -f -- "$unfinished"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
"$trtexec" \\
{flags}
mv -f -- "$unfinished" "$engine"
echo "$engine"
"""


def emit_script(graph: Path, settings: BuildSettings) -> str:
    """A POSIX shell script that builds `graph` as `build_engine` does; it takes other paths as arguments.

    The engine appears under its name only when trtexec has succeeded; exit codes are trtexec's, or 2 where trtexec or the
    graph is missing. `--stronglyTyped` is needed by TensorRT 10 and accepted by 11.  Raises BadInput for a path with a
    line break or a zero byte.
    """
    if {"\n", "\r", "\0"} & {*str(graph)}:
        raise BadInput(f"{str(graph)!r} cannot stand in a script", remedy="rename the graph")
    least, best, largest = (shlex.quote(named_shape(settings.input_name, shape)) for shape in settings.shapes())
    flags = [
        '--onnx="$graph"',
        "--stronglyTyped",
        *(() if settings.tf32 else ("--noTF32",)),
        f"--minShapes={least}",
        f"--optShapes={best}",
        f"--maxShapes={largest}",
        # In whole MiB, which every version reads alike; rounded down, since the plan's figure is a bound.
        f"--memPoolSize=workspace:{settings.workspace_bytes // MIB}",
        '--timingCacheFile="$engine.timing"',
        '--saveEngine="$unfinished"',
        "--skipInference",
    ]
    return _TEMPLATE.format(graph=shlex.quote(str(graph)), flags=" \\\n".join(f"    {flag}" for flag in flags))
