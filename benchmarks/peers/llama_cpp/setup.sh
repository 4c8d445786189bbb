#!/bin/sh
# Make the environment in which llama.cpp is measured: sh benchmarks/peers/llama_cpp/setup.sh [FOLDER]
# It is compiled here, for this CPU: needs cmake, ninja and a C++ compiler, and takes about ten minutes on two idle cores.
set -eu
folder=${1:-.venv-llama}
only="-DMTMD_BUILD=OFF -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF"
python3 -m venv "$folder"
CMAKE_GENERATOR=Ninja CMAKE_ARGS="-DGGML_NATIVE=ON $only" nice -n 15 \
    "$folder/bin/pip" install --quiet --no-binary llama-cpp-python llama-cpp-python==0.3.36 gguf==0.19.0 safetensors
"$folder/bin/python" -c 'import llama_cpp; print("llama-cpp-python", llama_cpp.__version__)'
