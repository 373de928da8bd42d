"""What the configs beside weights say: followed, or refused by file and key."""

import json

import peers
import pytest
from folders import CONFIG, change

from rankclip_jax import interop


def test_preprocessing_comes_from_the_config(open_clip_folder, copy, caplog):
  folder = copy(open_clip_folder)
  wanted = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
  how = {"interpolation": "bilinear", "resize_mode": "squash"}
  ignored = {"mode": "RGB", "size": [99, 99], "fill_color": 0}
  change(folder / CONFIG, "preprocess_cfg", wanted | how | ignored)
  weights = interop.read(folder)
  assert weights.size.mean == (0.1, 0.2, 0.3)
  assert weights.size.std == (0.5, 0.6, 0.7)
  assert weights.preprocessing == {"image_size": 32, **wanted, **how}
  assert not caplog.records


@pytest.mark.parametrize(
  "content, mode",
  [
    ({"size": {"height": 32, "width": 32}, "do_center_crop": False}, "squash"),
    ({"size": 32, "crop_size": 32, "resample": 2}, "shortest"),
  ],
)
@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_preprocessing_comes_from_the_preprocessor(
  transformers_folder, copy, file, content, mode
):
  folder = copy(transformers_folder)
  content = content | {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}
  nested = {"image_processor": content} if file.startswith("processor") else content
  (folder / file).write_text(json.dumps(nested))
  weights = interop.read(folder)
  assert weights.preprocessing["resize_mode"] == mode
  how = "bilinear" if "resample" in content else "bicubic"
  assert weights.preprocessing["interpolation"] == how
  assert weights.size.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
  "key, value, message",
  [
    ("vision_cfg.width", 96, "vision_cfg.width is 96, but visual.conv1.weight of shape "
     r"\[48, 3, 8, 8\] says 48"),
    ("vision_cfg.layers", [1, 1, 1, 1], r"vision_cfg.layers is \(1, 1, 1, 1\), but "
     r"visual.transformer.resblocks.2.* says 3"),
    ("text_cfg.context_length", 77, "context_length is 77, but positional_embedding"),
    ("text_cfg.heads", 0, "text_cfg.heads must be a whole number above 0, got 0"),
    ("vision_cfg.head_width", 7, "vision_cfg.head_width is 7, which does not divide 48"),
    ("init_logit_bias", -10, "init_logit_bias is set, but there is no tensor logit_bias"),
    ("vision_cfg.image_size", [32, 64], r"image_size is \[32, 64\]; only square"),
    ("vision_cfg.timm_model_name", "vit_b", "timm_model_name is 'vit_b'.* not supported"),
    ("text_cfg.hf_model_name", "bert", "text_cfg.hf_model_name is 'bert'"),
    ("text_cfg.pool_type", "last", "pool_type is 'last'.* must be 'argmax'"),
    ("text_cfg.no_causal_mask", True, "no_causal_mask is True.* must not be set"),
    ("vision_cfg.qk_norm", True, "vision_cfg.qk_norm is True"),
    ("vision_cfg.mlp_ratio", 3.5, "vision_cfg.mlp_ratio is 3.5.* must be 4.0"),
    ("vision_cfg.norm_kwargs", {"eps": 1e-6}, "vision_cfg.norm_kwargs is {'eps'"),
    ("vision_cfg.new_idea", 1, "vision_cfg.new_idea is 1.* not supported"),
    ("multimodal_cfg", {}, "model_cfg.multimodal_cfg is {}, which is not supported"),
    ("text_cfg", None, "should have an object 'text_cfg', got None"),
    ("text_cfg.heads", 5, "text_cfg.heads is 5, which does not divide 32"),
    ("vision_cfg.layers", True, "vision_cfg.layers must be a whole number above 0, got"),
    ("init_logit_bias", "x", "model_cfg.init_logit_bias must be a number, got 'x'"),
    ("quick_gelu", "no", "model_cfg.quick_gelu must be true or false, got 'no'"),
    ("text_cfg.hf_tokenizer_name", "bert-base-uncased",
     "hf_tokenizer_name is 'bert-base-uncased' with vocab_size 49408; only CLIP's own"),
    ("text_cfg.hf_tokenizer_name", ["x"], r"hf_tokenizer_name is \['x'\]"),
  ],
)  # fmt: skip
def test_configs_that_do_not_fit_are_refused(open_clip_folder, copy, key, value, message):
  folder = copy(open_clip_folder)
  change(folder / CONFIG, f"model_cfg.{key}", value)
  with pytest.raises(ValueError, match=message) as error:
    interop.read(folder)
  assert str(folder / CONFIG) in str(error.value)


@pytest.mark.parametrize(
  "key, value, message",
  [
    ("model_type", "siglip", "model_type is 'siglip'.* CLIPModel"),
    ("model_type", "chinese_clip", "model_type is 'chinese_clip'.* CLIPModel"),
    ("text_config.layer_norm_eps", 1e-6, "text_config.layer_norm_eps is 1e-06"),
    ("vision_config.hidden_act", "relu", "hidden_act is 'relu'.*'gelu' or 'quick_gelu'"),
    ("vision_config.hidden_act", "gelu", "they must be the same"),
    ("vision_config.intermediate_size", 99, "vision_config.intermediate_size is 99"),
    ("text_config.eos_token_id", 7, "eos_token_id is 7.*49407 is needed"),
    ("projection_dim", 512, r"projection_dim is 512, but text_projection.weight of shape "
     r"\[24, 32\] says 24"),
    ("text_config.num_hidden_layers", 4, "num_hidden_layers is 4, but text_model"),
    ("text_config.num_attention_heads", 5, "num_attention_heads is 5, which does not"),
    ("text_config.vocab_size", "x", "text_config.vocab_size must be a whole number"),
  ],
)  # fmt: skip
def test_configs_of_transformers_that_do_not_fit_are_refused(
  transformers_folder, copy, key, value, message
):
  folder = copy(transformers_folder)
  change(folder / "config.json", key, value)
  with pytest.raises(ValueError, match=message) as error:
    interop.read(folder)
  assert str(folder / "config.json") in str(error.value)


def test_an_old_config_reads_captions_at_the_largest_id(transformers_folder, copy, peer):
  folder = copy(transformers_folder)
  change(folder / "config.json", "text_config.eos_token_id", 2)
  change(folder / "config.json", "vision_config_dict", None)
  model = peers.transformers.CLIPModel.from_pretrained(folder).eval()
  weights = interop.read(folder)
  peer.assert_same(
    peer.ours(weights.params, weights.size), peer.theirs(model, weights.size)
  )


def test_a_preprocessor_that_has_no_counterpart_is_refused(transformers_folder, copy):
  folder = copy(transformers_folder)
  path = folder / "preprocessor_config.json"
  for content, message in (
    ({"size": {"shortest_edge": 40}, "crop_size": 32}, "'shortest_edge': 40"),
    ({"do_normalize": False}, "do_normalize is false"),
    ({"rescale_factor": 1 / 127.5}, "rescale_factor"),
    ({"image_mean": [0.5]}, "image_mean must be three numbers"),
    ({"image_std": [0, 0, 0]}, "image_std must be three numbers from 1e-06"),
    ({"image_mean": ["a", "b", "c"]}, "image_mean must be three numbers"),
    ({"rescale_factor": None}, "rescale_factor must be 1/255, got None"),
    ({"rescale_factor": float("nan")}, "rescale_factor must be 1/255, got nan"),
    ({"resample": [1]}, r"resample is \[1\]; it must be one of"),
    ({"do_resize": "x"}, "do_resize must be true or false, got 'x'"),
  ):
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
      interop.read(folder)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
  "value, message",
  [
    ([1], r"an object 'preprocess_cfg', got \[1\]"),
    ("x", "an object 'preprocess_cfg', got 'x'"),
    ({"std": [0.1, 0, 0.1]}, r"preprocess_cfg.std must be three numbers from 1e-06 to"),
    ({"std": [0.1, -1, 0.1]}, "preprocess_cfg.std must be three numbers"),
    ({"std": [0.1, float("nan"), 0.1]}, "preprocess_cfg.std must be three numbers"),
    ({"mean": [float("inf")] * 3}, "preprocess_cfg.mean must be three numbers"),
    ({"mean": [10**400] * 3}, "preprocess_cfg.mean must be three numbers"),
    ({"mean": ["a", "b", "c"]}, "preprocess_cfg.mean must be three numbers"),
    ({"mean": 0.5}, "preprocess_cfg.mean must be three numbers"),
    ({"interpolation": "cubic"}, "preprocess_cfg.interpolation is 'cubic'; it must be"),
    ({"resize_mode": ["x"]}, r"preprocess_cfg.resize_mode is \['x'\]; it must be one"),
    ({"fill_color": 7}, "preprocess_cfg.fill_color is 7.*must be 0"),
    ({"mode": "L"}, "preprocess_cfg.mode is 'L'.*must be 'RGB'"),
    ({"blur": 1}, "preprocess_cfg.blur is 1, which is not supported"),
  ],
)  # fmt: skip
def test_preprocessing_that_cannot_be_is_refused(open_clip_folder, copy, value, message):
  folder = copy(open_clip_folder)
  change(folder / CONFIG, "preprocess_cfg", value)
  with pytest.raises(ValueError, match=message) as error:
    interop.read(folder)
  assert str(folder / CONFIG) in str(error.value)


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_too_few_layers_are_listed_by_name(open_clip_folder, copy, tower):
  """Of weights that lack some, and of weights that have some more."""
  folder = copy(open_clip_folder)
  key = f"model_cfg.{tower}_cfg.layers"
  depth = {"vision": 3, "text": 2}[tower]
  prefix = {"vision": "visual.", "text": ""}[tower]
  change(folder / CONFIG, key, depth + 1)
  name = rf"{prefix}transformer.resblocks.{depth}.ln_1.weight"
  with pytest.raises(ValueError, match=rf"{tower}_cfg.layers is {depth + 1}, but .* says "
                     rf"{depth}. By it, 12 missing: {name}"):  # fmt: skip
    interop.read(folder)
  change(folder / CONFIG, key, depth - 1)
  name = rf"{prefix}transformer.resblocks.{depth - 1}"
  with pytest.raises(ValueError, match=rf"By it, 12 unexpected: {name}"):
    interop.read(folder)
  change(folder / CONFIG, key, 10**9)
  with pytest.raises(ValueError, match=rf"layers is {10**9}, but .* says {depth}. Put"):
    interop.read(folder)
