"""What TensorRT's ONNX parser says that it supports, as data.

Source: the operator matrix that the onnx-tensorrt project publishes as docs/operators.md, in the edition for TensorRT
10.15, which takes opsets 9 to 24. TensorRT 11 takes one opset more and drops no operator of an encoder; our exporter
writes opset 20, the last one that the first release of TensorRT 10 took. Copied by hand, not read from a running parser.
"""

from __future__ import annotations

TENSORRT_VERSION = "10.15"
OPSETS = range(9, 25)

_FLOAT = "FP32 FP16 BF16"
_NUMBER = f"{_FLOAT} INT32 INT64"
_ANY = f"{_NUMBER} BOOL"
_LITERAL = f"{_FLOAT} FP8 FP4 INT4 INT32 INT64 BOOL"
_REDUCE = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
)

_ROWS: tuple[tuple[str, str], ...] = (
    (
        _FLOAT,
        "Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos Cosh CumSum "
        "Dropout Einsum Elu Erf Exp Floor GRU Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool GroupNormalization "
        "HardSigmoid HardSwish Hardmax ImageScaler InstanceNormalization IsInf LRN LSTM LayerNormalization LeakyRelu Log "
        "LogSoftmax LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization PRelu ParametricSoftplus "
        "QuantizeLinear RMSNormalization RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Reciprocal "
        "Resize RotaryEmbedding Round ScaledTanh Scan Selu Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh "
        "ThresholdedRelu Upsample",
    ),
    (
        _NUMBER,
        "Abs Add ArgMax ArgMin DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less LessOrEqual Max Min Mod Mul Neg "
        f"Pad Pow Range {_REDUCE} Relu Scatter ScatterElements ScatterND Shrink Sign SpaceToDepth Sub Sum TopK",
    ),
    (
        _ANY,
        "Concat Expand EyeLike Flatten Gather GatherElements GatherND Identity If Loop OneHot Reshape ReverseSequence "
        "Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where",
    ),
    ("BOOL", "And Not Or Xor"),
    (
        "FP32 FP16",
        "BlackmanWindow DeformConv GridSample HammingWindow HannWindow Mish NonMaxSuppression NonZero RoiAlign",
    ),
    ("FP32", "STFT"),
    (f"{_FLOAT} INT8 FP8", "Attention"),
    (f"{_ANY} UINT8", "Cast CastLike"),
    (_LITERAL, "Constant ConstantOfShape"),
    ("INT8 FP8 FP4 INT4", "DequantizeLinear"),
    (f"{_NUMBER} INT8", "Gelu"),
    (f"{_NUMBER} FP8", "Mean"),
    (f"{_FLOAT} INT32", "TensorScatter"),
)

SUPPORTED: dict[str, frozenset[str]] = {
    name: frozenset(types.split()) for types, names in _ROWS for name in names.split()
}
"""Operator -> the element types that its row lists."""

_REFUSED = (
    "AffineGrid Bernoulli BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im Compress "
    "ConcatFromSequence ConvInteger DFT Det DynamicQuantizeLinear ImageDecoder MatMulInteger MaxRoiPool MaxUnpool "
    "MelWeightMatrix Multinomial NegativeLogLikelihoodLoss Optional OptionalGetElement OptionalHasElement QLinearConv "
    "QLinearMatMul RegexFullMatch SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength "
    "SequenceMap SoftmaxCrossEntropyLoss SplitToSequence StringConcat StringNormalizer StringSplit TfIdfVectorizer "
    "Unique"
)
UNSUPPORTED = frozenset(_REFUSED.split())
"""Operators that the matrix names and refuses; one that it does not name at all is refused as well."""

ALLOWED_VALUES: dict[tuple[str, str], frozenset[object]] = {
    # The matrix refuses a reduction for ScatterND only. Ours is stricter: with repeated indices ScatterElements adds in
    # no fixed order, and the design keeps every reduction of visual tokens to Gather and MatMul.
    ("ScatterElements", "reduction"): frozenset({"none"}),
    ("ScatterND", "reduction"): frozenset({"none"}),
    ("TopK", "sorted"): frozenset({1}),
    ("Resize", "mode"): frozenset({"nearest", "linear"}),
    ("Resize", "coordinate_transformation_mode"): frozenset(
        {"half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"}
    ),
    ("Resize", "nearest_mode"): frozenset({"floor", "ceil", "round_prefer_floor", "round_prefer_ceil"}),
    ("Resize", "keep_aspect_ratio_policy"): frozenset({"stretch"}),
    ("Resize", "antialias"): frozenset({0}),
    ("Attention", "softcap"): frozenset({0.0}),
    ("Attention", "qk_matmul_output_mode"): frozenset({0}),
    ("LSTM", "input_forget"): frozenset({0}),
    ("LSTM", "layout"): frozenset({0}),
}
"""(operator, attribute) -> values that are supported; an absent attribute has its default, which is."""

ONES_ONLY = frozenset({("AveragePool", "dilations"), ("LpPool", "dilations"), ("MaxPool", "dilations")})
FIRST_OUTPUT_ONLY = frozenset({"Attention", "LayerNormalization", "MaxPool"})
MOST_INPUTS = {"Attention": 4}
"""Attention takes Q, K, V and a mask: no cache inputs."""
FOUR_DIMENSIONS = {"Attention": (0, 1, 2, 3), "GridSample": (0,)}
ZERO_POINTS = {"QuantizeLinear": 2, "DequantizeLinear": 2}
"""The input whose values must all be zero."""
TOPK_LIMIT = 3840
"""K must be less than this."""

CONSTANT_INPUTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(_REDUCE.split(), (1,)),
    "CumSum": (1,), "OneHot": (1,), "STFT": (1, 2), "Squeeze": (1,), "TopK": (1,), "Unsqueeze": (1,),
}  # fmt: skip
"""Inputs that must be known when the engine is built.

The matrix lets TopK's K be computed; a count that is not a constant is what the design forbids in a graph.
"""

SHAPE_INPUTS: dict[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,), "Expand": (1,), "Pad": (1, 3), "Range": (0, 1, 2), "Reshape": (1,), "Resize": (2, 3),
    "Slice": (1, 2, 3, 4), "Split": (1,), "Tile": (1,), "Upsample": (1,),
}  # fmt: skip
"""Inputs whose values decide the output's shape: they must follow from constants and from shapes."""

SHAPED_BY_DATA = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})
"""Operators whose output has as many rows as the data says."""
CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
