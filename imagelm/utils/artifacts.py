"""The name of every file and folder that the program writes, and where its templates are."""

from pathlib import Path

TEMPLATES_FOLDER = Path(__file__).parent.parent / "templates"

STATS_FILE = "stats.json"
BAD_ROWS_FILE = "bad_rows.jsonl"
TOKENIZER_FOLDER = "tokenizer"
MANIFEST_FILE = "complete.json"  # size and SHA-256 of each file that was written into a folder
DATA_STATE_FILE = "data_state.json"  # of a checkpoint
DIVERGED_FILE = "diverged.json"  # the rows of the batch that stopped a run
PLAN_FILE = "plan.json"  # what was decided about images that several processes encode
SHARD_FILE = "shard.json"  # what a shard of the input is, and what was counted
RAW_FOLDER = "raw"
RAW_ROWS_FILE = "rows.jsonl"
CLASS_NAMES_FILE = "class_names.json"
CODEC_FOLDER = "codec"
RUN_FILE = "run.json"
TRACKING_FOLDER = "tracking"  # what trackers such as TensorBoard write about a run
BEST_FOLDER, FINAL_FOLDER, REPORT_FOLDER = "best_model", "final_model", "report"
RESULTS_FILE = "eval_results.json"
# Records in a model's folder, so that they go wherever the folder goes.
HISTORY_FILE, TRAINING_ARGUMENTS_FILE = "log_history.json", "training_args.json"
TRAINING_IMAGES_FILE = "training_images.safetensors"  # which images the model has seen, as 64-bit digests
TOKENIZER_CONFIG = "tokenizer_config.json"
VOCABULARY_FILE = "vocab.json"
EXPORT_FORMATS = ("onnx", "openvino")  # each is also the name of the folder that holds an export
EXPORT_FILE = "imagelm.json"  # in such a folder: which weights were exported, and how
# The names by which transformers.js, OpenVINO's tools and others find a graph.
GRAPH_FILES = {
    ("onnx", "float32"): "model.onnx",
    ("onnx", "int8"): "model_quantized.onnx",
    ("openvino", "float32"): "openvino_model.xml",
    ("openvino", "int8"): "openvino_model.xml",
}
SELECTION_FILE = "selection.json"  # why this model is the best one
