#!/bin/sh
# Make the environment in which OpenVINO is measured: sh benchmarks/peers/openvino/setup.sh [FOLDER] [--decoder]
# --decoder: with GenAI, and with what converts models to int4, which brings torch.
set -eu
folder=${1:-.venv-openvino}
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet openvino==2026.4.1
if [ "${2:-}" = --decoder ]; then
    "$folder/bin/pip" install --quiet torch==2.13.0 openvino==2026.4.1 nncf==3.4.0 optimum-intel==2.2.0 \
        openvino-genai==2026.4.1.0 openvino-tokenizers==2026.4.1.0
    # What optimum-intel asks for need not match a CPU build of torch, and transformers fails on one that does not.
    "$folder/bin/pip" uninstall --quiet --yes torchvision
fi
"$folder/bin/python" -c 'import openvino; print("openvino", openvino.__version__)'
