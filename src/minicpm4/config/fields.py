"""What becomes of every field of a config.json: read, harmless, or refused by name.

The tables hold all fields of the configurations of our classes in transformers 5.23 and 4.57, and those that
tools write beside them. A field that is in none of them may change the mathematics: it is refused, unless its
value says nothing (null, false, nought, empty) or it is plainly a label; then one warning names it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from minicpm4.config.strict import listed, shown
from minicpm4.errors import ConfigError

__all__ = [
    "CLASSES",
    "HARMLESS",
    "KEYS",
    "NEUTRAL",
    "OTHER_CLASSES",
    "READ",
    "SIZES",
    "SWITCHED_ON",
    "HfClass",
    "check_fields",
    "is_nothing",
    "refuse_fields",
    "without",
]

logger = logging.getLogger("minicpm4")


@dataclass(frozen=True, kw_only=True, slots=True)
class HfClass:
    """A class that config.json may name: our type for it, and what holds there where the file says nothing.

    ``window``: tokens that a layer reads; ``biases``: fields of projections' biases that the class has.
    """

    model_type: str
    architectures: tuple[str, ...]
    positions: int
    kv_heads: int | None = None
    head_dim: int | None = None
    window: int | None = None
    tied: bool = False
    biases: tuple[str, ...] = ()


# By model_type. The first architecture is the one that is written.
CLASSES: Mapping[str, HfClass] = {
    "minicpm": HfClass(
        model_type="minicpm",
        architectures=("MiniCPMForCausalLM", "MiniCPM4ForCausalLM"),
        positions=2048,
        tied=True,
        biases=("attention_bias",),
    ),
    "llama": HfClass(
        model_type="llama",
        architectures=("LlamaForCausalLM",),
        positions=2048,
        biases=("attention_bias", "mlp_bias"),
    ),
    "mistral": HfClass(
        model_type="llama", architectures=("MistralForCausalLM",), positions=131072, kv_heads=8, window=4096
    ),
    "qwen2": HfClass(
        model_type="qwen2", architectures=("Qwen2ForCausalLM",), positions=32768, kv_heads=32, window=4096
    ),
    "qwen3": HfClass(
        model_type="qwen3",
        architectures=("Qwen3ForCausalLM",),
        positions=32768,
        kv_heads=32,
        head_dim=128,
        window=4096,
        biases=("attention_bias",),
    ),
}

# What no causal language model is called; the first that is found counts. transformers' AutoModelForCausalLM
# does not look: it would run the layers and, where there is no head over tokens, invent one.
OTHER_CLASSES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile("Eagle|EAGLE|Medusa|Draft|Speculator|NextN"), "a draft layer or model beside another one"),
    (re.compile("Reward|Score|Critic"), "a reward model, which marks a text"),
    (re.compile("Classif"), "a classifier"),
    (re.compile("QuestionAnswering"), "a model that marks answers in a text"),
    (re.compile("Embed|Bidirec|BiModel|EncoderModel"), "an embedding model, or one that reads both ways"),
    (re.compile("For(?!CausalLM)[A-Z]"), "no causal language model"),
)
"""Pattern in the name of a class -> what such a class computes."""

SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
_ALL = (
    *SIZES,
    *("architectures", "model_type", "hidden_act", "rms_norm_eps", "tie_word_embeddings"),
    *("rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings"),
    *(
        "sparse_config",
        "mixer_types",
        "sliding_window",
        "use_sliding_window",
        "layer_types",
        "max_window_layers",
    ),
    *("bos_token_id", "eos_token_id", "output_bias"),
)
_SCALES = ("scale_emb", "scale_depth", "dim_model_base")

READ: Mapping[str, frozenset[str]] = {
    **{name: frozenset(CLASSES) for name in _ALL},
    **{name: frozenset({"minicpm"}) for name in _SCALES},
    **{
        name: frozenset(kind for kind, one in CLASSES.items() if name in one.biases)
        for name in ("attention_bias", "mlp_bias")
    },
}
"""Field -> model types of the classes for which ``ModelConfig.from_hf`` reads it, or looks whether it
fits."""

KEYS = tuple(READ)
"""What ``ModelConfig.from_hf`` reads of a config.json; the rest says nothing of the model's shape."""

_REASONS: Mapping[str, str] = {
    "only training and initialisation use it": """
        initializer_range attention_dropout use_mup mup_width rescale_every gradient_checkpointing
        _gradient_checkpointing router_aux_loss_coef output_router_logits tf_legacy_loss z_loss
        label_smoothing seed""",
    "how values are stored or computed, not which: tensors say their own types": """
        dtype torch_dtype use_bfloat16 attn_implementation _attn_implementation _attn_implementation_autoset
        _attn_implementation_internal _flash_attn_2_enabled use_flash_attention use_flash_attn flash_attn
        fused_attention use_flash_attn_2 use_flash_attention_2 _experts_implementation pretraining_tp
        chunk_size_feed_forward use_cache fp32 fp16 bf16 fuse_norm use_fused_rms_norm torchscript
        tie_encoder_decoder keys_to_ignore_at_inference""",
    "what a call returns beside logits": """
        return_dict return_dict_in_generate output_hidden_states output_attentions output_scores
        tie_last_hidden_states""",
    "classifiers have it, language models do not": """
        id2label label2id num_labels problem_type finetuning_task task_specific_params""",
    "of generate(): generation_config.json is read instead": """
        max_length min_length max_new_tokens do_sample early_stopping num_beams temperature top_k top_p min_p
        typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
        bad_words_ids num_return_sequences forced_bos_token_id forced_eos_token_id remove_invalid_values
        exponential_decay_length_penalty suppress_tokens begin_suppress_tokens num_beam_groups
        diversity_penalty generation_config""",
    "of the tokenizer, whose own files are read": """
        tokenizer_class prefix pad_token_id sep_token_id unk_token_id cls_token_id mask_token_id
        decoder_start_token_id pad_token bos_token eos_token add_bos_token add_eos_token model_max_length
        tokenizer_model_max_length chat_template padding_side""",
    "a label": """
        transformers_version _name_or_path name_or_path _commit_hash auto_map custom_pipelines model_name
        unsloth_version unsloth_fixed is_llama_config transformers.js_config license pipeline_tag library_name
        tags framework onnx neuron torch_version _from_model_config quantized_by is_decoder use_unsloth""",
    "how tokens find their experts, of which these classes have none": """
        aux_loss_alpha moe_layer_freq norm_topk_prob routed_scaling_factor scoring_func seq_aux n_group
        topk_group topk_method ep_size""",
    "a length that no class reads beside max_position_embeddings": """
        max_sequence_length max_seq_len max_seq_length seq_length seq_len n_ctx""",
    "draft heads read it, the model itself does not": "mup_denominator",
}
HARMLESS: Mapping[str, str] = {name: why for why, names in _REASONS.items() for name in names.split()}
"""Field -> why it may say what it likes."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention_bias": (),
    "mlp_bias": (),
    "scale_emb": (1,),
    "partial_rotary_factor": (1,),
    "rotary_pct": (1,),
    "rope_pct": (1,),
    "rope_interleaved": (),
    "activation": ("silu", "swish", "swiglu"),
    "is_encoder_decoder": (),
    "add_cross_attention": (),
    "cross_attention_hidden_size": (),
    "pruned_heads": (),
    "per_layer_config": (),
    "logits_scaling": (1,),
    "logit_scale": (1,),
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "attention_multiplier": (),
    "final_logit_softcapping": (),
    "attn_logit_softcapping": (),
    "num_local_experts": (),
    "num_experts": (),
    "num_experts_per_tok": (),
    **dict.fromkeys(("n_routed_experts", "n_shared_experts", "first_k_dense_replace"), ()),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "v_head_dim"), ()),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim"), ()),
    "use_mrope": (),
    "use_qk_norm": (),
    "qk_layernorm": (),
    "quantization_config": (),
    "quantization": (),
    "text_config": (),
    "vision_config": (),
    "num_nextn_predict_layers": (),
    "no_rope_layers": (),
    "alibi": (),
    "bias": (),
    "qkv_bias": (),
    "rope_type": ("default",),
}
"""Field that we do not obey -> values, beside those that say nothing, at which it does nothing; others are
refused."""

SWITCHED_ON = ("is_causal",)
"""Fields that classes look for and take for true where they are absent: false changes the mathematics."""

_DROPOUT = re.compile(r"[a-z_]*(dropout|dropout_prob|_pdrop|dropout_p|drop_rate)")
_LABEL = re.compile(
    r"_.*|(.*_)?(version|name|names|path|url|license|author|authors|date|time|timestamp|commit|revision"
    r"|description|comment|comments|note|notes|tool|tools|framework|library|id|source|hash|language|languages)"
)


def is_nothing(value: Any) -> bool:
    """Whether a value says nothing: null, false, nought, or an empty text, list or table."""
    return value is None or (isinstance(value, bool | int | float | str | list | tuple | dict) and not value)


def check_fields(raw: Mapping[str, Any], kind: str) -> None:
    """Look at every field of a config.json of the class ``CLASSES[kind]``. Raises ConfigError for those that
    are not known, by name; one warning names those that are not known and say nothing."""
    wrong, odd = [], []
    for name, value in raw.items():
        if kind in READ.get(name, ()) or name in HARMLESS or _DROPOUT.fullmatch(name):
            continue
        if name in _OWN.get(kind, ()):
            continue
        if name in SWITCHED_ON:
            wrong += [] if value is True or value is None else [name]
            continue
        known = name in READ or name in NEUTRAL
        if is_nothing(value) or _is_one_of(value, NEUTRAL.get(name, ())):
            odd += [] if known else [name]
        elif not known and isinstance(value, str) and _LABEL.fullmatch(name):
            odd.append(name)
        else:
            wrong.append(name)
    refuse_fields("config", CLASSES[kind].architectures[0], {name: raw[name] for name in wrong})
    if odd:
        logger.warning("config.json has fields that are not known, and ignored: %s", listed(odd))


# A class may have a field without looking at it: Qwen2's q, k and v always have biases, its o and MLP never.
_OWN: Mapping[str, tuple[str, ...]] = {"qwen2": ("attention_bias",)}


def refuse_fields(where: str, who: str, wrong: Mapping[str, Any], prefix: str = "") -> None:
    """Raise ConfigError that names the fields ``wrong`` and how to ignore them; nothing where there are
    none."""
    if not wrong:
        return
    named = [f"{prefix}{name} = {shown(value)}" for name, value in wrong.items()]
    flags = " ".join(f"--ignore-field {prefix}{name}" for name in list(wrong)[:3])
    raise ConfigError(
        f"{where} {listed(named)}: not a field of {who} as it runs here, and it may change every logit",
        f"if it means nothing to the model: {flags}",
    )


def without(raw: Mapping[str, Any], names: Collection[str], known: Collection[str] = ()) -> dict[str, Any]:
    """``raw`` with the fields ``names`` null, those of tables spelled ``table.field``, and those of ``known``
    though they are absent: then a class's own default does not count. One warning has names that are none of
    these."""
    found = {name: None if name in names else value for name, value in raw.items()}
    found |= dict.fromkeys(name for name in names if name in known)
    missed = [name for name in names if name not in found]
    for name, value in found.items():
        inner = {n.partition(".")[2] for n in names if n.startswith(f"{name}.")}
        if inner and isinstance(value, Mapping):
            found[name] = {key: None if key in inner else one for key, one in value.items()}
            missed = [n for n in missed if n not in {f"{name}.{key}" for key in value}]
    if missed:
        logger.warning("fields to be ignored that the configuration does not have: %s", listed(missed))
    return found


def _is_one_of(value: Any, known: tuple[Any, ...]) -> bool:
    return type(value) in (int, float, str) and value in known
