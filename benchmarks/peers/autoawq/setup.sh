#!/usr/bin/env bash
# Makes the environment of the AutoAWQ comparison: bash benchmarks/peers/autoawq/setup.sh FOLDER
# AutoAWQ 0.2.9, its last release, does not import with transformers 4.57 or newer, so it cannot share an environment with
# this project. It is installed without its dependencies, one of which (a kernel for GPUs) has no CPU build.
set -euo pipefail
folder=${1:?name a folder for the environment}
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 setuptools wheel
"$folder/bin/pip" install --quiet transformers==4.56.2 accelerate datasets zstandard safetensors
"$folder/bin/pip" install --quiet --no-deps --no-build-isolation autoawq==0.2.9
"$folder/bin/python" -W ignore -c 'import awq, torch, transformers; print("autoawq", awq.__version__, "torch", torch.__version__, "transformers", transformers.__version__)'
