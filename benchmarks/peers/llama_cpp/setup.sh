#!/bin/sh
# Make the environment in which llama.cpp is measured: sh benchmarks/peers/llama_cpp/setup.sh [FOLDER]
# It is compiled here, for this CPU: needs cmake, ninja and a C++ compiler, and takes about ten minutes on two idle cores.
set -eu
folder=${1:-.venv-llama}
only="-DMTMD_BUILD=ON -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF"
python3 -m venv "$folder"
sources=$(mktemp -d)
trap 'rm -rf "$sources"' EXIT
"$folder/bin/pip" download --quiet --no-deps --no-binary llama-cpp-python --dest "$sources" llama-cpp-python==0.3.36
tar -xf "$sources"/llama_cpp_python-*.tar.gz -C "$sources" --strip-components 1
# As released, LLaVA's class token comes behind the patches while positions and features are counted as if it came first
# (https://github.com/ggml-org/llama.cpp/issues/25814). The order costs no time, and without it features are another model's.
sed -i 's/ggml_concat(ctx0, inp, model.class_embedding, 1)/ggml_concat(ctx0, model.class_embedding, inp, 1)/' \
    "$sources/vendor/llama.cpp/tools/mtmd/models/llava.cpp"
grep -q 'ggml_concat(ctx0, model.class_embedding, inp, 1)' "$sources/vendor/llama.cpp/tools/mtmd/models/llava.cpp"
# Without the cache: pip would take a wheel of another build for this one.
CMAKE_GENERATOR=Ninja CMAKE_ARGS="-DGGML_NATIVE=ON $only" nice -n 15 \
    "$folder/bin/pip" install --quiet --no-cache-dir "$sources" gguf==0.19.0 safetensors tokenizers
"$folder/bin/python" -c 'import llama_cpp.mtmd_cpp; print("llama-cpp-python", llama_cpp.__version__)'
