"""The operators of ONNX that a plain network may consist of: they compute numbers from numbers."""

FEWEST_OPSET, MOST_OPSET = 13, 30  # versions of ONNX's operators; before, sizes were written otherwise
MANY = 1000

# how few and how many inputs: which operators
_BY_INPUTS = {
    (0, 0): """
        Constant
    """,
    (1, 1): """
        Abs Acos ArgMax ArgMin Asin Atan AveragePool Cast Ceil Celu ConstantOfShape Cos DepthToSpace Elu Erf
        Exp Flatten Floor Gelu GlobalAveragePool GlobalMaxPool HardSigmoid HardSwish Identity IsInf IsNaN
        LRN LeakyRelu Log LogSoftmax LpNormalization MaxPool MeanVarianceNormalization Mish Neg Not
        Reciprocal Relu Round Selu Shape Sigmoid Sign Sin Size Softmax Softplus Softsign SpaceToDepth Sqrt
        Tan Tanh ThresholdedRelu Transpose
    """,
    (1, 2): """
        ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
        ReduceSumSquare Split Squeeze Trilu
    """,
    (1, 3): """
        Clip Dropout
    """,
    (1, 4): """
        Resize
    """,
    (1, MANY): """
        Concat Einsum Max Mean Min Sum
    """,
    (2, 2): """
        Add And CumSum Div Equal Expand Gather GatherElements GatherND Greater GreaterOrEqual GridSample
        Less LessOrEqual MatMul Mod Mul Or PRelu Pow RMSNormalization Reshape Sub Tile TopK
        Unsqueeze Xor
    """,
    (2, 3): """
        Conv ConvTranspose Gemm LayerNormalization
    """,
    (2, 4): """
        Pad
    """,
    (3, 3): """
        GroupNormalization InstanceNormalization OneHot Range ScatterElements ScatterND Where
    """,
    (3, 5): """
        Slice
    """,
    (5, 5): """
        BatchNormalization
    """,
}
OPERATORS = {name: counts for counts, names in _BY_INPUTS.items() for name in names.split()}

# which inputs give the size of what comes out, or how it is taken apart
SIZES = {
    "ConstantOfShape": (0,),
    "Range": (0, 1, 2),
    "OneHot": (1,),
    **dict.fromkeys(("Expand", "Reshape", "Squeeze", "Tile", "Unsqueeze", "Split", "TopK", "CumSum", "Trilu"), (1,)),
    **dict.fromkeys([name for name in OPERATORS if name.startswith("Reduce")], (1,)),
    **dict.fromkeys(("Clip", "Dropout"), (1, 2)),
    **dict.fromkeys(("Pad", "Resize"), (1, 2, 3)),
    "Slice": (1, 2, 3, 4),
}
# what ends a row of operators on single numbers, and what only moves them
ENDING = frozenset((
    "ArgMax", "ArgMin", "AveragePool", "Conv", "ConvTranspose", "CumSum", "Einsum", "Gemm", "GlobalAveragePool",
    "GlobalMaxPool", "GridSample", "InstanceNormalization", "GroupNormalization", "LayerNormalization", "LogSoftmax",
    "MatMul", "MaxPool", "Shape", "Size", "Softmax", "TopK", *(name for name in OPERATORS if name.startswith("Reduce")),
))  # fmt: skip
MOVING = frozenset((
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape",
    "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
))  # fmt: skip
