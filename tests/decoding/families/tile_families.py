"""Tiny checkpoints of families whose vision tower takes images or tiles of one size."""

from dataclasses import replace
from typing import Any

from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deepseek_vl.image_processing_pil_deepseek_vl import DeepseekVLImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tests.decoding.families.parts import (
    SQUARE,
    TEXT,
    VISION,
    WIDTH,
    CheckpointParts,
    build_chat_template,
    build_chatml,
)
from tests.decoding.families.tokenizer import build_tokenizer


def llava() -> CheckpointParts:
    return CheckpointParts(
        {
            "vision_config": {"model_type": "clip_vision_model", **VISION},
            "text_config": {"model_type": "llama", **TEXT},
        },
        build_tokenizer(["<image>"], bos="<s>"),
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE),
        "LlavaProcessor",
        {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        build_chat_template("USER: ", "ASSISTANT:", " ", "<image>\n"),
    )


def vipllava() -> CheckpointParts:
    """Use features of two layers of the tower."""
    parts = llava()
    return replace(parts, config=parts.config | {"vision_feature_layers": [-2, -1]})


def llava_next() -> CheckpointParts:
    """Use Mistral, all of whose layers have a window here that is narrower than an image."""
    grid = [[32, 64], [64, 32], [64, 64], [32, 96]]
    return CheckpointParts(
        {
            "vision_config": {"model_type": "clip_vision_model", **VISION},
            "text_config": {"model_type": "mistral", "sliding_window": 24, **TEXT},
            "image_grid_pinpoints": grid,
        },
        build_tokenizer(["<image>"], bos="<s>"),
        LlavaNextImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE, image_grid_pinpoints=grid),
        "LlavaNextProcessor",
        {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        build_chat_template("[INST] ", "", " [/INST]", "<image>\n"),
    )


def llava_next_video() -> CheckpointParts:
    parts = llava_next()
    tokenizer = build_tokenizer(["<image>", "<video>"], bos="<s>")
    text = {"model_type": "llama", **TEXT}
    return replace(
        parts, config=parts.config | {"text_config": text}, tokenizer=tokenizer, processor="LlavaNextVideoProcessor"
    )


def llava_onevision() -> CheckpointParts:
    grid = [[32, 64], [64, 32], [64, 64], [32, 96]]
    return CheckpointParts(
        {
            "vision_config": {"model_type": "siglip_vision_model", "vision_use_head": False, **VISION},
            "text_config": {"model_type": "qwen2", **TEXT},
            "image_grid_pinpoints": grid,
        },
        build_tokenizer(["<|im_start|>", "<image>", "<video>"], eos="<|im_end|>"),
        LlavaOnevisionImageProcessorPil(size=SQUARE, image_grid_pinpoints=grid),
        "LlavaOnevisionProcessor",
        {"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
        build_chatml("<image>\n"),
    )


def aya_vision() -> CheckpointParts:
    """Use Cohere's text model, whose attention and feed-forward are parallel, with windows narrower than the prompt."""
    windows = {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"] * 2}
    special = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE_GLOBAL"]
    tiles = [f"TILE_{number}" for number in range(1, 5)]
    return CheckpointParts(
        {
            "vision_config": {"model_type": "siglip_vision_model", "vision_use_head": False, **VISION},
            "text_config": {"model_type": "cohere2", **TEXT, **windows},
            "downsample_factor": 1,
            "tie_word_embeddings": False,
        },
        build_tokenizer([*special, *tiles, "<|USER|>", "<|BOT|>"], bos="<BOS>", eos="<|END|>"),
        GotOcr2ImageProcessorPil(size=SQUARE, crop_to_patches=True, max_patches=4),
        "AyaVisionProcessor",
        {"patch_size": 8, "img_size": 32},
        build_chat_template("<|USER|>", "<|BOT|>", "<|END|>", "<image>", start="{{ bos_token }}"),
    )


def instructblip() -> CheckpointParts:
    vision = {key: value for key, value in VISION.items() if key != "num_channels"}
    return CheckpointParts(
        {
            "vision_config": vision,
            "qformer_config": {
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "encoder_hidden_size": 16,
                "max_position_embeddings": 64,
                "vocab_size": 320,
            },
            "text_config": {"model_type": "llama", **TEXT},
            "num_query_tokens": 6,
        },
        build_tokenizer(["<image>"], bos="<s>"),
        BlipImageProcessorPil(size=SQUARE),
        "InstructBlipProcessor",
        {"qformer_tokenizer": build_tokenizer([], bos="[CLS]"), "num_query_tokens": 6},
    )


def build_tiled(model: str, image_processor: Any) -> CheckpointParts:
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    return CheckpointParts(
        {
            "vision_config": {"model_type": f"{model}_vision", **VISION},
            "text_config": {"model_type": "llama", **TEXT},
            "scale_factor": 2,
            "pad_token_id": 0,
        },
        build_tokenizer(
            ["<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>", "<|im_start|>", *tiles],
            eos="<|im_end|>",
        ),
        image_processor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        "Idefics3Processor" if model == "idefics3" else "SmolVLMProcessor",
        {"image_seq_len": 4},
        build_chat_template("User:", "Assistant:", "<end_of_utterance>\n", "<image>", start="<|im_start|>"),
    )


def idefics3() -> CheckpointParts:
    return build_tiled("idefics3", Idefics3ImageProcessorPil)


def smolvlm() -> CheckpointParts:
    return build_tiled("smolvlm", SmolVLMImageProcessorPil)


def gemma3() -> CheckpointParts:
    """Use windows narrower than the prompt in every second layer."""
    local = {"sliding_window": 12, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8}
    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    return CheckpointParts(
        {
            "vision_config": {"model_type": "siglip_vision_model", "vision_use_head": False, **VISION},
            "text_config": {"model_type": "gemma3_text", **TEXT, **local},
            "mm_tokens_per_image": 4,
            "tie_word_embeddings": False,
        },
        build_tokenizer(["<start_of_turn>", "<end_of_turn>"], bos="<bos>", eos="<eos>", named=named),
        Gemma3ImageProcessorPil(size=SQUARE),
        "Gemma3Processor",
        {"image_seq_length": 4},
        build_chat_template(
            "<start_of_turn>user\n",
            "<start_of_turn>model\n",
            "<end_of_turn>\n",
            "<start_of_image>",
            start="{{ bos_token }}",
        ),
        seed=3,
    )


def internvl() -> CheckpointParts:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    return CheckpointParts(
        {
            "vision_config": {**VISION, "image_size": [32, 32], "patch_size": [8, 8]},
            "text_config": {"model_type": "qwen2", **TEXT},
            "image_seq_length": 4,
            "tie_word_embeddings": False,
        },
        build_tokenizer(["<|im_start|>"], eos="<|im_end|>", named=named),
        GotOcr2ImageProcessorPil(size=SQUARE, crop_to_patches=True, max_patches=4),
        "InternVLProcessor",
        {"image_seq_length": 4},
        build_chat_template("<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n", "<IMG_CONTEXT>\n"),
    )


def qianfan_ocr() -> CheckpointParts:
    parts = internvl()
    config = parts.config | {"text_config": {"model_type": "qwen3", **TEXT}, "downsample_ratio": 0.5}
    template = build_chatml("<image>\n")
    return replace(parts, config=config, processor="QianfanOCRProcessor", chat_template=template)


def deepseek_vl() -> CheckpointParts:
    return CheckpointParts(
        {
            "vision_config": {"model_type": "siglip_vision_model", "vision_use_head": False, **VISION},
            "text_config": {"model_type": "llama", **TEXT},
            "tie_word_embeddings": False,
        },
        build_tokenizer([], bos="<s>", named={"image_token": "<image_placeholder>"}),
        DeepseekVLImageProcessorPil(size=SQUARE, min_size=8),
        "DeepseekVLProcessor",
        {"num_image_tokens": 16},
        build_chat_template("User: ", "Assistant:", "\n\n", "<image_placeholder>", start="{{ bos_token }}"),
    )


def janus() -> CheckpointParts:
    named = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    vision = {key: value for key, value in VISION.items() if key != "intermediate_size"}
    drawing = {"base_channels": 32, "channel_multiplier": [1, 1], "num_embeddings": 16, "num_res_blocks": 1}
    drawing |= {"projection_dim": WIDTH, "image_token_embed_dim": WIDTH, "latent_channels": 32}
    return CheckpointParts(
        {
            "vision_config": {**vision, "projection_dim": WIDTH, "num_image_tokens": 16},
            "vq_config": drawing,
            "text_config": {"model_type": "llama", **TEXT},
            "tie_word_embeddings": False,
        },
        build_tokenizer([], bos="<s>", named=named),
        JanusImageProcessorPil(size=SQUARE, min_size=8),
        "JanusProcessor",
        {"num_image_tokens": 16},
        build_chat_template("<|User|>: ", "<|Assistant|>:", "\n\n", "<image_placeholder>\n", start="{{ bos_token }}"),
    )


def idefics2() -> CheckpointParts:
    """Use pictures of all sizes up to the tower's, padded to that of the largest."""
    perceiver = {"resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2, "resampler_head_dim": 8}
    return CheckpointParts(
        {
            "vision_config": VISION,
            "perceiver_config": {**perceiver, "num_key_value_heads": 1, "hidden_size": WIDTH},
            "text_config": {"model_type": "mistral", "sliding_window": None, **TEXT},
        },
        build_tokenizer(["<fake_token_around_image>", "<image>", "<end_of_utterance>"], bos="<s>"),
        Idefics2ImageProcessorPil(size={"shortest_edge": 16, "longest_edge": 32}, do_image_splitting=False),
        "Idefics2Processor",
        {"image_seq_len": 4},
        build_chat_template("User:", "Assistant:", "<end_of_utterance>\n", "<image>"),
    )


TILE_FAMILIES = (
    llava,
    vipllava,
    llava_next,
    llava_next_video,
    llava_onevision,
    aya_vision,
    instructblip,
    idefics2,
    idefics3,
    smolvlm,
    gemma3,
    internvl,
    qianfan_ocr,
    deepseek_vl,
    janus,
)
