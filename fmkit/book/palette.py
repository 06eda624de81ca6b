"""Give each experiment of this book its colour, the same in all figures."""

COLOURS = {
    # encoders of images
    "pixels": "#7f7f7f",
    "untrained": "#e69f00",
    "scratch": "#000000",
    "reconstruction": "#0072b2",
    "simclr": "#d55e00",
    "simclr-head": "#cc79a7",
    "imagenet": "#009e73",
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
    "finetune": "#d55e00",
    "lp-ft": "#cc79a7",
    "last block": "#009e73",
    "LoRA": "#e69f00",
    "all weights": "#d55e00",
    "LP-FT": "#cc79a7",
}

# Ten classes, told apart with any colour vision (Okabe and Ito; Tol): none near white
ANIMAL_COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f"),
    *("#882255", "#999933", "#6f5fc4"),
)
