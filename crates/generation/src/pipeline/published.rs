//! Configurations of the known families, as their repositories publish them: the keys that decide shapes and noise levels.

use serde_json::{Value, json};

/// `unet/config.json`, `vae/config.json` and `scheduler/scheduler_config.json` of a family, by its name.
pub(super) fn configurations(family: &str) -> Option<[Value; 3]> {
    let (down, crossed_down, up, crossed_up) = ("DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D");
    let of_four = |side: u32| {
        json!({
            "sample_size": side, "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2,
            "down_block_types": [crossed_down, crossed_down, crossed_down, down],
            "up_block_types": [up, crossed_up, crossed_up, crossed_up]
        })
    };
    let second = json!({"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": true});
    let (unet, scaling_factor, v) = match family {
        "sd15" => (joined(of_four(64), json!({"cross_attention_dim": 768, "attention_head_dim": 8})), 0.18215, false),
        "sd21" => (joined(of_four(64), second), 0.18215, false),
        "sd21-768" => (joined(of_four(96), second), 0.18215, true),
        "modelscope" => {
            let (down, crossed_down, up, crossed_up) = ("DownBlock3D", "CrossAttnDownBlock3D", "UpBlock3D", "CrossAttnUpBlock3D");
            let of_videos = json!({
                "cross_attention_dim": 1024, "attention_head_dim": 64,
                "down_block_types": [crossed_down, crossed_down, crossed_down, down],
                "up_block_types": [up, crossed_up, crossed_up, crossed_up]
            });
            (joined(of_four(32), of_videos), 0.18215, false)
        }
        "sdxl" => {
            let unet = json!({
                "sample_size": 128, "block_out_channels": [320, 640, 1280], "layers_per_block": 2, "cross_attention_dim": 2048,
                "down_block_types": [down, crossed_down, crossed_down], "up_block_types": [crossed_up, crossed_up, up],
                "attention_head_dim": [5, 10, 20], "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": true,
                "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816
            });
            (unet, 0.13025, false)
        }
        _ => return None,
    };
    let unet = joined(unet, json!({"in_channels": 4, "out_channels": 4}));
    let (down, up) = ("DownEncoderBlock2D", "UpDecoderBlock2D");
    let vae = json!({
        "sample_size": if family == "sdxl" { 1024 } else if v { 768 } else { 512 },
        "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4, "scaling_factor": scaling_factor,
        "in_channels": 3, "out_channels": 3, "down_block_types": [down, down, down, down], "up_block_types": [up, up, up, up]
    });
    let scheduler = json!({
        "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": false,
        "set_alpha_to_one": false, "steps_offset": 1, "skip_prk_steps": true,
        "prediction_type": if v { "v_prediction" } else { "epsilon" }
    });
    Some([unet, vae, scheduler])
}

fn joined(mut one: Value, other: Value) -> Value {
    if let (Value::Object(one), Value::Object(other)) = (&mut one, other) {
        one.extend(other);
    }
    one
}
