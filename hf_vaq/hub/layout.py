"""Names of the files in the repository of a published model, and in the folder `packed/` of a run."""

CARD = "README.md"
CONFIG = "config.json"
IMAGE_PROCESSOR = "preprocessor_config.json"
REMOTE_CODE = "modeling_vaq.py"
RECIPE = "recipe.yaml"
RESULTS = "results.json"
TRAINING = "training.yaml"
"""What a trainer knows of the training, where there was no recipe."""
TRAINING_LOG = "training_log.json"
EVALUATION = "evaluation"
"""Folder with what `hf-vaq evaluate --output` wrote, one JSON file an evaluation."""
BENCHMARK = "benchmark.json"
FIGURES = "figures"
EXPORTS = {"onnx": "*.onnx", "openvino": "*.xml"}
"""Folders with exported forms of the model, and what the main file of each is called."""

OWN_NAMES = (CARD, CONFIG, IMAGE_PROCESSOR, REMOTE_CODE, RECIPE, RESULTS, TRAINING, TRAINING_LOG, BENCHMARK)
OWN_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
OWN_FOLDERS = (FIGURES, EVALUATION, *EXPORTS)
"""What a later commit removes where it does not bring it again: another model's shards, an old figure. Names and
weights are those at the top: a folder such as `last-checkpoint` is left whole."""

AUTO_MAP = {
    "AutoModelForImageClassification": "modeling_vaq.VaqForImageClassification",
    "AutoModel": "modeling_vaq.VaqModel",
}
"""What config.json says of `REMOTE_CODE`; read only by those who pass trust_remote_code=True."""
