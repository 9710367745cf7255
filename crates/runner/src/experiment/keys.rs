//! Keys of experiment files that types do not tell the schema.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::experiment::yaml::from_value;

/// Keys of `sampler`.
pub(crate) const SAMPLER_KEYS: [&str; 13] = [
    "name",
    "steps",
    "eta",
    "guidance_scale",
    "guidance_rescale",
    "negative_prompt",
    "timestep_spacing",
    "use_karras_sigmas",
    "rescale_betas_zero_snr",
    "size_conditioning",
    "vae_decode",
    "seed_once_per_batch_of",
    "jpeg_quality",
];

/// The names that an enumeration is written by, as its reader tells them when it meets another one.
pub(crate) fn names<T: DeserializeOwned>(_: &mut SchemaGenerator) -> Schema {
    let message = from_value::<T>("?".into()).err().unwrap_or_default();
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).filter(|name| *name != "?").collect();
    json_schema!({ "enum": names.into_iter().map(Value::from).chain([Value::Null]).collect::<Vec<Value>>() })
}

/// `images`: a number, or one for each scale.
pub(crate) fn images(_: &mut SchemaGenerator) -> Schema {
    let count = serde_json::json!({ "type": "integer", "minimum": 3 });
    json_schema!({ "anyOf": [count, { "type": "object", "additionalProperties": count, "minProperties": 1 }] })
}

/// `matrix`: axes by their dotted keys.
pub(crate) fn matrix(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "patternProperties": {
            (format!("^(seed|{}|methods\\.[^.]+\\..+|models\\.[^.]+\\.(path|family|variant|dtype))$", sampler_key())): {
                "type": ["array", "object", "null"], "minItems": 1, "minProperties": 1
            }
        },
        "additionalProperties": false
    })
}

/// `set`: settings by their dotted keys.
pub(crate) fn set(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "patternProperties": { (format!("^({}|(?!sampler\\.).+)$", sampler_key())): {} },
        "additionalProperties": false
    })
}

fn sampler_key() -> String {
    format!("sampler\\.({})", SAMPLER_KEYS.join("|"))
}
