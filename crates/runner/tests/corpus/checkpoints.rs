//! Checkpoints: every key of every configuration with values of every wrong kind, and files of weights.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::{Bench, Case, text};

/// Configurations, and their keys that may not have these values: of another type, zero, negative, huge, not in proportion.
const KEYS: &[(&str, &[&str])] = &[
    (
        "unet/config.json",
        &[
            "attention_head_dim",
            "block_out_channels",
            "cross_attention_dim",
            "in_channels",
            "layers_per_block",
            "norm_eps",
            "norm_num_groups",
            "out_channels",
            "sample_size",
            "transformer_layers_per_block",
        ],
    ),
    (
        "vae/config.json",
        &[
            "block_out_channels",
            "in_channels",
            "latent_channels",
            "layers_per_block",
            "norm_num_groups",
            "out_channels",
            "sample_size",
            "scaling_factor",
        ],
    ),
    (
        "text_encoder/config.json",
        &["hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers", "vocab_size"],
    ),
    ("scheduler/scheduler_config.json", &["beta_end", "beta_start", "num_train_timesteps"]),
    ("tokenizer/tokenizer_config.json", &["model_max_length"]),
];

/// Other values, and what the error names beside file and key.
fn others() -> Vec<(&'static str, &'static str, Value)> {
    let (unet, vae, text, scheduler) =
        ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json");
    vec![
        (unet, "norm_num_groups", json!(7)),
        (unet, "attention_head_dim", json!(5)),
        (unet, "attention_head_dim", json!([4, 4, 4, 5])),
        (unet, "attention_head_dim", json!([4])),
        (unet, "block_out_channels", json!([])),
        (unet, "block_out_channels", json!([7, 16, 24, 24])),
        (unet, "block_out_channels", json!([8, 16, 24, 0])),
        (unet, "block_out_channels", json!([8, 16, 24, 1_000_000_000_000u64])),
        (unet, "down_block_types", json!(["DownBlock2D"])),
        (unet, "down_block_types", json!([1, 2, 3, 4])),
        (unet, "up_block_types", json!(["UpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock3D"])),
        (unet, "transformer_layers_per_block", json!(1_000_000)),
        (unet, "act_fn", json!("relu")),
        (unet, "freq_shift", json!(1)),
        (unet, "flip_sin_to_cos", json!(false)),
        (unet, "use_linear_projection", json!(3)),
        (unet, "addition_embed_type", json!("text")),
        (unet, "class_embed_type", json!("timestep")),
        (unet, "dual_cross_attention", json!(true)),
        (vae, "norm_num_groups", json!(7)),
        (vae, "scaling_factor", json!(-0.18215)),
        (vae, "act_fn", json!("relu")),
        (vae, "latents_mean", json!([1, 2])),
        (vae, "shift_factor", json!(0.1)),
        (vae, "down_block_types", json!(["DownEncoderBlock2D"])),
        (vae, "use_quant_conv", json!(false)),
        (text, "hidden_act", json!("relu")),
        (text, "layer_norm_eps", json!(1e-3)),
        (text, "num_attention_heads", json!(5)),
        (text, "vocab_size", json!(100)),
        (text, "eos_token_id", json!(999_999)),
        (text, "eos_token_id", json!(-1)),
        (scheduler, "beta_end", json!(5)),
        (scheduler, "beta_end", json!(1)),
        (scheduler, "beta_end", json!(0.0001)),
        (scheduler, "beta_end", json!(0.9999)),
        (scheduler, "beta_start", json!(2)),
        (scheduler, "num_train_timesteps", json!(1)),
        (scheduler, "steps_offset", json!(1000)),
        (scheduler, "steps_offset", json!(-1)),
        (scheduler, "beta_schedule", json!("squaredcos_cap_v2")),
        (scheduler, "prediction_type", json!("flow")),
        (scheduler, "timestep_spacing", json!("even")),
        (scheduler, "timestep_spacing", json!(3)),
        (scheduler, "set_alpha_to_one", json!("x")),
        (scheduler, "skip_prk_steps", json!(1)),
        (scheduler, "clip_sample", json!(true)),
        (scheduler, "thresholding", json!(true)),
        (scheduler, "final_sigmas_type", json!("none")),
        (scheduler, "trained_betas", json!([0.1])),
        ("tokenizer/tokenizer_config.json", "model_max_length", json!(1.5)),
        ("tokenizer/tokenizer_config.json", "pad_token", json!(3)),
        ("tokenizer/tokenizer_config.json", "pad_token", json!("no such token")),
    ]
}

fn generate(bench: &Bench, checkpoint: &Path, names: &[&str]) -> Case {
    let out = bench.folder().join("out.png");
    let args = ["generate", "--checkpoint", text(checkpoint), "--prompt", "x", "--size", "64x64", "--steps", "1", "--out", text(&out)];
    Case::new(&args, names).writes(&out)
}

/// The checkpoint with one value changed.
fn changed(bench: &Bench, file: &str, key: &str, value: &Value) -> Case {
    let checkpoint = bench.checkpoint();
    let path = checkpoint.join(file);
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config[key] = value.clone();
    std::fs::write(&path, config.to_string()).unwrap();
    // A vocabulary names its file.
    let file = if key == "pad_token" && value.is_string() { "vocab.json" } else { file };
    let key = if file == "vocab.json" { value.as_str().unwrap() } else { key };
    generate(bench, &checkpoint, &[file, key])
}

/// A safetensors file.
fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

type Tensors = BTreeMap<String, (String, Vec<usize>, Vec<u8>)>;

fn read(file: &Path) -> Tensors {
    let bytes = std::fs::read(file).unwrap();
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
    let tensor = |value: &Value| {
        let at = |i: usize| 8 + n + value["data_offsets"][i].as_u64().unwrap() as usize;
        let shape = value["shape"].as_array().unwrap().iter().map(|side| side.as_u64().unwrap() as usize).collect();
        (value["dtype"].as_str().unwrap().to_owned(), shape, bytes[at(0)..at(1)].to_vec())
    };
    header.iter().filter(|(name, _)| *name != "__metadata__").map(|(name, value)| (name.clone(), tensor(value))).collect()
}

fn written(tensors: &Tensors) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, (dtype, shape, bytes)) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets }));
        data.extend_from_slice(bytes);
    }
    safetensors(&Value::Object(header).to_string(), &data)
}

/// Weight files of the U-Net, and what the error names beside the file.
fn weights(file: &Path) -> Vec<(Vec<u8>, Vec<&'static str>)> {
    let (good, tensors) = (std::fs::read(file).unwrap(), read(file));
    let with = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = tensors.clone();
        change(&mut tensors);
        written(&tensors)
    };
    const NAME: &str = "mid_block.resnets.0.conv1.weight";
    let value = |bits: u32| with(&move |tensors| tensors.get_mut(NAME).unwrap().2[40..44].copy_from_slice(&bits.to_le_bytes()));
    let header = |text: &str| safetensors(text, &[0; 64]);
    let mut length = good.clone();
    length[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut longer = good.clone();
    longer.push(0);
    vec![
        (value(f32::NAN.to_bits()), vec![NAME, "NaN", "finite"]),
        (value(f32::INFINITY.to_bits()), vec![NAME, "inf", "finite"]),
        (value(f32::NEG_INFINITY.to_bits()), vec![NAME, "-inf", "finite"]),
        (with(&|tensors| drop(tensors.remove(NAME))), vec![NAME]),
        (with(&|tensors| tensors.get_mut(NAME).unwrap().1.reverse()), vec![NAME, "shape"]),
        (with(&|tensors| drop(tensors.insert("extra".into(), ("F32".into(), vec![1], vec![0; 4])))), vec!["extra"]),
        (with(&|tensors| tensors.get_mut(NAME).unwrap().0 = "F16".into()), vec![]),
        (with(&|tensors| tensors.get_mut(NAME).unwrap().0 = "Q7".into()), vec![]),
        (Vec::new(), vec![]),
        (good[..7].to_vec(), vec![]),
        (good[..good.len() / 2].to_vec(), vec![]),
        (good[..good.len() - 1].to_vec(), vec![]),
        (longer, vec![]),
        (length, vec![]),
        (header("{}"), vec![]),
        (header("[]"), vec![]),
        (header("{"), vec![]),
        (header(&"[".repeat(10_000)), vec![]),
        (header(r#"{"a": {"dtype": "F32", "shape": [18446744073709551615, 18446744073709551615], "data_offsets": [0, 64]}}"#), vec![]),
        (header(r#"{"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 18446744073709551615]}}"#), vec![]),
        (header(r#"{"a": {"dtype": "F32", "shape": [16], "data_offsets": [64, 0]}}"#), vec![]),
        (header(r#"{"a": {"dtype": "F32", "shape": [-16], "data_offsets": [0, 64]}}"#), vec![]),
    ]
}

pub(crate) fn cases(bench: &Bench) -> Vec<Case> {
    let mut cases = Vec::new();
    for (file, keys) in KEYS {
        for key in *keys {
            for value in [json!("x"), json!(0), json!(-1), json!(1_000_000_000_000u64)] {
                // Of a length that nobody has said old exports hold a huge number.
                if !(*key == "model_max_length" && value.as_u64() > Some(1)) {
                    cases.push(changed(bench, file, key, &value));
                }
            }
        }
    }
    cases.extend(others().into_iter().map(|(file, key, value)| changed(bench, file, key, &value)));
    for file in
        ["unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json"]
    {
        for text in ["", "[]", "{", "\u{0}"] {
            let checkpoint = bench.checkpoint();
            std::fs::write(checkpoint.join(file), text).unwrap();
            cases.push(generate(bench, &checkpoint, &[file]));
        }
        let checkpoint = bench.checkpoint();
        std::fs::remove_file(checkpoint.join(file)).unwrap();
        cases.push(generate(bench, &checkpoint, &[file]));
    }
    let unet = "unet/diffusion_pytorch_model.safetensors";
    for (bytes, names) in weights(&crate::tiny().join(unet)) {
        let checkpoint = bench.checkpoint();
        let file = checkpoint.join(unet);
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, bytes).unwrap();
        cases.push(generate(bench, &checkpoint, &[&["unet"], &names[..]].concat()));
    }
    // Shards that would be read from elsewhere.
    for index in
        [r#"{"weight_map": {"a": "../vae/diffusion_pytorch_model.safetensors"}}"#, r#"{"weight_map": {"a": "/etc/passwd"}}"#, "{}", "["]
    {
        let checkpoint = bench.checkpoint();
        std::fs::remove_file(checkpoint.join(unet)).unwrap();
        std::fs::write(checkpoint.join("unet/diffusion_pytorch_model.safetensors.index.json"), index).unwrap();
        cases.push(generate(bench, &checkpoint, &["index.json"]));
    }
    let pickled = bench.checkpoint();
    std::fs::rename(pickled.join(unet), pickled.join("unet/diffusion_pytorch_model.bin")).unwrap();
    cases.push(generate(bench, &pickled, &["diffusion_pytorch_model.bin", "pickled"]));
    // Values that no other check sees: the run leaves the finite numbers.
    let overflowing = bench.checkpoint();
    let mut tensors = read(&overflowing.join(unet));
    let (_, _, bytes) = tensors.get_mut("conv_out.bias").unwrap();
    bytes.chunks_exact_mut(4).for_each(|value| value.copy_from_slice(&3e38f32.to_le_bytes()));
    std::fs::remove_file(overflowing.join(unet)).unwrap();
    std::fs::write(overflowing.join(unet), written(&tensors)).unwrap();
    cases.push(generate(bench, &overflowing, &["step 0 of 1", "finite"]));
    cases
}
