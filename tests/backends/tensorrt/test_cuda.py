"""CUDA's driver through ctypes, with real C calls into a stand-in."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

from tests.backends.tensorrt.fake_cuda import FakeCuda
from vlm_edge.backends.tensorrt import cuda as driver
from vlm_edge.errors import BadInput, DoesNotFit

pytestmark = pytest.mark.usefixtures("cuda")


def test_the_gpu_is_described_without_a_context(cuda: FakeCuda) -> None:
    cuda.name, cuda.capability = "Orin", (8, 7)
    assert driver.describe_gpu() == ("Orin", "8.7")
    assert "cuDevicePrimaryCtxRetain" not in cuda.calls


def test_a_name_of_any_length_fits(cuda: FakeCuda) -> None:
    cuda.name = "x" * 300
    assert driver.describe_gpu()[0] == "x" * 255


def test_copies_are_done_when_waited_for() -> None:
    stream = driver.Stream()
    buffer = stream.allocate(40)
    sent, received = np.arange(10, dtype=np.float32), np.zeros(10, np.float32)
    stream.upload(buffer, sent)
    stream.download(received, buffer)
    assert not received.any()
    stream.wait()
    np.testing.assert_array_equal(received, sent)


def test_addresses_keep_all_their_bits(cuda: FakeCuda) -> None:
    buffer = driver.Stream().allocate(1)
    assert buffer.address in cuda.memory


def test_memory_is_freed_once_by_hand_or_with_the_object(cuda: FakeCuda) -> None:
    stream = driver.Stream()
    first, second = stream.allocate(8), stream.allocate(8)
    first.free()
    first.free()
    assert list(cuda.memory) == [second.address]
    del second
    gc.collect()
    assert cuda.memory == {}
    stream.close()
    stream.close()
    assert cuda.streams == {}


def test_another_thread_has_to_select_the_context() -> None:
    stream = driver.Stream()
    found: list[object] = []

    def work() -> None:
        try:
            stream.allocate(8)
        except BadInput as error:
            found.append(error.message)
        stream.make_current()
        found.append(stream.allocate(8).size_bytes)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == ["cuMemAlloc failed: status 201", 8]


def test_too_little_memory_is_told_before_anything_runs(cuda: FakeCuda) -> None:
    cuda.limit_bytes = 1000
    with pytest.raises(DoesNotFit, match=r"no 2\.0 KiB left") as caught:
        driver.Stream().allocate(2048)
    assert "--max-tiles" in caught.value.remedy


def test_no_device_and_a_failing_call_are_told_apart(cuda: FakeCuda) -> None:
    cuda.failing["cuStreamSynchronize"] = 719
    with pytest.raises(BadInput, match="cuStreamSynchronize failed: CUDA_ERROR_LAUNCH_FAILED"):
        driver.Stream().wait()
    cuda.failing["cuStreamSynchronize"] = 12345
    with pytest.raises(BadInput, match="status 12345"):
        driver.Stream().wait()
    cuda.devices = 0
    with pytest.raises(BadInput, match="no CUDA device is visible"):
        driver.describe_gpu()


def test_arrays_that_do_not_fit_are_not_copied(cuda: FakeCuda) -> None:
    stream = driver.Stream()
    buffer = stream.allocate(16)
    with pytest.raises(ValueError, match="does not go into"):
        stream.upload(buffer, np.zeros(5, np.float32))
    with pytest.raises(ValueError, match="does not go into"):
        stream.download(np.zeros(8, np.float32)[::2], buffer)
    assert cuda.streams[stream.handle] == []
