"""SmolLM2's GGUF as a float32 transformers model, its tokenizer and its chat template.

Independent of the package on purpose: it reads the file with the gguf package, so that the figures
made with it can judge ours. Needs torch, transformers, gguf, tokenizers, jinja2.
"""

from __future__ import annotations

import gguf
import numpy as np
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class SmolLM2:
    """The dequantised model (float32, eager or SDPA attention on the CPU) and its text side."""

    def __init__(self, path: str) -> None:
        reader = gguf.GGUFReader(path)
        self.meta = {name: field.contents() for name, field in reader.fields.items()}
        self.tokenizer = build_tokenizer(self.meta)
        self.model = build_model(self.meta, reader)

    def encode(self, text: str) -> list[int]:
        """Token ids; no beginning-of-sequence token (the file says add_bos_token false)."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def render(self, messages: list[dict[str, str]]) -> str:
        """The chat template's text, ending where the answer begins."""
        settings = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        tokens = self.meta["tokenizer.ggml.tokens"]
        bos, eos = (tokens[self.meta[f"tokenizer.ggml.{n}_token_id"]] for n in ("bos", "eos"))
        template = settings.from_string(self.meta["tokenizer.chat_template"])
        return template.render(messages=messages, add_generation_prompt=True, bos_token=bos, eos_token=eos)

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> torch.Tensor:
        """Return (n, vocab) float32 logits of one full pass."""
        return self.model(torch.tensor([ids])).logits[0]

    @torch.inference_mode()
    def greedy(self, ids: list[int], max_new: int) -> tuple[list[int], list[float]]:
        """Return new ids (an end token, if met, is the last) and each step's top-1 to top-2 margin."""
        end = self.meta["tokenizer.ggml.eos_token_id"]
        answer: list[int] = []
        margins: list[float] = []
        step = self.model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
        while True:
            best = step.logits[0, -1].topk(2)
            answer.append(int(best.indices[0]))
            margins.append(float(best.values[0] - best.values[1]))
            if answer[-1] == end or len(answer) == max_new:
                return answer, margins
            step = self.model(
                torch.tensor([answer[-1:]]), past_key_values=step.past_key_values, use_cache=True
            )


def build_tokenizer(meta: dict) -> Tokenizer:
    """Byte-level BPE with single digits, as llama.cpp treats the pre-tokenizer 'smollm'."""
    tokens = meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = meta["tokenizer.ggml.token_type"]
    control = [t for t, kind in zip(tokens, kinds, strict=True) if kind == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in control])
    return tokenizer


def build_model(meta: dict, reader: gguf.GGUFReader) -> LlamaForCausalLM:
    """Return LlamaForCausalLM in float32 with the file's dequantised weights."""
    state = {}
    heads, kv_heads = meta["llama.attention.head_count"], meta["llama.attention.head_count_kv"]
    for tensor in reader.tensors:
        name, weight = hf_name(tensor.name), gguf.dequantize(tensor.data, tensor.tensor_type)
        if ".q_proj." in name or ".k_proj." in name:
            weight = split_halves(weight, heads if ".q_proj." in name else kv_heads)
        state[name] = torch.from_numpy(np.array(weight, np.float32))
    tied = "lm_head.weight" not in state
    config = LlamaConfig(
        vocab_size=len(meta["tokenizer.ggml.tokens"]),
        hidden_size=meta["llama.embedding_length"],
        intermediate_size=meta["llama.feed_forward_length"],
        num_hidden_layers=meta["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=meta["llama.context_length"],
        rms_norm_eps=meta["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": meta["llama.rope.freq_base"]},
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config).float().eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and missing == (["lm_head.weight"] if tied else []), (missing, unexpected)
    model.tie_weights()
    return model


def hf_name(name: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight"""
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}.{parts[3]}"
    return f"{_TOP_NAMES[parts[0]]}.{parts[1]}"


def split_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo the interleaving of rotary pairs that GGUF converters apply to Llama's q and k rows."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)
