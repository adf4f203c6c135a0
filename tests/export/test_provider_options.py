from deploykit.export.provider_options import Limits, provider_options

LIMITS = Limits(max_batch=16, max_length=64)


def test_a_tensorrt_profile_spans_every_batch_and_length():
    options = provider_options("tensorrt", "fp16", ["input_ids", "attention_mask"], LIMITS)
    assert options["trt_profile_min_shapes"] == "input_ids:1x1,attention_mask:1x1"
    assert options["trt_profile_opt_shapes"] == "input_ids:8x32,attention_mask:8x32"
    assert options["trt_profile_max_shapes"] == "input_ids:16x64,attention_mask:16x64"
    assert options["trt_fp16_enable"] == 1


def test_the_typical_shape_never_exceeds_the_largest():
    options = provider_options("tensorrt", "fp32", ["input_ids"], Limits(max_batch=2, max_length=10))
    assert options["trt_profile_opt_shapes"] == options["trt_profile_max_shapes"] == "input_ids:2x10"


def test_the_engine_cache_is_on_and_its_path_is_relative():
    options = provider_options("tensorrt", "fp32", ["input_ids"], LIMITS)
    assert options["trt_engine_cache_enable"] == 1
    assert not options["trt_engine_cache_path"].startswith("/")


def test_float32_on_cuda_is_not_rounded_to_tf32():
    assert provider_options("cuda", "fp32", ["input_ids"], LIMITS)["use_tf32"] == 0
    assert provider_options("cuda", "fp16", ["input_ids"], LIMITS)["use_tf32"] == 1


def test_the_cpu_needs_no_options():
    assert provider_options("cpu", "int8", ["input_ids"], LIMITS) == {}
