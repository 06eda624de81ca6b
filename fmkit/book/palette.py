"""Give each experiment of this book its words and its colour, the same in all figures.

Records and cells name an experiment by a short key, such as ``simclr``. NAMES has the
words that figures show in its place, and COLOURS a colour for these words.
"""

NAMES = {
    # data
    "animals": "animals",
    "cifar10": "CIFAR-10",
    "cifar10-jpeg": "CIFAR-10",
    # encoders of images
    "pixels": "raw pixels",
    "untrained": "untrained",
    "statistics": "batch norm statistics only",
    "scratch": "from scratch",
    "autoencoder": "plain autoencoder",
    "reconstruction": "masked",
    "masked": "masked",
    "supervised": "supervised",
    "simclr": "NT-Xent",
    "simclr-head": "NT-Xent, after the head",
    "imagenet": "ImageNet network",
    "imagenet-untrained": "ImageNet network, untrained",
    # contrastive losses
    "notes": "loss of the notes",
    "nt_xent": "NT-Xent",
    "supcon": "SupCon",
    "alignment": "alignment",
    # encoders of texts
    "words": "bag of words",
    "decoder": "our decoder",
    "minilm": "MiniLM",
    "smollm2": "SmolLM2",
    # adaptations
    "probe": "probe",
    "knn-centred": "kNN, centred features",
    "finetune": "finetuned",
    "lp-ft": "LP-FT",
    "last-block": "last block",
    "lora": "LoRA",
    "all": "all weights",
    # shifts of images
    "rotate": "rotated",
    "thicken": "thicker",
    "invert": "inverted",
}
NAMES_OF_TEXTS = NAMES | {"masked": "our masked model"}
COLOURS = {
    # encoders of images
    "raw pixels": "#7f7f7f",
    "untrained": "#e69f00",
    "from scratch": "#000000",
    "plain autoencoder": "#cc79a7",
    "masked": "#0072b2",
    "NT-Xent": "#d55e00",
    "NT-Xent, after the head": "#cc79a7",
    "loss of the notes": "#56b4e9",
    "ImageNet network": "#009e73",
    # encoders of texts
    "bag of words": "#7f7f7f",
    "our decoder": "#0072b2",
    "our masked model": "#d55e00",
    "MiniLM": "#009e73",
    "SmolLM2": "#cc79a7",
    # optimizers
    "SGD": "#56b4e9",
    "Adam": "#0072b2",
    # adaptations
    "probe": "#0072b2",
    "finetuned": "#d55e00",
    "LP-FT": "#cc79a7",
    "last block": "#009e73",
    "LoRA": "#e69f00",
    "all weights": "#d55e00",
}

# Ten classes, told apart with any colour vision (Okabe and Ito; Tol): none near white
ANIMAL_COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f"),
    *("#882255", "#999933", "#6f5fc4"),
)
