"""Tiny checkpoints of families whose vision tower takes images of all sizes, as grids of patches."""

from dataclasses import replace
from typing import Any

from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil
from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import PaddleOCRVLImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.video_llama_3.image_processing_pil_video_llama_3 import VideoLlama3ImageProcessorPil

from tests.decoding.families.parts import TEXT, VISION, WIDTH, CheckpointParts, build_chat_template, build_chatml
from tests.decoding.families.tokenizer import build_tokenizer


def qwen(name: str, vision: dict[str, Any], text: dict[str, Any]) -> CheckpointParts:
    return CheckpointParts(
        {
            "vision_config": {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, **vision},
            "text_config": {
                **{key: value for key, value in TEXT.items() if key != "head_dim"},
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
                **text,
            },
        },
        build_tokenizer(
            ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"], eos="<|im_end|>"
        ),
        Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size={"shortest_edge": 256, "longest_edge": 2048}),
        name,
        chat_template=build_chatml("<|vision_start|><|image_pad|><|vision_end|>"),
    )


def qwen2_vl() -> CheckpointParts:
    vision = {"embed_dim": 16, "hidden_size": WIDTH, "mlp_ratio": 2}
    windows = {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 2}
    return qwen("Qwen2VLProcessor", vision, windows)


def qwen2_5_vl() -> CheckpointParts:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "out_hidden_size": WIDTH,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    return qwen("Qwen2_5_VLProcessor", vision, {})


def qwen3_vl() -> CheckpointParts:
    """Use a tower whose first two layers also feed the first two layers of the language model."""
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "out_hidden_size": WIDTH,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    return qwen("Qwen3VLProcessor", vision, {"head_dim": 8, "rope_parameters": rope})


def qwen3_vl_moe() -> CheckpointParts:
    parts = qwen3_vl()
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return replace(parts, config=parts.config | {"text_config": parts.config["text_config"] | experts})


def glm(name: str, text: dict[str, Any], seed: int = 0) -> CheckpointParts:
    vision = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "image_size": 32}
    regions = [f"<|{edge}_of_{kind}|>" for kind in ("image", "video") for edge in ("begin", "end")]
    processor_class = Glm46VImageProcessorPil if name == "Glm46VProcessor" else Glm4vImageProcessorPil
    return CheckpointParts(
        {
            "vision_config": {**vision, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": WIDTH},
            "text_config": {
                **TEXT,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e4,
                    "partial_rotary_factor": 1.0,
                    "mrope_section": [2, 1, 1],
                },
                **text,
            },
        },
        build_tokenizer(["[gMASK]<sop>", "<|user|>", "<|assistant|>", "<|image|>", "<|video|>", *regions]),
        processor_class(patch_size=4, merge_size=2, size={"shortest_edge": 512, "longest_edge": 4096}),
        name,
        chat_template=build_chat_template(
            "<|user|>\n",
            "<|assistant|>\n",
            "\n",
            "<|begin_of_image|><|image|><|end_of_image|>",
            start="[gMASK]<sop>",
        ),
        seed=seed,
    )


def glm4v() -> CheckpointParts:
    return glm("Glm4vProcessor", {})


def glm46v() -> CheckpointParts:
    return glm("Glm46VProcessor", {"model_type": "glm4v_text"})


def glm4v_moe() -> CheckpointParts:
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
    return glm("Glm4vProcessor", experts, seed=1)


def glm_ocr() -> CheckpointParts:
    return glm("Glm46VProcessor", {}, seed=2)


def video_llama_3() -> CheckpointParts:
    vision = {key: value for key, value in VISION.items() if key != "image_size"}
    return CheckpointParts(
        {"vision_config": {**vision, "patch_size": 4}, "text_config": {"model_type": "qwen2", **TEXT}},
        build_tokenizer(["<|im_start|>", "<|image_pad|>", "<|video_pad|>"], eos="<|im_end|>"),
        VideoLlama3ImageProcessorPil(patch_size=4, merge_size=2, size={"shortest_edge": 256, "longest_edge": 2048}),
        "VideoLlama3Processor",
        chat_template=build_chatml("<|image_pad|>"),
        seed=1,
    )


def lighton_ocr() -> CheckpointParts:
    """Use pictures of all sizes, padded to that of the largest."""
    named = {"image_token": "<|image_pad|>", "image_break_token": "<|vision_pad|>", "image_end_token": "<|vision_end|>"}
    return CheckpointParts(
        {
            "vision_config": {"model_type": "pixtral", **VISION, "head_dim": 8},
            "text_config": {"model_type": "qwen3", **TEXT},
            "tie_word_embeddings": False,
        },
        build_tokenizer(["<|im_start|>"], eos="<|im_end|>", named=named),
        PixtralImageProcessorPil(patch_size=16, size={"longest_edge": 160}),
        "LightOnOcrProcessor",
        {"patch_size": 8, "spatial_merge_size": 2},
        build_chatml("<|image_pad|>"),
    )


def exaone4_5() -> CheckpointParts:
    """Use windows narrower than the prompt in every second layer."""
    parts = qwen2_5_vl()
    windows = {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"] * 2}
    vision = parts.config["vision_config"] | {"num_key_value_heads": 1}
    config = parts.config | {"vision_config": vision, "text_config": {"model_type": "exaone4", **TEXT, **windows}}
    return replace(parts, config=config, processor="Exaone4_5_Processor", seed=8)


def paddleocr_vl() -> CheckpointParts:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    named = {"image_token": "<|IMAGE_PLACEHOLDER|>"}
    return CheckpointParts(
        {
            "vision_config": {**VISION, "patch_size": 4},
            "text_config": {**TEXT, "rope_parameters": rope},
            "tie_word_embeddings": False,
        },
        build_tokenizer(["<|IMAGE_START|>", "<|IMAGE_END|>"], bos="<|begin_of_sentence|>", named=named),
        PaddleOCRVLImageProcessorPil(patch_size=4, merge_size=2, size={"shortest_edge": 256, "longest_edge": 2048}),
        "PaddleOCRVLProcessor",
        chat_template=build_chat_template(
            "User: ",
            "Assistant: ",
            "\n",
            "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
            start="{{ bos_token }}",
        ),
    )


GRID_FAMILIES = (
    qwen2_vl,
    qwen2_5_vl,
    qwen3_vl,
    qwen3_vl_moe,
    glm4v,
    glm4v_moe,
    glm46v,
    glm_ocr,
    video_llama_3,
    lighton_ocr,
    exaone4_5,
    paddleocr_vl,
)
