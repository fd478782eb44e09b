"""Names and versions in a graph, shared by those who write it and those who read it."""

OPSET = 18  # of the operators of ONNX; what torch's exporter is written for
ML_OPSET = 3  # of the operators of classic machine learning, for scikit-learn's models
INPUT = "images"
FORMAT = "1"
METADATA_PREFIX = "sktl."
