"""The models that ``built_models.py`` builds, by library."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import inspect
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from transformers_configs import SIZES, shrink

LARGEST = 150_000_000  # parameters of a model that is built

Build = Callable[[], nn.Module]


class Case(NamedTuple):
    """A model to build.

    Attributes:
        library: the model's library.
        name: of the case.
        prepare: returns the name of the model, and the function that builds it.
    """

    library: str
    name: str
    prepare: Callable[[], tuple[str, Build]]


def _import(module: str) -> Any:
    return importlib.import_module(module)


def parameters(model: nn.Module) -> list[nn.Parameter]:
    """Parameters with a shape."""
    return [one for one in model.parameters() if not nn.parameter.is_lazy(one)]


def count(build: Build) -> int:
    """How many elements the parameters of a model have."""
    return sum(one.numel() for one in parameters(build()))


def count_on_meta(build: Build) -> int:
    """The same, without memory."""
    with torch.device("meta"):
        return count(build)


# Cases from libraries that list their models.


def _timm() -> Iterator[Case]:
    """One model of every module file, the smallest."""
    for module in _import("timm").list_modules():
        yield Case("timm", module, functools.partial(_smallest_of_timm, module))


def _smallest_of_timm(module: str) -> tuple[str, Build]:
    timm = _import("timm")
    names = timm.list_models(module=module)
    counts: dict[str, int] = {}
    for name in names:
        with contextlib.suppress(Exception):
            counts[name] = count_on_meta(functools.partial(timm.create_model, name))
    name = min(counts, key=lambda one: counts[one]) if counts else names[0]
    changes = {"depth": 2} if counts.get(name, 0) > LARGEST else {}
    return name, functools.partial(timm.create_model, name, **changes)


def _torchvision() -> Iterator[Case]:
    models = _import("torchvision.models")
    for name in models.list_models():
        builder = models.get_model_builder(name)
        without = {
            argument: None
            for argument in inspect.signature(builder).parameters
            if argument in ("weights", "weights_backbone")
        }
        build = functools.partial(builder, **without)
        yield Case("torchvision", name, functools.partial(_as_it_is, name, build))


def _as_it_is(name: str, build: Build) -> tuple[str, Build]:
    return name, build


# Sizes that shrinking alone leaves too large or inconsistent.
_UNET = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4}
_CROSS_UNET = {**_UNET, "cross_attention_dim": 32, "attention_head_dim": 4}
_DIFFUSERS: Mapping[str, Mapping[str, Any]] = {
    "UNet2DModel": {
        **_UNET,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    },
    "UNet2DConditionModel": {
        **_CROSS_UNET,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    },
    "ControlNetModel": {
        **_CROSS_UNET,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "conditioning_embedding_out_channels": (16, 32),
    },
    "UNet3DConditionModel": {
        **_CROSS_UNET,
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    },
    "AutoencoderKL": {
        "block_out_channels": (16, 32),
        "norm_num_groups": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    },
    "VQModel": {"block_out_channels": (16,), "norm_num_groups": 4},
}


def _diffusers() -> Iterator[Case]:
    """Every model, made small by the names of its arguments."""
    diffusers = _import("diffusers")
    for name in _import("diffusers.models")._import_structure.values():
        for one in name:
            made = getattr(diffusers, one, None)
            if inspect.isclass(made) and issubclass(made, nn.Module):
                yield Case("diffusers", one, functools.partial(_small_of_diffusers, one))


def _small_of_diffusers(name: str) -> tuple[str, Build]:
    made = getattr(_import("diffusers"), name)
    parameters = inspect.signature(made.__init__).parameters.values()
    fields = {
        one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty
    }
    fields |= {one: 4 for one in ("norm_num_groups", "resnet_groups") if fields.get(one)}
    if name in _DIFFUSERS:
        return name, functools.partial(made, **{**fields, **_DIFFUSERS[name]})
    heads = {one: 4 for one in fields if one.endswith("attention_heads") and fields[one]}
    builds = []
    for changes, size in itertools.product((heads, {}), SIZES):
        small = {
            one: tuple(value) if isinstance(fields[one], tuple) else value
            for one, value in shrink({**fields, **changes}, size).items()
        }
        builds.append(functools.partial(made, **small))
    return name, _first_that_builds(builds)


def _first_that_builds(builds: Sequence[Build]) -> Build:
    """The first, and smallest, that can be built on the meta device, or in memory if none can."""
    errors: list[Exception] = []
    for attempt in (count_on_meta, count):
        for build in builds:
            try:
                attempt(build)
            except Exception as error:
                errors.append(error)
            else:
                return build
        if not any("meta" in str(error) for error in errors):
            break
    raise errors[0]


def _transformers() -> Iterator[Case]:
    """Every class of every mapping of ``AutoModel`` and similar classes, with its first config."""
    auto = _import("transformers.models.auto.modeling_auto")
    keys: dict[str, str] = {}
    for mapping in dir(auto):
        if not re.fullmatch(r"MODEL_.*MAPPING_NAMES", mapping):
            continue
        for key, classes in getattr(auto, mapping).items():
            for name in (classes,) if isinstance(classes, str) else classes:
                keys.setdefault(name, key)
    for name in sorted(keys):
        yield Case(
            "transformers", name, functools.partial(_small_of_transformers, name, keys[name])
        )


def _small_of_transformers(name: str, key: str) -> tuple[str, Build]:
    transformers = _import("transformers")
    kind = _import("transformers.models.auto.configuration_auto").CONFIG_MAPPING[key]
    made = getattr(transformers, name)
    fields = kind().to_dict()
    if "prediction_length" in fields:
        fields["prediction_length"] = 8

    def build_of(small: Mapping[str, Any]) -> nn.Module:
        model: nn.Module = made(kind.from_dict(copy.deepcopy(small)))
        return model

    builds: list[Build] = [functools.partial(build_of, shrink(fields, size)) for size in SIZES]
    builds.append(lambda: made(kind()))
    return name, _first_that_builds(builds)


# Cases chosen by hand from other libraries.


def _tiny_llama(**changes: Any) -> Any:
    transformers = _import("transformers")
    config = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config, **changes))


_QV = {"target_modules": ["q_proj", "v_proj"]}
_PROMPT = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
_PEFT: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "LoRA": ("LoraConfig", _QV),
    "LoRA, every layer": ("LoraConfig", {"target_modules": "all-linear"}),
    "LoRA, gaussian": ("LoraConfig", {**_QV, "init_lora_weights": "gaussian"}),
    "LoRA, random": ("LoraConfig", {**_QV, "init_lora_weights": False}),
    "LoRA, orthogonal": ("LoraConfig", {**_QV, "init_lora_weights": "orthogonal"}),
    "LoRA, PiSSA": ("LoraConfig", {**_QV, "init_lora_weights": "pissa"}),
    "LoRA, PiSSA by iteration": ("LoraConfig", {**_QV, "init_lora_weights": "pissa_niter_4"}),
    "LoRA, OLoRA": ("LoraConfig", {**_QV, "init_lora_weights": "olora"}),
    "LoRA, DoRA": ("LoraConfig", {**_QV, "use_dora": True}),
    "LoRA, rank-stabilised": ("LoraConfig", {**_QV, "use_rslora": True}),
    "LoRA, embeddings": ("LoraConfig", {"target_modules": ["embed_tokens", "q_proj"]}),
    "LoRA, head kept": ("LoraConfig", {**_QV, "modules_to_save": ["lm_head"]}),
    "LoRA, trainable tokens": ("LoraConfig", {**_QV, "trainable_token_indices": [1, 2]}),
    "LoRA, biases": ("LoraConfig", {**_QV, "bias": "all", "lora_bias": True}),
    "LoRA, layers repeated": ("LoraConfig", {**_QV, "layer_replication": [(0, 2), (1, 2)]}),
    "AdaLoRA": ("AdaLoraConfig", {**_QV, "total_step": 10}),
    "AdaptionPrompt": (
        "AdaptionPromptConfig",
        {"adapter_len": 4, "adapter_layers": 2, "task_type": "CAUSAL_LM"},
    ),
    "BOFT": ("BOFTConfig", _QV),
    "C3A": ("C3AConfig", {**_QV, "block_size": 16}),
    "CPT": ("CPTConfig", {"task_type": "CAUSAL_LM", "cpt_token_ids": [0, 1, 2]}),
    "DeLoRA": ("DeloraConfig", _QV),
    "FourierFT": ("FourierFTConfig", {**_QV, "n_frequency": 100}),
    "GraLoRA": ("GraloraConfig", {**_QV, "r": 8, "gralora_k": 2}),
    "HRA": ("HRAConfig", _QV),
    "IA3": ("IA3Config", {"target_modules": ["q_proj"], "feedforward_modules": []}),
    "LayerNorm": ("LNTuningConfig", {"target_modules": ["input_layernorm"]}),
    "LoHa": ("LoHaConfig", _QV),
    "LoKr": ("LoKrConfig", _QV),
    "MiSS": ("MissConfig", _QV),
    "Multitask prompt tuning": ("MultitaskPromptTuningConfig", {**_PROMPT, "num_tasks": 2}),
    "OFT": ("OFTConfig", {**_QV, "r": 0, "oft_block_size": 8}),
    "Poly": ("PolyConfig", {**_QV, "n_tasks": 2, "n_skills": 2, "n_splits": 2}),
    "Prefix tuning": ("PrefixTuningConfig", _PROMPT),
    "Prefix tuning, projected": (
        "PrefixTuningConfig",
        {**_PROMPT, "prefix_projection": True, "encoder_hidden_size": 32},
    ),
    "Prompt encoder": ("PromptEncoderConfig", {**_PROMPT, "encoder_hidden_size": 32}),
    "Prompt encoder, LSTM": (
        "PromptEncoderConfig",
        {**_PROMPT, "encoder_hidden_size": 32, "encoder_reparameterization_type": "LSTM"},
    ),
    "Prompt tuning": ("PromptTuningConfig", _PROMPT),
    "Prompt tuning, sampled": (
        "PromptTuningConfig",
        {**_PROMPT, "prompt_tuning_init": "SAMPLE_VOCAB"},
    ),
    "RandLoRA": ("RandLoraConfig", _QV),
    "RoAd": ("RoadConfig", {"target_modules": ["q_proj"]}),
    "SHiRA": ("ShiraConfig", {**_QV, "r": 4}),
    "Trainable tokens": ("TrainableTokensConfig", {"token_indices": [1, 2, 3]}),
    "VB-LoRA": ("VBLoRAConfig", {**_QV, "vector_length": 16, "num_vectors": 32}),
    "VeRA": ("VeraConfig", {"target_modules": ["q_proj"], "r": 8}),
    "WaveFT": ("WaveFTConfig", {**_QV, "n_frequency": 100}),
}


def _adapted(kind: str, fields: Mapping[str, Any]) -> nn.Module:
    peft = _import("peft")
    model: nn.Module = peft.get_peft_model(
        _tiny_llama(), getattr(peft, kind)(**copy.deepcopy(dict(fields)))
    )
    return model


def _peft() -> Mapping[str, Build]:
    return {
        name: functools.partial(_adapted, kind, fields) for name, (kind, fields) in _PEFT.items()
    }


def _open_clip() -> Mapping[str, Build]:
    def of(kind: str, vision: Mapping[str, Any], text: Mapping[str, Any], **rest: Any) -> Build:
        def build() -> nn.Module:
            library = _import("open_clip.model" if kind != "CoCa" else "open_clip.coca_model")
            words = {"context_length": 16, "vocab_size": 512, "width": 64, "heads": 2, "layers": 2}
            sight = {"layers": 2, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 32}
            model: nn.Module = getattr(library, kind)(
                64, vision_cfg={**sight, **vision}, text_cfg={**words, **text}, **rest
            )
            return model

        return build

    decoder = {"context_length": 16, "vocab_size": 512, "width": 64, "heads": 2, "layers": 2}
    return {
        "CLIP": of("CLIP", {}, {}),
        "CLIP, ResNet": of("CLIP", {"layers": (1, 1, 1, 1)}, {}),
        "CLIP, timm": of(
            "CLIP",
            {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear"},
            {},
        ),
        "CLIP, layer scale": of("CLIP", {"ls_init_value": 0.1, "patch_dropout": 0.1}, {}),
        "CustomTextCLIP": of("CustomTextCLIP", {}, {}),
        "SigLIP": of(
            "CustomTextCLIP",
            {"attentional_pool": True, "attn_pooler_heads": 2},
            {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
            init_logit_bias=-10.0,
        ),
        "CoCa": of(
            "CoCa",
            {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
            {"embed_cls": True, "output_tokens": True},
            multimodal_cfg=decoder,
        ),
    }  # fmt: skip


def _segmentation() -> Mapping[str, Build]:
    def of(kind: str, encoder: str) -> Build:
        def build() -> nn.Module:
            library = _import("segmentation_models_pytorch")
            model: nn.Module = getattr(library, kind)(encoder, encoder_weights=None)
            return model

        return build

    kinds = (
        "Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN", "DeepLabV3",
        "DeepLabV3Plus", "UPerNet", "Segformer",
    )  # fmt: skip
    encoders = (
        "mit_b0", "mobilenet_v2", "efficientnet-b0", "densenet121", "vgg11_bn", "dpn68", "xception",
        "timm-efficientnet-b0", "tu-convnext_atto", "mobileone_s0", "resnext50_32x4d",
    )  # fmt: skip
    built = {kind: of(kind, "resnet18") for kind in kinds}
    built |= {f"Unet, {encoder}": of("Unet", encoder) for encoder in encoders}
    return built | {"DPT": of("DPT", "tu-vit_tiny_patch16_224")}


def _monai() -> Mapping[str, Build]:
    def of(kind: str, *arguments: Any, **named: Any) -> Build:
        def build() -> nn.Module:
            model: nn.Module = getattr(_import("monai.networks.nets"), kind)(*arguments, **named)
            return model

        return build

    two = {"channels": (8, 16), "strides": (2, 2)}
    plane = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    diffusion = {
        "spatial_dims": 2, "in_channels": 1, "channels": (8, 16), "attention_levels": (False, True),
        "num_res_blocks": 1, "norm_num_groups": 4,
    }  # fmt: skip
    return {
        "AHNet": of("AHNet", spatial_dims=2, upsample_mode="bilinear"),
        "AttentionUnet": of("AttentionUnet", **plane, **two),
        "AutoEncoder": of("AutoEncoder", **plane, **two),
        "AutoencoderKL": of("AutoencoderKL", **diffusion, latent_channels=3),
        "BasicUNet": of("BasicUNet", spatial_dims=2),
        "BasicUNetPlusPlus": of("BasicUNetPlusPlus", spatial_dims=2),
        "Classifier": of("Classifier", in_shape=(1, 16, 16), classes=3, **two),
        "ControlNet": of("ControlNet", **diffusion, num_head_channels=8),
        "Critic": of("Critic", in_shape=(1, 16, 16), **two),
        "DenseNet121": of("DenseNet121", **plane),
        "DiffusionModelUNet": of(
            "DiffusionModelUNet", **diffusion, out_channels=1, num_head_channels=8
        ),
        "Discriminator": of("Discriminator", in_shape=(1, 16, 16), **two),
        "DynUNet": of("DynUNet", **plane, kernel_size=(3, 3, 3), strides=(1, 2, 2),
                      upsample_kernel_size=(2, 2)),
        "EfficientNetBN": of("EfficientNetBN", "efficientnet-b0", pretrained=False),
        "FlexibleUNet": of("FlexibleUNet", 3, 2, "efficientnet-b0"),
        "FullyConnectedNet": of("FullyConnectedNet", 8, 2, [16, 16]),
        "Generator": of("Generator", latent_shape=(8,), start_shape=(8, 4, 4), **two),
        "GlobalNet": of("GlobalNet", image_size=(16, 16), spatial_dims=2, in_channels=2,
                        num_channel_initial=8, depth=2),
        "HighResNet": of("HighResNet", spatial_dims=2),
        "HoVerNet": of("HoVerNet"),
        "MaskedAutoEncoderViT": of("MaskedAutoEncoderViT", 1, 16, 4, hidden_size=32, mlp_dim=64,
                                   num_layers=2, num_heads=4, decoder_hidden_size=16,
                                   decoder_mlp_dim=32, decoder_num_layers=1, spatial_dims=2,
                                   decoder_num_heads=4),
        "MedNeXt": of("MedNeXt", spatial_dims=2, init_filters=8),
        "MILModel": of("MILModel", 2, mil_mode="att_trans", pretrained=False),
        "PatchDiscriminator": of("PatchDiscriminator", spatial_dims=2, channels=8, in_channels=1),
        "Quicknat": of("Quicknat"),
        "Regressor": of("Regressor", in_shape=(1, 16, 16), out_shape=(2,), **two),
        "RegUNet": of("RegUNet", spatial_dims=2, in_channels=2, num_channel_initial=8, depth=2),
        "resnet18": of("resnet18", spatial_dims=2),
        "SegResNet": of("SegResNet", spatial_dims=2),
        "SegResNetDS": of("SegResNetDS", spatial_dims=2, init_filters=8),
        "SEResNet50": of("SEResNet50", spatial_dims=2, in_channels=1, num_classes=2),
        "SPADENet": of("SPADENet", 2, 1, 1, 3, [32, 32], [8, 16], is_vae=False),
        "SwinUNETR": of("SwinUNETR", 1, 2, feature_size=12, spatial_dims=2),
        "UNet": of("UNet", **plane, **two),
        "UNETR": of("UNETR", 1, 2, (32, 32), feature_size=8, hidden_size=32, mlp_dim=64,
                    num_heads=4, spatial_dims=2),
        "VarAutoEncoder": of("VarAutoEncoder", 2, (1, 16, 16), 1, 4, **two),
        "ViT": of("ViT", 1, (16, 16), (4, 4), hidden_size=32, mlp_dim=64, num_layers=2, num_heads=4,
                  spatial_dims=2, classification=True),
        "VNet": of("VNet", spatial_dims=2),
        "VQVAE": of("VQVAE", 2, 1, 1, channels=(8, 16), num_res_channels=(8, 16), num_embeddings=16,
                    embedding_dim=8, downsample_parameters=((2, 4, 1, 1),) * 2,
                    upsample_parameters=((2, 4, 1, 1, 0),) * 2),
        "VoxelMorphUNet": of("VoxelMorphUNet", 2, 2, 8, (8, 8, 8, 8), (8, 8)),
    }  # fmt: skip


def _speechbrain() -> Mapping[str, Build]:
    def of(file: str, kind: str, *arguments: Any, **named: Any) -> Build:
        def build() -> nn.Module:
            made = getattr(_import(f"speechbrain.lobes.models.{file}"), kind)
            model: nn.Module = made(*arguments, **named)
            return model

        return build

    small = {"d_model": 32, "nhead": 4, "num_encoder_layers": 2, "d_ffn": 64}
    gan = ([[1, 3], [1, 3]], [3, 5], [4, 4], 16, [2, 2])
    return {
        "Cnn14": of("Cnn14", "Cnn14", 64, 128),
        "Conformer": of("transformer.TransformerASR", "TransformerASR", 50, 40, **small,
                        num_decoder_layers=1, encoder_module="conformer", normalize_before=True,
                        attention_type="RelPosMHAXL"),
        "ContextNet": of("ContextNet", "ContextNet", (2, 20, 40), out_channels=32,
                         conv_channels=[16] * 3, strides=[1, 2, 1], num_blocks=3, num_layers=2),
        "ConvTasNet": of("conv_tasnet", "MaskNet", 16, 16, 32, 3, 2, 2, 2),
        "CRDNN": of("CRDNN", "CRDNN", input_shape=[2, 20, 40], cnn_channels=[8, 8], rnn_neurons=16,
                    dnn_neurons=16, rnn_layers=2),
        "DiffWave": of("DiffWave", "DiffWave", 8, 4, 16, 2, 10),
        "ECAPA-TDNN": of("ECAPA_TDNN", "ECAPA_TDNN", 40, channels=[32, 32, 32, 32, 64],
                         lin_neurons=16, attention_channels=16),
        "EnhanceResnet": of("EnhanceResnet", "EnhanceResnet", channel_counts=[8, 8],
                            dense_nodes=16),
        "ESPnetVGG": of("ESPnetVGG", "ESPnetVGG", [2, 20, 40], cnn_channels=[8, 8], rnn_neurons=16,
                        projection_neurons=16),
        "HiFi-GAN": of("HifiGAN", "HifiganGenerator", 8, 1, "2", *gan),
        "HiFi-GAN, discriminator": of("HifiGAN", "MultiPeriodDiscriminator"),
        "MetricGAN": of("MetricGAN", "MetricDiscriminator"),
        "MetricGAN, LSTM": of("MetricGAN", "EnhancementGenerator", input_size=32, hidden_size=16),
        "ResNet": of("ResNet", "ResNet", input_size=40, channels=[8, 8, 8, 8], block_sizes=[1] * 4,
                     lin_neurons=16),
        "RNNLM": of("RNNLM", "RNNLM", 50, embedding_dim=16, rnn_neurons=16, dnn_neurons=16),
        "SEGAN": of("segan_model", "Generator", 3, False, 1.0),
        "SepFormer": of("dual_path", "SepformerWrapper", encoder_in_nchannels=1, intra_dffn=32,
                        encoder_out_nchannels=32, masknet_numlayers=1, intra_numlayers=1,
                        inter_numlayers=1, intra_nhead=4, inter_nhead=4, inter_dffn=32),
        "Tacotron 2": of("Tacotron2", "Tacotron2", symbols_embedding_dim=32, attention_rnn_dim=32,
                         encoder_embedding_dim=32, attention_dim=16, decoder_rnn_dim=32,
                         prenet_dim=16, postnet_embedding_dim=32),
        "TransformerASR": of("transformer.TransformerASR", "TransformerASR", 50, 40, **small,
                             num_decoder_layers=1),
        "TransformerLM": of("transformer.TransformerLM", "TransformerLM", 50, **small,
                            num_decoder_layers=0),
        "VanillaNN": of("VanillaNN", "VanillaNN", (2, 20, 40), dnn_neurons=16),
        "x-vector": of("Xvector", "Xvector", tdnn_channels=[16] * 5, lin_neurons=16),
    }  # fmt: skip


def _x_transformers() -> Mapping[str, Build]:
    def of(**layers: Any) -> Build:
        def build() -> nn.Module:
            library = _import("x_transformers")
            model: nn.Module = library.TransformerWrapper(
                num_tokens=512,
                max_seq_len=64,
                attn_layers=library.Decoder(dim=64, depth=2, heads=4, **layers),
            )
            return model

        return build

    def encoder_decoder() -> nn.Module:
        model: nn.Module = _import("x_transformers").XTransformer(
            dim=64, enc_num_tokens=256, enc_depth=2, enc_heads=4, enc_max_seq_len=32,
            dec_num_tokens=256, dec_depth=2, dec_heads=4, dec_max_seq_len=32,
            tie_token_emb=True,
        )  # fmt: skip
        return model

    def vision() -> nn.Module:
        library = _import("x_transformers")
        model: nn.Module = library.ViTransformerWrapper(
            image_size=32, patch_size=8, num_classes=10,
            attn_layers=library.Encoder(dim=64, depth=2, heads=4),
        )  # fmt: skip
        return model

    def continuous() -> nn.Module:
        library = _import("x_transformers")
        model: nn.Module = library.ContinuousTransformerWrapper(
            dim_in=8, dim_out=8, max_seq_len=64,
            attn_layers=library.Encoder(dim=64, depth=2, heads=4, rel_pos_bias=True),
        )  # fmt: skip
        return model

    return {
        "decoder": of(),
        "ALiBi": of(alibi_pos_bias=True, rotary_pos_emb=False),
        "rotary, GLU": of(rotary_pos_emb=True, ff_glu=True, ff_swish=True),
        "memory": of(attn_num_mem_kv=4, attn_qk_norm=True, attn_pre_talking_heads=True),
        "sandwich norm": of(sandwich_norm=True, layer_dropout=0.1),
        "gates": of(gate_residual=True, attn_gate_values=True, scale_residual=True),
        "RMSNorm, zeros": of(use_rmsnorm=True, zero_init_branch_output=True),
        "hyper-connections": of(num_residual_streams=2),
        "dynamic position bias": of(dynamic_pos_bias=True),
        "encoder and decoder": encoder_decoder,
        "vision": vision,
        "continuous": continuous,
    }


def _geometric() -> Mapping[str, Build]:
    def of(kind: str, *arguments: Any, module: str = "models", **named: Any) -> Build:
        def build() -> nn.Module:
            made = getattr(_import(f"torch_geometric.nn.{module}"), kind)
            model: nn.Module = made(*arguments, **named)
            return model

        return build

    degrees: dict[str, Any] = {
        "aggregators": ["mean", "max"],
        "scalers": ["identity", "attenuation"],
    }
    return {
        "AttentiveFP": of("AttentiveFP", 8, 16, 4, 4, 2, 2),
        "DimeNet": of("DimeNet", 16, 1, 2, 4, 3, 4),
        "DimeNet++": of("DimeNetPlusPlus", 16, 1, 2, 8, 8, 16, 3, 4),
        "EdgeCNN": of("EdgeCNN", 8, 16, 2),
        "GAT": of("GAT", 8, 16, 2, heads=4, v2=True),
        "GCN": of("GCN", 8, 16, 3, norm="batch_norm", jk="lstm"),
        "GCN, lazy": of("GCN", -1, 16, 2),
        "GIN": of("GIN", 8, 16, 2),
        "GNNFF": of("GNNFF", 16, 16, 2),
        "GraphSAGE": of("GraphSAGE", 8, 16, 2),
        "GraphUNet": of("GraphUNet", 8, 16, 4, 2),
        "LightGCN": of("LightGCN", 64, 16, 2),
        "LINKX": of("LINKX", 32, 8, 16, 4, 2),
        "MLP": of("MLP", [8, 16, 4]),
        "NeuralFingerprint": of("NeuralFingerprint", 8, 16, 4, 2),
        "PMLP": of("PMLP", 8, 16, 4, 2),
        "PNA": of("PNA", 8, 16, 2, **degrees, deg=torch.tensor([0, 4, 8])),
        "Polynormer": of("Polynormer", 8, 16, 4),
        "RECT_L": of("RECT_L", 8, 16),
        "RENet": of("RENet", 16, 4, 16, 4),
        "RGCN": of("RGCNConv", 8, 16, 4, num_bases=2, module="conv"),
        "SchNet": of("SchNet", 16, 16, 2),
        "SGFormer": of("SGFormer", 8, 16, 4),
        "SignedGCN": of("SignedGCN", 8, 16, 2),
        "Transformer": of("TransformerConv", 8, 16, 2, module="conv"),
        "ViSNet": of("ViSNet", num_layers=2, hidden_channels=16, num_heads=4, num_rbf=8),
    }


def _stable_baselines() -> Mapping[str, Build]:
    def of(algorithm: str, policy: str, *, image: bool, discrete: bool, **named: Any) -> Build:
        def build() -> nn.Module:
            spaces = _import("gymnasium.spaces")
            seen = (
                spaces.Box(0, 255, (3, 64, 64), dtype=np.uint8)
                if image
                else spaces.Box(-1.0, 1.0, (8,))
            )
            done = spaces.Discrete(4) if discrete else spaces.Box(-1.0, 1.0, (2,))
            made = getattr(_import(f"stable_baselines3.{algorithm}"), policy)
            model: nn.Module = made(seen, done, lambda _: 3e-4, **named)
            return model

        return build

    return {
        "PPO": of("ppo", "MlpPolicy", image=False, discrete=True),
        "PPO, continuous": of("ppo", "MlpPolicy", image=False, discrete=False),
        "PPO, images": of("ppo", "CnnPolicy", image=True, discrete=True),
        "A2C, exploring": of("a2c", "MlpPolicy", image=False, discrete=False, use_sde=True),
        "A2C, not orthogonal": of("a2c", "CnnPolicy", image=True, discrete=True, ortho_init=False),
        "DQN": of("dqn", "MlpPolicy", image=False, discrete=True),
        "DQN, images": of("dqn", "CnnPolicy", image=True, discrete=True),
        "SAC": of("sac", "MlpPolicy", image=False, discrete=False),
        "SAC, images": of("sac", "CnnPolicy", image=True, discrete=False),
        "TD3": of("td3", "MlpPolicy", image=False, discrete=False),
    }


def _litgpt() -> Mapping[str, Build]:
    def of(file: str = "model", apply: bool = True, **fields: Any) -> Build:
        def build() -> nn.Module:
            library = _import(f"litgpt.{file}")
            small = {
                "block_size": 64,
                "vocab_size": 500,
                "padding_multiple": 64,
                "n_layer": 2,
                "n_head": 4,
                "n_embd": 64,
            }
            model: nn.Module = library.GPT(library.Config(**{**small, **fields}))
            return model.apply(model._init_weights) if apply else model  # type: ignore[arg-type]

        return build

    llama: dict[str, Any] = {
        "bias": False,
        "norm_class_name": "RMSNorm",
        "mlp_class_name": "LLaMAMLP",
        "intermediate_size": 96,
        "rotary_percentage": 1.0,
        "parallel_residual": False,
        "n_query_groups": 2,
    }
    adapters: dict[str, Any] = {
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_query": True,
        "lora_value": True,
        "lora_head": True,
    }
    return {
        "Pythia": of(),
        "Pythia, as built": of(apply=False),
        "Llama": of(**llama),
        "Gemma": of(**{**llama, "mlp_class_name": "GemmaMLP"}, scale_embeddings=True),
        "mixture of experts": of(
            **{**llama, "mlp_class_name": "LLaMAMoE"}, n_expert=4, n_expert_per_token=2
        ),
        "LoRA": of("lora", apply=False, **llama, **adapters),
        "adapter": of("adapter", apply=False, **llama, adapter_start_layer=0),
        "adapter v2": of("adapter_v2", apply=False, **llama, adapter_start_layer=0),
    }


def _olmo() -> Mapping[str, Build]:
    def of(kind: str, **fields: Any) -> Build:
        def build() -> nn.Module:
            config = _import("olmo_core.nn.transformer").TransformerConfig
            made = getattr(config, kind)(vocab_size=512, **fields)
            if fields.get("init_method"):
                made.init_method = fields["init_method"]
            model: nn.Module = made.build(init_device="cpu")
            model.init_weights(device=torch.device("cpu"))  # type: ignore[operator]
            return model

        return build

    tiny = {"d_model": 64, "n_layers": 2, "n_heads": 4}
    experts = {"num_experts": 4, "top_k": 2, "expert_hidden_size": 32}
    return {
        "OLMo 2": of("olmo2_1M"),
        "OLMo 3": of("olmo3_1M"),
        "Llama-like": of("llama_like", **tiny),
        "nGPT": of("ngpt_like", **tiny),
        "mixture of experts": of("llama_like_moe", **tiny, **experts),
        "Gemma 3": of("gemma3_like", **tiny, n_kv_heads=2, head_dim=16, hidden_size=96),
    }


def _megatron() -> Mapping[str, Build]:
    def of(kind: str, **fields: Any) -> Build:
        def build() -> nn.Module:
            _one_rank_of_megatron()
            transformer = _import("megatron.core.transformer.transformer_config")
            specs = _import("megatron.core.models.gpt.gpt_layer_specs")
            config = transformer.TransformerConfig(
                num_layers=2, hidden_size=64, num_attention_heads=4, use_cpu_initialization=True,
                **fields,
            )  # fmt: skip
            experts = fields.get("num_moe_experts")
            arguments = (config, specs.get_gpt_layer_local_spec(num_experts=experts), 512, 64)
            if kind == "BERT":
                bert = _import("megatron.core.models.bert.bert_layer_specs")
                made = _import("megatron.core.models.bert.bert_model").BertModel
                encoder: nn.Module = made(config, 0, bert.bert_layer_local_spec, 512, 64)
                return encoder
            tied = kind == "GPT, tied"
            made = _import("megatron.core.models.gpt.gpt_model").GPTModel
            model: nn.Module = made(*arguments, share_embeddings_and_output_weights=tied)
            return model

        return build

    return {
        "GPT": of("GPT"),
        "GPT, tied": of("GPT, tied"),
        "GPT, gated": of("GPT", gated_linear_unit=True, add_bias_linear=False, num_query_groups=2),
        "mixture of experts": of("GPT", num_moe_experts=4, add_bias_linear=False),
        "BERT": of("BERT"),
    }


def _one_rank_of_megatron() -> None:
    """Megatron-Core's process groups, with this process alone."""
    distributed: Any = torch.distributed
    if not distributed.is_initialized():
        store = distributed.HashStore()
        distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        _import("megatron.core.parallel_state").initialize_model_parallel()


def _chosen(library: str, builds: Callable[[], Mapping[str, Build]]) -> Iterator[Case]:
    for name, build in builds().items():
        yield Case(library, name, functools.partial(_as_it_is, name, build))


class Library(NamedTuple):
    """A library that has models.

    Attributes:
        package: its name for ``pip install``.
        module: its name for ``import``.
        cases: its models.
        preload: modules that most of them import.
    """

    package: str
    module: str
    cases: Callable[[], Iterable[Case]]
    preload: Sequence[str] = ()


_FOR_TRANSFORMERS = (
    "transformers.modeling_utils", "transformers.modeling_layers", "transformers.loss.loss_utils",
    "transformers.modeling_outputs", "transformers.masking_utils", "transformers.models.llama",
)  # fmt: skip
_CHOSEN: Mapping[str, tuple[str, str, Callable[[], Mapping[str, Build]]]] = {
    "PEFT": ("peft", "peft", _peft),
    "open_clip": ("open_clip_torch", "open_clip", _open_clip),
    "segmentation_models_pytorch": (
        "segmentation_models_pytorch", "segmentation_models_pytorch", _segmentation,
    ),
    "MONAI": ("monai", "monai", _monai),
    "speechbrain": ("speechbrain", "speechbrain", _speechbrain),
    "x-transformers": ("x-transformers", "x_transformers", _x_transformers),
    "PyTorch Geometric": ("torch_geometric", "torch_geometric", _geometric),
    "Stable-Baselines3": ("stable_baselines3", "stable_baselines3", _stable_baselines),
    "LitGPT": ("litgpt", "litgpt", _litgpt),
    "OLMo-core": ("ai2-olmo-core", "olmo_core", _olmo),
    "Megatron-Core": ("megatron-core", "megatron.core", _megatron),
}  # fmt: skip
LIBRARIES: Mapping[str, Library] = {
    **{
        library: Library(package, module, functools.partial(_chosen, library, builds))
        for library, (package, module, builds) in _CHOSEN.items()
    },
    "diffusers": Library("diffusers", "diffusers", _diffusers, ("diffusers.models",)),
    "torchvision": Library("torchvision", "torchvision", _torchvision, ("torchvision",)),
    "timm": Library("timm", "timm", _timm, ("timm",)),
    "transformers": Library("transformers", "transformers", _transformers, _FOR_TRANSFORMERS),
}
