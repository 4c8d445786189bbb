#!/bin/sh
# Make the environment in which llama.cpp is measured: sh benchmarks/peers/llama_cpp/setup.sh [FOLDER]
# It is compiled here, for this CPU: needs cmake, ninja and a C++ compiler, and takes about ten minutes on two cores.
set -eu
folder=${1:-.venv-llama}
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet gguf==0.19.0 safetensors numpy
CMAKE_GENERATOR=Ninja CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF ${CMAKE_ARGS:-}" \
    nice -n 15 "$folder/bin/pip" install --quiet --no-binary llama-cpp-python llama-cpp-python==0.3.36
"$folder/bin/python" -c 'import llama_cpp; print("llama-cpp-python", llama_cpp.__version__)'
