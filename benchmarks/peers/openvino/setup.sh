#!/bin/sh
# Make the environment in which OpenVINO is measured: sh benchmarks/peers/openvino/setup.sh [FOLDER]
set -eu
folder=${1:-.venv-openvino}
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet openvino==2026.4.1
"$folder/bin/python" -c 'import openvino; print("openvino", openvino.__version__)'
