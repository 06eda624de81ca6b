"""Small random Llamas, as files that others write: a GGUF file, or a folder."""

import json
from dataclasses import replace
from pathlib import Path

import gguf
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from fmkit.models.pretrained import llama_parts
from fmkit.models.transformer import Transformer, TransformerConfig

SMALL = TransformerConfig(
    vocabulary=262,
    context=16,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    hidden=64,
    rope_base=500.0,
    norm_epsilon=1e-3,
    tied=False,
)
MERGES = ["h e", "l l", "Ġ Ġ", "1 2"]
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
PIECES = [
    "<|endoftext|>",
    "<|im_start|>",
    *BYTES,
    *(m.replace(" ", "") for m in MERGES),
]
SAID = {
    "llama.context_length": 16,
    "llama.embedding_length": 32,
    "llama.block_count": 2,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.feed_forward_length": 64,
    "llama.rope.freq_base": 500.0,
    "llama.attention.layer_norm_rms_epsilon": 1e-3,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": PIECES,
    "tokenizer.ggml.token_type": [3, 3] + [1] * 260,
    "tokenizer.ggml.merges": MERGES,
}
# Entries without which a file can be read
SYMBOLS = {
    "tokenizer.ggml.bos_token_id": 1,  # the start of a turn, as SmolLM2's files have it
    "tokenizer.ggml.eos_token_id": 0,
    "tokenizer.ggml.eot_token_id": 1,
}


def random_model(**changes):
    torch.manual_seed(0)
    model = Transformer(replace(SMALL, **changes))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn_like(weight) / 4 + ("norm" in name))
    return model.eval()


def as_llama_cpp_names_it(model):
    """Tensors as llama.cpp's convert_hf_to_gguf.py makes them of a Llama's."""
    config, weights = model.config, model.state_dict()
    found = {
        "token_embd.weight": weights["embedding.weight"],
        "output_norm.weight": weights["norm.weight"],
    }
    if not config.tied:
        found["output.weight"] = weights["unembedding.weight"]
    w = config.head_width

    def permuted(rows, heads):
        return rows.view(heads, 2, w // 2, -1).transpose(1, 2).reshape(rows.shape)

    for i in range(config.layers):
        theirs, ours = f"blk.{i}", f"blocks.{i}"
        qkv = weights[f"{ours}.attention.qkv.weight"]
        q, k, v = qkv.split([n * w for n in (config.heads, *[config.kv_heads] * 2)])
        gate, up = weights[f"{ours}.mlp.gate_up.weight"].chunk(2)
        found |= {
            f"{theirs}.attn_norm.weight": weights[f"{ours}.norm_1.weight"],
            f"{theirs}.attn_q.weight": permuted(q, config.heads),
            f"{theirs}.attn_k.weight": permuted(k, config.kv_heads),
            f"{theirs}.attn_v.weight": v,
            f"{theirs}.attn_output.weight": weights[f"{ours}.attention.out.weight"],
            f"{theirs}.ffn_norm.weight": weights[f"{ours}.norm_2.weight"],
            f"{theirs}.ffn_gate.weight": gate,
            f"{theirs}.ffn_up.weight": up,
            f"{theirs}.ffn_down.weight": weights[f"{ours}.mlp.down.weight"],
        }
    return {name: tensor.contiguous().numpy() for name, tensor in found.items()}


def write(path, tensors, *, kind=Kind.F32, architecture="llama", **changes):
    """A GGUF file by the library's writer; `changes` with None leave something out."""
    writer = gguf.GGUFWriter(path, architecture)
    said = (
        SAID
        | SYMBOLS
        | {name.replace("__", "."): value for name, value in changes.items()}
    )
    for name, value in said.items():
        if isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif value is not None:
            writer.add_uint32(name, value)
    for name, tensor in tensors.items():
        of = Kind.F32 if tensor.ndim == 1 else kind  # as llama.cpp does
        writer.add_tensor(name, gguf.quants.quantize(tensor, of), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_folder(folder, model, *, shards=1):
    """A folder as transformers saves it, with its weights in so many files."""
    config, folder = model.config, Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "model_type": "llama",
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.context,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "intermediate_size": config.hidden,
        "rope_theta": config.rope_base,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(about), "utf-8")
    ends = {"eos_token_id": [0, 1]}
    (folder / "generation_config.json").write_text(json.dumps(ends), "utf-8")
    ids = {piece: i for i, piece in enumerate(PIECES)}
    merges = [tuple(merge.split(" ")) for merge in MERGES]
    tokenizer = Tokenizer(models.BPE(ids, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    tensors = {}
    for name, weight in model.state_dict().items():
        parts = llama_parts(name, config)
        rows = weight.split([shape[0] for shape in parts.values()])
        tensors |= dict(zip(parts, map(torch.clone, rows), strict=True))
    places = {
        name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors"
        for i, name in enumerate(tensors)
    }
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    for file in {*places.values()}:
        held = {name: t for name, t in tensors.items() if places[name] == file}
        save_file(held, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}), "utf-8")
    return folder


def peer_of(kind, **shape):
    """A small random model of transformers, in eval mode; `shape` is its config's."""
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    shape = sizes | heads | {"initializer_range": 0.15} | shape
    config = getattr(transformers, f"{kind}Config")(**shape)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():  # scales of 1 and biases of 0 hide mistakes
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(torch.randn_like(weight) / 4)
    return model
